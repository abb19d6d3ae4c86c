"""Batch normalisation over the global batch, whatever number of processes it is spread over.

`torch.nn.SyncBatchNorm` does so on GPUs alone. This one adds up sums and squares with two reductions on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        del ctx
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm(nn.Module):
    """A batch normalisation whose statistics in training are those of the global batch.

    Args:
        local: the layer it takes the place of; parameters and buffers are shared and keep their names.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, local: _BatchNorm) -> None:
        super().__init__()
        self.eps = local.eps
        self.momentum = local.momentum
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(local, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(local, name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, ...] over everything but C."""
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        rest = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x.float()  # half precision cannot hold the sums
        local_count = torch.full((1,), values.numel() / values.shape[1], device=x.device)
        sums = _SumOverProcesses.apply(torch.cat([values.sum(dim=rest), local_count]))  # type: ignore[no-untyped-call]
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        # A second pass instead of E[x^2] - E[x]^2, which cancels.
        variance = _SumOverProcesses.apply(centred.square().sum(dim=rest)) / count  # type: ignore[no-untyped-call]
        if self.training:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        found: Tensor = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.weight is not None and self.bias is not None:
            found = found * self.weight.view(shape) + self.bias.view(shape)
        return found.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return  # the layer was made without running statistics
        self.num_batches_tracked += 1
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def calibrate(model: nn.Module, images: Tensor) -> nn.Module:
    """Set the statistics of every batch normalisation to those of `images`; returns the model, in evaluation mode.

    With the statistics it is built with, the signals of an untrained network fade from layer to layer, and little of
    the input is left in its output.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean of what was seen since
    with torch.no_grad():
        model.train()(images)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    return model.eval()


def synchronise_batch_norms(model: nn.Module) -> None:
    """Replace every batch normalisation inside `model`, in place."""
    replaced: dict[nn.Module, GlobalBatchNorm] = {}
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                replaced.setdefault(child, GlobalBatchNorm(child))
                setattr(parent, name, replaced[child])
