"""Random CNNs and random structured zeros, for properties that must hold on networks nobody has seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from structadmm.graph import Graph, find_coupling
from tests.architectures import SqueezeExcite, randomise

ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, lambda: nn.LeakyReLU(0.1), nn.Sigmoid, nn.Hardsigmoid, nn.SiLU, nn.Identity,
)  # fmt: skip


class RandomNetwork(nn.Module):
    """A directed graph of layers; every step appends one tensor that later steps may read."""

    def __init__(self, seed: int, steps: int = 7) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, tuple[int, ...], int]] = []
        self.tensors: list[tuple[int, int]] = [(3, 12)]  # (channels, height = width)
        self._conv(0)
        for _ in range(steps):
            self.rng.choice(
                (self._conv, self._conv, self._conv, self._add, self._concat, self._chunk, self._depthwise,
                 self._grouped, self._transposed, self._pool, self._squeeze_excite, self._slice)
            )(self._recent())  # fmt: skip
        channels, size = self.tensors[-1]
        self.flatten = self.rng.random() < 0.4
        self.head = nn.Linear(channels * (size * size if self.flatten else 1), 4)

    def _recent(self) -> int:
        return self.rng.randint(max(0, len(self.tensors) - 3), len(self.tensors) - 1)

    def _append(self, kind: str, sources: tuple[int, ...], layer: nn.Module, channels: int, size: int) -> int:
        self.layers.append(layer)
        self.plan.append((kind, sources, len(self.layers) - 1))
        self.tensors.append((channels, size))
        return len(self.tensors) - 1

    def _after(self, conv: nn.Module, channels: int) -> nn.Module:
        layers = [conv]
        if self.rng.random() < 0.6:
            layers.append(nn.BatchNorm2d(channels))
        if self.rng.random() < 0.1:
            layers.append(nn.PReLU(channels))
        return nn.Sequential(*layers, self.rng.choice(ACTIVATIONS)())

    def _conv(self, source: int, channels: int | None = None, *, keep_size: bool = False) -> int:
        inputs, size = self.tensors[source]
        outputs = channels or self.rng.randint(2, 9)
        kernel = self.rng.choice((1, 3, 3))
        dilation = self.rng.choice((1, 1, 2)) if kernel == 3 else 1
        stride = 2 if size >= 6 and not keep_size and self.rng.random() < 0.25 else 1
        padding = dilation * (kernel // 2)
        if not keep_size and kernel == 3 and size > 2 * dilation + 2 and self.rng.random() < 0.3:
            padding = 0
        conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=self.rng.random() < 0.5)
        after = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        return self._append("module", (source,), self._after(conv, outputs), outputs, after)

    def _partner(self, source: int, channels: int | None) -> int:
        """Another tensor of the same size, of `channels` if given."""
        size = self.tensors[source][1]
        same = [k for k, (c, s) in enumerate(self.tensors) if s == size and k != source and channels in (None, c)]
        if same and self.rng.random() < 0.5:
            return self.rng.choice(same)
        return self._conv(source, channels, keep_size=True)

    def _add(self, source: int) -> None:
        channels, size = self.tensors[source]
        other = self._partner(source, channels)
        kind = self.rng.choice(("add", "add", "sub", "mul"))
        self._append(kind, (source, other), nn.Identity(), channels, size)

    def _concat(self, source: int) -> None:
        other = self._partner(source, None)
        channels = self.tensors[source][0] + self.tensors[other][0]
        self._append("concat", (source, other), nn.Identity(), channels, self.tensors[source][1])

    def _chunk(self, source: int) -> None:
        channels, size = self.tensors[source]
        if channels < 2:
            return
        first = (channels + 1) // 2
        self._append("chunk0", (source,), nn.Identity(), first, size)
        self._append("chunk1", (source,), nn.Identity(), channels - first, size)

    def _slice(self, source: int) -> None:
        channels, size = self.tensors[source]
        if channels > 2:
            self._append("slice", (source,), nn.Identity(), channels - 2, size)

    def _depthwise(self, source: int) -> None:
        channels, size = self.tensors[source]
        multiplier = self.rng.choice((1, 1, 2))
        conv = nn.Conv2d(channels, channels * multiplier, 3, 1, 1, groups=channels, bias=self.rng.random() < 0.5)
        self._append("module", (source,), self._after(conv, channels * multiplier), channels * multiplier, size)

    def _grouped(self, source: int) -> None:
        groups = self.rng.choice((2, 3, 4))
        inputs, outputs = groups * self.rng.randint(1, 3), groups * self.rng.randint(1, 3)
        before = self._conv(source, inputs, keep_size=True)
        conv = nn.Conv2d(inputs, outputs, 3, 1, 1, groups=groups, bias=self.rng.random() < 0.5)
        self._append("module", (before,), self._after(conv, outputs), outputs, self.tensors[before][1])

    def _transposed(self, source: int) -> None:
        inputs, size = self.tensors[source]
        if size > 8:
            return
        groups = self.rng.choice([g for g in (1, 1, 2) if inputs % g == 0])
        outputs = groups * self.rng.randint(1, 4)
        conv = nn.ConvTranspose2d(inputs, outputs, 2, 2, groups=groups, bias=self.rng.random() < 0.5)
        self._append("module", (source,), self._after(conv, outputs), outputs, 2 * size)

    def _pool(self, source: int) -> None:
        channels, size = self.tensors[source]
        if size >= 4:
            pool = self.rng.choice((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)))
            padded = pool.kernel_size == 3
            self._append("module", (source,), pool, channels, (size - 1) // 2 + 1 if padded else size // 2)

    def _squeeze_excite(self, source: int) -> None:
        channels, size = self.tensors[source]
        self._append("module", (source,), SqueezeExcite(channels, max(1, channels // 2)), channels, size)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for kind, sources, layer in self.plan:
            operands = [values[source] for source in sources]
            match kind:
                case "module":
                    value = self.layers[layer](operands[0])
                case "add":
                    value = operands[0] + operands[1]
                case "sub":
                    value = operands[0] - operands[1]
                case "mul":
                    value = operands[0] * operands[1]
                case "concat":
                    value = torch.cat(operands, 1)
                case "chunk0" | "chunk1":
                    value = operands[0].chunk(2, 1)[int(kind[-1])]
                case _:
                    value = operands[0][:, 1:-1]
            values.append(value)
        last = values[-1]
        pooled = last.flatten(1) if self.flatten else functional.adaptive_avg_pool2d(last, 1).flatten(1)
        return self.head(pooled)


def random_network(seed: int) -> nn.Module:
    """A network of about ten layers in evaluation mode; takes [N, 3, 12, 12]."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = RandomNetwork(seed)
    return randomise(model, torch.Generator().manual_seed(seed)).eval()


