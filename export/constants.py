"""Which channels of which tensors have a value that does not depend on the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from export.weight_use import WeightUse
from structadmm.graph.atoms import (
    argument_of,
    collapse,
    convolution_groups,
    literals,
    run_move,
    spatial_dims,
)
from structadmm.graph.ir import Argument, Graph, Node, Ref, StateRef
from structadmm.graph.module import resolve, shapes_at_one
from structadmm.graph.operators import ROLES

_UNKNOWN = float("nan")
_SAME = 1e-12


def squeeze_repeats(values: Tensor) -> Tensor:
    """`collapse` for float64 with NaN, which compares by bits."""
    return collapse(values.view(torch.int64)).view(torch.float64)


class ConstantFlow:
    """Evaluates a graph in evaluation mode with an unknown input, in float64.

    A value is NaN where it is unknown. Zero times an unknown is zero: activations are finite.

    Attributes:
        values: float64 tensors by node, in the node's shape at batch 1, stride 0 where nothing changes.
    """

    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        self.graph = graph
        self.state = state
        self.batch = 1 if graph.batch is not None else None
        self.values: dict[str, list[Tensor]] = {}
        self._uses: dict[str, WeightUse] = {}
        self._at_one = shapes_at_one(graph)
        for node in graph.nodes:
            self.values[node.name] = self._node(node)

    def operand(self, argument: Argument) -> Tensor:
        """The value of a tensor argument."""
        if isinstance(argument, Ref):
            return self.values[argument.node][0]
        return self.tensor(argument)

    def tensor(self, argument: Argument) -> Tensor:
        """A tensor of the state in float64."""
        assert isinstance(argument, StateRef)
        return self.state[argument.name].detach().to("cpu", torch.float64)

    def channels(self, argument: Argument, axis: int = 1) -> Tensor:
        """One value per index of `axis`; unknown where it differs along other dimensions. float64 [size]."""
        operand = self.operand(argument)
        size = operand.shape[axis]
        rows = squeeze_repeats(operand).movedim(axis, 0)
        rows = rows.expand(size, *rows.shape[1:]).reshape(size, -1)
        same = (rows == rows[:, :1]).all(dim=1)
        return torch.where(same, rows[:, 0], _UNKNOWN)

    def weight_use(self, node: Node) -> WeightUse:
        """How a convolution or linear uses its weight."""
        if node.name not in self._uses:
            size = self.operand(node.args[0]).shape[2:]
            self._uses[node.name] = WeightUse(node, self.tensor(node.args[1]), size)
        return self._uses[node.name]

    def _shapes(self, node: Node) -> list[tuple[int, ...]]:
        return list(self._at_one[node.name])

    def _unknown(self, node: Node) -> list[Tensor]:
        return [
            torch.full([1] * len(shape), _UNKNOWN, dtype=torch.float64).expand(shape) for shape in self._shapes(node)
        ]

    def _from_channels(self, node: Node, values: Tensor, axis: int = 1) -> list[Tensor]:
        (shape,) = self._shapes(node)
        return [values.reshape([-1 if d == axis % len(shape) else 1 for d in range(len(shape))]).expand(shape)]

    def _node(self, node: Node) -> list[Tensor]:
        if ROLES.get(node.op) in ("conv", "conv_transpose") and len(node.shape) != node_rank(node, self.graph):
            return self._unknown(node)  # no batch dimension
        match ROLES.get(node.op, "opaque"):
            case "conv" | "conv_transpose" if isinstance(node.args[1], StateRef):
                return self._convolved(node)
            case "linear" if isinstance(node.args[1], StateRef):
                return self._from_channels(node, self._weighted(node, -1), -1)
            case "batch_norm" | "instance_norm" if node.args[3] is not None and node.args[5] is not True:
                return self._scaled(node)
            case "batch_norm" | "instance_norm" | "group_norm":
                return self._from_channels(node, self._normalised(node))
            case "prelu" if isinstance(node.args[1], StateRef):
                operand, slope = squeeze_repeats(self.operand(node.args[0])), self._per_channel(node, 1, 0.0)
                return self._expanded(node, torch.where(operand > 0, operand, operand * slope))
            case "pointwise":
                return self._pointwise(node)
            case "binary":
                return self._binary(node)
            case "move" | "pad":
                return self._move(node)
            case "spatial":
                return self._spatial(node)
            case "reduce":
                return self._reduce(node)
        return self._unknown(node)

    def _expanded(self, node: Node, values: Tensor) -> list[Tensor]:
        (shape,) = self._shapes(node)
        return [values.expand(shape)]

    def _per_channel(self, node: Node, position: int, default: float) -> Tensor:
        """An argument with one value per channel (axis 1), shaped to meet the operand."""
        argument, ndim = node.args[position], len(node.shape)
        values = self.tensor(argument) if argument is not None else torch.full([1], default, dtype=torch.float64)
        return values.reshape([-1 if d == 1 else 1 for d in range(ndim)])

    def _weighted(self, node: Node, axis: int) -> Tensor:
        """Output channels of a convolution or linear: known where every weight that is not zero meets a known value."""
        given = self.channels(node.args[0], axis)
        use = self.weight_use(node)
        unknown = use.reads[:, given.isnan()].any(dim=1)
        constants = torch.nonzero(~given.isnan() & (given != 0)).flatten()
        settled = ~unknown & ~use.uneven(constants).any(dim=1)
        total = use.sums @ given.nan_to_num()  # a weight of zero adds zero
        bias = argument_of(node, 2, "bias")
        if bias is not None:
            total = total + self.operand(bias)
        return torch.where(settled, total, _UNKNOWN)

    def _convolved(self, node: Node) -> list[Tensor]:
        """What `_weighted` finds, and pictures: output channels that are known and differ from place to place."""
        total = self._weighted(node, 1)
        (found,) = self._from_channels(node, total)
        operand = self.operand(node.args[0])
        unknown = squeeze_repeats(operand).isnan().movedim(1, 0).flatten(1).any(dim=1).expand(operand.shape[1])
        pictures = total.isnan() & ~self.weight_use(node).reads[:, unknown].any(dim=1)
        if not bool(pictures.any()):
            return [found]
        weight, bias = self.tensor(node.args[1]), argument_of(node, 2, "bias")
        bias = None if bias is None else self.tensor(bias)
        which = torch.nonzero(pictures).flatten()
        if convolution_groups(node) == 1:
            weight = weight.index_select(1 if ROLES[node.op] == "conv_transpose" else 0, which)
            bias = None if bias is None else bias[which]
        value = literals(node, self.batch)
        result = resolve(node.op)(operand.nan_to_num(), weight, bias, *(value(item) for item in node.args[3:]))
        if convolution_groups(node) > 1:
            result = result[:, which]
        return [found.clone(memory_format=torch.contiguous_format).index_copy_(1, which, result)]

    def _scaled(self, node: Node) -> list[Tensor]:
        """Normalisation by statistics of the past, which is a factor and an offset per channel."""
        gamma, beta, mean, variance = (
            self._per_channel(node, position, default) for position, default in enumerate((1.0, 0.0, 0.0, 1.0), start=1)
        )
        operand = squeeze_repeats(self.operand(node.args[0]))
        result = (operand - mean) / (variance + float(node.args[7])).sqrt() * gamma + beta
        return self._expanded(node, torch.where(gamma == 0, beta, result))

    def _normalised(self, node: Node) -> Tensor:
        """Normalisation by statistics of the input itself: a constant channel is its own mean."""
        given = self.channels(node.args[0])
        shifted = 2 if ROLES[node.op] == "group_norm" else 1
        gamma, beta = (
            self.tensor(item) if item is not None else torch.full_like(given, default)
            for item, default in zip(node.args[shifted : shifted + 2], (1.0, 0.0), strict=True)
        )
        level = torch.zeros_like(given)
        if ROLES[node.op] == "group_norm":
            # Constants of different value have a spread, too.
            grouped = given.view(int(node.args[1]), -1)
            spread = grouped - grouped.mean(dim=1, keepdim=True)
            level = (
                spread / (spread.square().mean(dim=1, keepdim=True) + float(argument_of(node, 4, "eps", 1e-5))).sqrt()
            ).flatten()
        level = torch.where(given.isnan(), given, level)
        return torch.where(gamma == 0, beta, level * gamma + beta)

    def _spatial(self, node: Node) -> list[Tensor]:
        """Pooling and resizing, channel by channel; all of them leave zeros."""
        operand = self.operand(node.args[0])
        if operand.ndim != 2 + spatial_dims(node):
            return self._unknown(node)  # no batch dimension
        channels = self.channels(node.args[0])
        (found,) = self._from_channels(node, torch.where(channels == 0, channels, _UNKNOWN))
        rows = squeeze_repeats(operand).movedim(1, 0).flatten(1)
        known = ((~rows.isnan()).any(dim=1).expand(operand.shape[1])) & (channels != 0)
        if not bool(known.any()):
            return [found]
        which = torch.nonzero(known).flatten()
        value = literals(node, self.batch)
        kwargs = {key: value(item) for key, item in (node.kwargs or {}).items()}
        # NaN spreads over what it touches.
        result = resolve(node.op)(operand.index_select(1, which), *(value(item) for item in node.args[1:]), **kwargs)
        # Means of equal numbers differ in the last digits, by how many there are of them.
        space = tuple(range(2, result.ndim))
        low, high = result.amin(space, keepdim=True), result.amax(space, keepdim=True)
        result = torch.where(high - low <= _SAME * high.abs(), high, result)
        return [found.clone(memory_format=torch.contiguous_format).index_copy_(1, which, result)]

    def _pointwise(self, node: Node) -> list[Tensor]:
        operand = squeeze_repeats(self.operand(node.args[0]))
        value = literals(node, self.batch)
        rest = [item if isinstance(item, (Ref, StateRef)) else value(item) for item in node.args[1:]]
        if any(isinstance(item, (Ref, StateRef)) for item in rest):
            return self._unknown(node)
        kwargs = {key: value(item) for key, item in (node.kwargs or {}).items() if key != "memory_format"}
        result = resolve(node.op)(operand.nan_to_num(), *rest, **kwargs).to(torch.float64)
        (shape,) = self._shapes(node)
        # Some operators swallow NaN, so what is unknown is carried beside the value.
        return [torch.where(operand.isnan(), _UNKNOWN, result).expand(shape)]

    def _binary(self, node: Node) -> list[Tensor]:
        value = literals(node, self.batch)
        operands: list[Any] = [
            squeeze_repeats(self.operand(item)) if isinstance(item, (Ref, StateRef)) else value(item)
            for item in node.args[:2]
        ]
        kwargs = {key: value(item) for key, item in (node.kwargs or {}).items()}
        clean = [item.nan_to_num() if isinstance(item, Tensor) else item for item in operands]
        result = resolve(node.op)(*clean, *(value(item) for item in node.args[2:]), **kwargs).to(torch.float64)
        unknown = torch.zeros_like(result, dtype=torch.bool)
        for item in operands:
            if isinstance(item, Tensor):
                unknown = unknown | item.isnan()
        result = torch.where(unknown, _UNKNOWN, result)
        if node.op == "aten.mul.Tensor":
            for item in operands:
                result = torch.where(torch.as_tensor(item == 0), 0.0, result)
        (shape,) = self._shapes(node)
        return [result.expand(shape)]

    def _move(self, node: Node) -> list[Tensor]:
        if node.op == "getitem":
            return [self.values[node.args[0].node][node.args[1]]]
        if "upsample" in node.op or "pad" in node.op:
            value = literals(node, self.batch)
            result = resolve(node.op)(self.operand(node.args[0]), *(value(item) for item in node.args[1:]))
            return [result]
        moved = run_move(node, lambda item: self.operand(item).view(torch.int64), self.batch)
        return [item.view(torch.float64) for item in moved]

    def _reduce(self, node: Node) -> list[Tensor]:
        operand = self.operand(node.args[0])
        value = literals(node, self.batch)
        # NaN spreads through sums, means and extrema, so unknown stays unknown.
        result = resolve(node.op)(
            operand, *(value(item) for item in node.args[1:]), **{k: value(v) for k, v in (node.kwargs or {}).items()}
        )
        return [result.to(torch.float64)]


def node_rank(node: Node, graph: Graph) -> int:
    """Dimensions of the node's weight; 0 if it is computed."""
    weight = argument_of(node, 1, "weight")
    return len(graph.state[weight.name].shape) if isinstance(weight, StateRef) else 0
