"""Parameters, multiply-accumulates and activations of a network, per layer and in total."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from structadmm.graph.atoms import convolution_groups
from structadmm.graph.ir import Graph, Node, StateRef, leaves
from structadmm.graph.operators import ROLES


@dataclass(frozen=True)
class LayerCount:
    """One convolution or linear.

    Attributes:
        name: the layer.
        node: the operator; a layer that is used twice has two.
        parameter: its weight.
        kind: `conv`, `conv_transpose` or `linear`.
        shape: the weight's shape.
        filters: output channels.
        kept_filters: output channels with a weight that is not zero.
        columns: positions of a filter, `I / groups * kh * kw`.
        kept_columns: the most positions that any group of the layer uses.
        params: weights in kept filters and kept columns.
        macs: multiply-accumulates of those, for one sample.
        activations: output elements, for one sample.
    """

    name: str
    node: str
    parameter: str
    kind: str
    shape: tuple[int, ...]
    filters: int
    kept_filters: int
    columns: int
    kept_columns: int
    params: int
    macs: int
    activations: int


@dataclass(frozen=True)
class Counts:
    """Totals over a network.

    Attributes:
        conv_params: weights of convolutions, as the paper counts them: kept filters times kept columns.
        params: all parameters that are read; weights count as in `conv_params`, everything else in full.
        macs: multiply-accumulates of convolutions and linears for one sample.
        activations: output elements of convolutions and linears for one sample.
        layers: one entry per convolution and linear, in order of execution.
    """

    conv_params: int
    params: int
    macs: int
    activations: int
    layers: tuple[LayerCount, ...]


def count(graph: Graph, state: Mapping[str, Tensor] | None = None) -> Counts:
    """Count a network.

    Args:
        graph: the network.
        state: its tensors: zero filters and zero columns are then not counted. None: everything is.
    """
    layers = []
    weights: dict[str, int] = {}
    convolutions: set[str] = set()
    for node in graph.nodes:
        role = ROLES.get(node.op)
        if role in ("conv", "conv_transpose", "linear") and isinstance(node.args[1], StateRef):
            layer = _layer(node, graph, state)
            layers.append(layer)
            weights[layer.parameter] = layer.params
            if role != "linear":
                convolutions.add(layer.parameter)
    unread = set(unread_parameters(graph))
    params = sum(
        weights.get(name, math.prod(entry.shape))
        for name, entry in graph.state.items()
        if entry.kind == "parameter" and entry.alias_of is None and name not in unread
    )
    return Counts(
        sum(weights[name] for name in convolutions),
        params,
        sum(layer.macs for layer in layers),
        sum(layer.activations for layer in layers),
        tuple(layers),
    )


def unread_parameters(graph: Graph) -> list[str]:
    """Names of the parameters that nothing on the way to an output reads."""
    read = {ref.name for node in graph.nodes for ref in leaves(node, StateRef)}
    return [
        name
        for name, entry in graph.state.items()
        if entry.kind == "parameter" and (entry.alias_of or name) not in read
    ]


def filter_matrices(node: Node, weight: Tensor) -> Tensor:
    """A weight as one GEMM matrix per group, [groups, filters / groups, columns]."""
    if ROLES[node.op] == "linear":
        return weight.unsqueeze(0)
    groups = convolution_groups(node)
    if ROLES[node.op] == "conv_transpose":
        grouped = weight.reshape(groups, -1, *weight.shape[1:])  # [g, I/g, O/g, kh, kw]
        return grouped.transpose(1, 2).flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _layer(node: Node, graph: Graph, state: Mapping[str, Tensor] | None) -> LayerCount:
    reference = node.args[1]
    assert isinstance(reference, StateRef)
    shape = graph.state[reference.name].shape
    if state is None:
        used = filter_matrices(node, torch.ones(shape, dtype=torch.bool))
    else:
        used = filter_matrices(node, state[reference.name].detach() != 0)
    groups, rows, columns = used.shape
    kept_rows, kept_columns = used.any(dim=2).sum(dim=1), used.any(dim=1).sum(dim=1)  # [groups]
    params = int((kept_rows * kept_columns).sum())
    elements = math.prod(node.shape) // (graph.batch or 1)
    filters = groups * rows
    # A transposed convolution multiplies once per input element and kernel position, the others per output element.
    if ROLES[node.op] == "conv_transpose":
        source = graph.by_name()[node.args[0].node].shape if hasattr(node.args[0], "node") else node.shape
        positions = math.prod(source) // (graph.batch or 1) // source[1]
    else:
        positions = elements // filters
    name = node.layer or reference.name.rpartition(".")[0] or node.name
    return LayerCount(
        name, node.name, reference.name, ROLES[node.op], shape, filters, int(kept_rows.sum()), columns,
        int(kept_columns.max()), params, params * positions, elements,
    )  # fmt: skip
