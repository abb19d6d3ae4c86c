"""Operators joined into what one launch can do.

Each rule rewrites one node and returns the changed network, or None; rules run until none applies. A fused node takes
the place of its *last* part, so everything it reads has been computed by then and no cycle can arise. A tensor that
somebody else reads too is never fused away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule, supports
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.network import (
    Activate,
    Array,
    ChannelAffine,
    Generic,
    Network,
    Node,
    Tensor,
    View,
    ZeroPad,
    zeros,
)
from tvm_build.ops import Activation, Conv2d, Dense, Elementwise, GlobalAverage, Interleave, Operator, Pool2d, blocks
from tvm_build.precision import FLOAT32, Precision
from tvm_build.transposed import per_phase

if TYPE_CHECKING:
    from tvm_build.tuning.tuned import TunedSchedules

# A compacted reduction must be predicted to save this share of the time: gathers are hard to predict.
MIN_SAVING = 0.1

# Means that a dense layer keeps in local memory, of which every device has 32 KiB; the sums' parts take the rest.
_MOST_POOLED_BYTES = 31 << 10

Rule = Callable[[Network, int], "Network | None"]


def fuse(network: Network, gpu: Gpu, precision: Precision = FLOAT32, tuned: TunedSchedules | None = None) -> Network:
    """Join every convolution with what surrounds it, and the other operators as far as their kernels allow.

    Args:
        network: as recognized.
        gpu: decides whether leaving out zero columns pays, and averaging within a dense layer.
        precision: of the kernels; what they cost depends on it.
        tuned: what was measured, which goes before what the cost model predicts.

    Ensures: no `ChannelAffine`, `ZeroPad` or `Activate` remains; what no kernel takes is `Generic`.
    """
    pooled_dense: Rule = partial(_pooled_dense, gpu=gpu, precision=precision)
    for rules in (*_PHASES, (pooled_dense,)):
        network = _until_settled(network, rules)
    settled = (_settle(node, network) for node in network.nodes)
    compacted = (_without_zero_columns(node, gpu, precision, tuned) for node in settled)
    network = network.with_nodes(compacted).without_dead_nodes()
    network.check()
    return network


def _until_settled(network: Network, rules: tuple[Rule, ...]) -> Network:
    index = 0
    while index < len(network.nodes):
        for rule in rules:
            changed = rule(network, index)
            if changed is not None:
                network, index = changed.without_dead_nodes(), -1
                break
        index += 1
    return network


def _replace(network: Network, index: int, node: Node, *removed: Node) -> Network:
    """Put `node` at `index` and take out `removed`, whose outputs nobody else reads."""
    nodes = list(network.nodes)
    nodes[index] = node
    return network.with_nodes(item for item in nodes if not any(item is gone for gone in removed))


def _only_reader(network: Network, tensor: str) -> bool:
    return network.uses()[tensor] == 1


# --- rules: each looks at the node at `index` ------------------------------------------------------------------------


def _self_gate(network: Network, index: int) -> Network | None:
    """`x * sigmoid(x)` is SiLU; `x * hard_sigmoid(x)` is hard-swish."""
    node = network.nodes[index]
    if not (isinstance(node.op, Elementwise) and node.op.operator == "mul" and not node.op.broadcast_pixels):
        return None
    if node.op.activation != "none":
        return None
    producers = network.producers()
    gates: dict[str, Activation] = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}
    for value, gated in (node.inputs, node.inputs[::-1]):
        gate = producers.get(gated)
        if gate is None or not isinstance(gate.op, Activate) or gate.inputs != (value,):
            continue
        kind = gates.get(gate.op.activation)
        if kind is not None and _only_reader(network, gated):
            joined = Node(node.layer, Activate(kind), (value,), node.outputs, source=gate.source + node.source)
            return _replace(network, index, joined, gate)
    return None


def _pad_into_window(network: Network, index: int) -> Network | None:
    """A `ZeroPad` before a convolution, or before an average that counts padding, becomes padding of the window."""
    node = network.nodes[index]
    pad = network.producers().get(node.inputs[0]) if node.inputs else None
    if pad is None or not isinstance(pad.op, ZeroPad):
        return None
    if isinstance(node.op, Pool2d):
        no_padding_yet = node.op.padding == (0, 0, 0, 0)
        if node.op.kind != "avg" or not (node.op.count_include_pad or no_padding_yet):
            return None
        op: Conv2d | Pool2d = replace(node.op, count_include_pad=True)
    elif isinstance(node.op, Conv2d):
        op = node.op
    else:
        return None
    _, _, height, width = network.tensors[pad.inputs[0]].shape
    total = tuple(a + b for a, b in zip(op.padding, pad.op.padding, strict=True))
    grown = replace(op, in_height=height, in_width=width, padding=total)  # type: ignore[arg-type]
    joined = replace(node, op=grown, inputs=(pad.inputs[0], *node.inputs[1:]), source=pad.source + node.source)
    return _replace(network, index, joined)


def _affine_into_weights(network: Network, index: int) -> Network | None:
    """A `ChannelAffine` after a convolution or dense layer is a scaling of its weights and a bias."""
    node = network.nodes[index]
    if not isinstance(node.op, ChannelAffine):
        return None
    before = network.producers().get(node.inputs[0])
    if before is None or not isinstance(before.op, Conv2d | Dense) or not _only_reader(network, node.inputs[0]):
        return None
    if before.op.activation != "none" or (isinstance(before.op, Conv2d) and before.op.has_residual):
        return None
    constants = _scaled(before, node.constants["scale"], node.constants["shift"])
    source = before.source + node.source
    return _replace(
        network, index, Node(before.layer, before.op, before.inputs, node.outputs, constants, source), before
    )


def _before_interleaving(network: Network, index: int) -> Network | None:
    """What is done to every pixel after an `Interleave` is done before it, where a convolution takes it along."""
    node = network.nodes[index]
    if not isinstance(node.op, ChannelAffine | Activate):
        return None
    last = network.producers().get(node.inputs[0])
    if last is None or not isinstance(last.op, Interleave) or not _only_reader(network, node.inputs[0]):
        return None
    constants = {name: per_phase(values, last.op, float(name == "scale")) for name, values in node.constants.items()}
    computed = replace(network.tensors[last.inputs[0]], name=f"{last.inputs[0]}'")
    before = Node(node.layer, node.op, last.inputs, (computed.name,), constants, node.source)
    after = Node(last.layer, last.op, (computed.name,), node.outputs, source=last.source)
    nodes = [item for item in network.nodes[:index] if item is not last] + [before, after, *network.nodes[index + 1 :]]
    return replace(network, tensors={**network.tensors, computed.name: computed}).with_nodes(nodes)


def _scaled(node: Node, scale: Array, shift: Array) -> dict[str, Array]:
    weight, bias = node.constants["weight"], node.constants["bias"]
    column = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    # In float64, so that a bias alone (scale 1) leaves every weight's bits as they are and a BatchNorm rounds once.
    return {
        "weight": (weight.astype(np.float64) * column).astype(np.float32),
        "bias": (bias.astype(np.float64) * scale + shift).astype(np.float32),
    }


def _residual(network: Network, index: int) -> Network | None:
    """`conv(x) + y` is one launch, if nobody else reads `conv(x)`."""
    node = network.nodes[index]
    if not (isinstance(node.op, Elementwise) and node.op.operator == "add" and not node.op.broadcast_pixels):
        return None
    if node.op.activation != "none" or node.inputs[0] == node.inputs[1]:
        return None
    producers = network.producers()
    order = {name: position for position, item in enumerate(network.nodes) for name in item.outputs}
    # The later of two convolutions takes the sum: the other one's output has its life to itself.
    for value in sorted(node.inputs, key=lambda name: order.get(name, -1), reverse=True):
        conv = producers.get(value)
        if conv is None or not isinstance(conv.op, Conv2d) or not _only_reader(network, value):
            continue
        if conv.op.has_residual or conv.op.activation != "none" or conv.op.shortcut is not None:
            continue
        other = node.inputs[1] if value == node.inputs[0] else node.inputs[0]
        op = replace(conv.op, has_residual=True)
        source = conv.source + node.source
        joined = Node(conv.layer, op, (*conv.inputs, other), node.outputs, conv.constants, source)
        return _replace(network, index, joined, conv)
    return None


def _shortcut(network: Network, index: int) -> Network | None:
    """`conv(x) + conv(y)` is one launch of two reductions, if nobody else reads either of them.

    A depthwise convolution beside a dense one is multiplied like it, by zeros for the most part: nothing for the single
    tap of a normalisation, too much for a window.
    """
    node = network.nodes[index]
    if not (isinstance(node.op, Elementwise) and node.op.operator == "add" and not node.op.broadcast_pixels):
        return None
    if node.op.activation != "none" or node.inputs[0] == node.inputs[1]:
        return None
    producers = network.producers()
    convs: list[tuple[Node, Conv2d]] = []
    for value in node.inputs:
        conv = producers.get(value)
        if conv is None or not isinstance(conv.op, Conv2d) or not _only_reader(network, value):
            return None
        if conv.op.has_residual or conv.op.activation != "none" or conv.op.shortcut is not None:
            return None
        convs.append((conv, conv.op))
    depthwise = [op for _, op in convs if is_depthwise(op)]
    if len(depthwise) == 1 and depthwise[0].kernel != (1, 1):
        return None
    (main, main_op), (side, side_op) = sorted(convs, key=lambda pair: pair[1].reduction, reverse=True)
    op = replace(main_op, shortcut=side_op)
    if not supports(op):
        return None
    constants = {
        "weight": main.constants["weight"],
        "bias": main.constants["bias"] + side.constants["bias"],
        "shortcut_weight": side.constants["weight"],
    }
    source = main.source + side.source + node.source
    joined = Node(main.layer, op, (*main.inputs, *side.inputs), node.outputs, constants, source)
    return _replace(network, index, joined, main, side)


def _activation(network: Network, index: int) -> Network | None:
    """An activation runs in the epilogue of the operator before it."""
    node = network.nodes[index]
    if not isinstance(node.op, Activate):
        return None
    before = network.producers().get(node.inputs[0])
    if before is None or not isinstance(before.op, Conv2d | Dense | Elementwise) or before.op.activation != "none":
        return None
    if not _only_reader(network, node.inputs[0]):
        return None
    op = replace(before.op, activation=node.op.activation)
    source = before.source + node.source
    return _replace(network, index, replace(before, op=op, outputs=node.outputs, source=source), before)


def _pooled_dense(network: Network, index: int, gpu: Gpu, precision: Precision) -> Network | None:
    """Global average, flatten and dense layer are one launch where that is predicted to pay.

    It spares a launch, but each work-group averages the whole image for itself.
    """
    node = network.nodes[index]
    if not isinstance(node.op, Dense) or node.op.input_is_c4:
        return None
    producers = network.producers()
    view = producers.get(node.inputs[0])
    if view is None or not isinstance(view.op, View):
        return None
    pooled = producers.get(view.inputs[0])
    if pooled is None or not isinstance(pooled.op, GlobalAverage):
        return None
    if not (_only_reader(network, view.output) and _only_reader(network, pooled.output)):
        return None
    if node.op.batch != pooled.op.batch or node.op.in_features != pooled.op.channels:
        return None
    if 4 * node.op.in_features > _MOST_POOLED_BYTES:
        return None
    op = replace(node.op, input_is_c4=True, pooled_pixels=pooled.op.height * pooled.op.width)
    apart_us = sum(_predicted_us(part, gpu, precision) for part in (pooled.op, node.op))
    if _predicted_us(op, gpu, precision) > apart_us:
        return None
    joined = replace(node, op=op, inputs=pooled.inputs, source=pooled.source + view.source + node.source)
    return _replace(network, index, joined)


def _affine_is_depthwise(network: Network, index: int) -> Network | None:
    """A `ChannelAffine` that found no convolution (pre-activation networks) is a 1x1 depthwise convolution."""
    node = network.nodes[index]
    shape = network.tensors[node.inputs[0]].shape if node.inputs else ()
    if not isinstance(node.op, ChannelAffine) or len(shape) != 4:
        return None
    before = network.producers().get(node.inputs[0])
    if before is None or isinstance(before.op, Generic | View):
        return None  # on plain data TVM's kernel, joined with its neighbours, spares a conversion
    conv = Conv2d(shape[0], shape[1], shape[2], shape[3], shape[1], (1, 1), groups=shape[1])
    constants = {
        "weight": node.constants["scale"].astype(np.float32).reshape(-1, 1, 1, 1),
        "bias": node.constants["shift"].astype(np.float32),
    }
    return _replace(network, index, replace(node, op=conv, constants=constants))


def _lone_pad(network: Network, index: int) -> Network | None:
    """A `ZeroPad` that found no window is left to TVM."""
    node = network.nodes[index]
    return _replace(network, index, replace(node, op=Generic())) if isinstance(node.op, ZeroPad) else None


def _without_zero_columns(node: Node, gpu: Gpu, precision: Precision, tuned: TunedSchedules | None) -> Node:
    """A convolution whose weight is zero in the same columns of every filter reduces over the others only, if it pays.

    A reduction over a list of columns gathers single channels where the dense one reads vectors of four, so few zero
    columns cost more than they save: what was measured decides, else the cost model, for a convolution and its shortcut
    separately.
    """
    if not isinstance(node.op, Conv2d):
        return node
    op = node.op
    options = column_options(node)
    if len(options) == 1:
        return node
    measured = tuned.measured_us(options) if tuned is not None else None
    if measured is not None:
        return replace(node, op=min(options, key=measured.__getitem__))
    cost = {option: _predicted_us(option, gpu, precision) for option in options}
    best = min(options, key=cost.__getitem__)
    return replace(node, op=best) if cost[best] <= (1 - MIN_SAVING) * cost[op] else node


def _predicted_us(op: Operator, gpu: Gpu, precision: Precision) -> float:
    return predict_us(op, default_schedule(op, gpu, precision), gpu, precision)


def column_options(node: Node) -> list[Conv2d]:
    """The ways to compute a convolution: all columns (first), or the kept ones only, of itself and of its shortcut."""
    assert isinstance(node.op, Conv2d)
    op = replace(node.op, columns=None)
    if op.shortcut is not None:
        op = replace(op, shortcut=replace(op.shortcut, columns=None))
    compact = _kept_columns(op, node.constants["weight"])
    options = [op] if compact is None else [op, replace(op, columns=compact)]
    if op.shortcut is not None:
        kept = _kept_columns(op.shortcut, node.constants["shortcut_weight"])
        if kept is not None:
            shortcut = replace(op.shortcut, columns=kept)
            options += [replace(option, shortcut=shortcut) for option in options]
    return options


def _kept_columns(op: Conv2d, weight: Array) -> tuple[int, ...] | None:
    """The columns in which any filter is not zero; None if those are all, or none."""
    if op.groups != 1:
        return None
    kept = np.flatnonzero(weight.reshape(weight.shape[0], -1).any(axis=0))
    return tuple(int(column) for column in kept) if 0 < len(kept) < weight[0].size else None


_PHASES: tuple[tuple[Rule, ...], ...] = (
    (_self_gate, _pad_into_window, _before_interleaving, _affine_into_weights),
    (_affine_is_depthwise, _lone_pad),
    (_shortcut, _residual, _activation),
)


def _settle(node: Node, network: Network) -> Node:
    """Give what no rule took up its final operator."""
    if isinstance(node.op, Activate):
        shape = network.tensors[node.inputs[0]].shape
        if len(shape) == 4:
            copy = Elementwise("copy", shape[0], shape[1], shape[2], shape[3], activation=node.op.activation)
            return replace(node, op=copy)
        return replace(node, op=Generic())
    return replace(node, op=Generic()) if isinstance(node.op, ChannelAffine) else node


def flatten_into_dense(node: Node, flattened: Tensor) -> Node:
    """A dense layer that reads a flattened C4 tensor as it lies in memory, its weight permuted to match.

    Args:
        node: a `Dense` node on plain `[N, C * H * W]`.
        flattened: the tensor `[N, C, H, W]` before the flattening; in memory `[N, C / 4, H, W, 4]`.

    Returns:
        The node on `blocks(C) * H * W * 4` features; the weight of lanes beyond the last channel is zero.
    """
    assert isinstance(node.op, Dense)
    _, channels, height, width = flattened.shape
    weight = node.constants["weight"]
    grown = np.zeros((weight.shape[0], blocks(channels) * 4, height, width), dtype=weight.dtype)
    grown[:, :channels] = weight.reshape(-1, channels, height, width)
    laid_out = grown.reshape(weight.shape[0], blocks(channels), 4, height, width).transpose(0, 1, 3, 4, 2)
    packed = np.ascontiguousarray(laid_out.reshape(weight.shape[0], -1))
    op = replace(node.op, in_features=packed.shape[1], input_is_c4=True)
    bias = node.constants.get("bias", zeros(weight.shape[0]))
    return replace(node, op=op, constants={"weight": packed, "bias": bias}, inputs=(flattened.name, *node.inputs[1:]))
