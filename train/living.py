"""Training what is left of a masked network at the cost of what is left.

A masked weight is zero and stays zero, so whole filters and channels that are masked change nothing: the network
without them computes the same logits, and the same gradients for everything else. `LivingPart` runs that smaller
network on slices of the weights. Autograd carries gradients back through the slicing, so that masks, ADMM,
the optimizer and checkpoints go on with whole tensors and need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from structadmm.graph import Graph, GraphModule


class SmallerNetwork(Protocol):
    """A network without some of another one's units, as `export.shrink.Shrunk` is."""

    @property
    def graph(self) -> Graph:
        """With every size reduced; its state has the names of the larger network."""

    @property
    def state(self) -> dict[str, Tensor]:
        """Its tensors. Only constants, which are no parameters and no buffers, are read."""

    @property
    def kept(self) -> dict[tuple[str, int], Tensor]:
        """Per parameter axis that lost something, the indices that stay, int64."""


FindSmaller = Callable[[Graph, Mapping[str, Tensor], Mapping[str, Tensor]], SmallerNetwork | None]
"""From a graph, its state and masks by parameter name: the network without what the masks remove, if it is smaller and
the same in training, too."""


class LivingPart:
    """What masks leave of `model`, as a function of images.

    Args:
        smaller: the network that is left.
        model: whose parameters it reads, and whose running statistics it updates in training mode.
    """

    def __init__(self, smaller: SmallerNetwork, model: nn.Module) -> None:
        self._model = model
        self._own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        device = next(iter(self._own.values())).device
        entries = {name: entry for name, entry in smaller.graph.state.items() if entry.alias_of is None}
        self._constants = {name: smaller.state[name].to(device) for name in entries if name not in self._own}
        self._kept = {
            name: [
                (axis, smaller.kept[name, axis].to(device))
                for axis in range(self._own[name].ndim)
                if (name, axis) in smaller.kept
            ]
            for name in entries
            if name in self._own
        }
        # Every tensor is replaced at each call.
        placeholders = {
            name: torch.empty(entry.shape, dtype=getattr(torch, entry.dtype), device="meta")
            for name, entry in entries.items()
        }
        self._module = GraphModule(smaller.graph, placeholders)

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of `images`, in the model's mode."""
        self._module.train(self._model.training)
        tensors = {name: self._living(name) for name in self._kept}
        logits: Tensor = functional_call(self._module, {**tensors, **self._constants}, (images,))
        if self._model.training:
            self._keep_statistics(tensors)
        return logits

    def _living(self, name: str) -> Tensor:
        tensor = self._own[name]
        for axis, indices in self._kept[name]:
            tensor = tensor.index_select(axis, indices)
        return tensor

    @torch.no_grad()
    def _keep_statistics(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            # A buffer that lost nothing was updated in place.
            if self._kept[name] and not isinstance(self._own[name], nn.Parameter):
                ((axis, indices),) = self._kept[name]
                self._own[name].index_copy_(axis, indices, value)