NETWORK_INPUT = (1, 3, 12, 12)


def with_structured_zeros(graph: Graph, state: Mapping[str, Tensor], fraction: float, seed: int) -> dict[str, Tensor]:
    """A copy of `state` with zero coupled units, zero single filters, zero channels and zero columns.

    Some filters keep their bias and normalisation, so that they go on to emit a constant.
    """
    generator = torch.Generator().manual_seed(seed)

    def chance(probability: float) -> bool:
        return bool(torch.rand((), generator=generator) < probability)

    zeros = {name: tensor.detach().clone() for name, tensor in state.items()}
    for group in find_coupling(graph).groups:
        if group.frozen is not None:
            continue
        for unit in range(group.units):
            if not chance(fraction):
                continue
            parts = group.producers if chance(0.3) else group.producers + group.affine
            if chance(0.2):
                parts = group.consumers
            for part in parts:
                if graph.state[part.parameter].kind == "parameter":
                    zeros[part.parameter].index_fill_(part.axis, torch.from_numpy(part.indices[unit]), 0.0)
    for tensor in zeros.values():
        if tensor.ndim == 4:
            tensor *= (torch.rand(1, *tensor.shape[1:], generator=generator) >= fraction / 4).to(tensor.dtype)
            tensor *= (torch.rand(len(tensor), 1, 1, 1, generator=generator) >= fraction / 6).to(tensor.dtype)
    return zeros
