"""What pruning needs to know of a traced network: its convolutions and its coupled channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from structadmm.graph import Coupling, Graph, find_coupling
from structadmm.graph.ir import StateRef


@dataclass(frozen=True)
class ConvLayer:
    """A convolution with a weight of its own.

    Attributes:
        name: of the layer; its weight's name without `.weight`.
        parameter: the weight's name in the state dict.
        shape: of the weight, [O, I / groups, kh, kw], or [I, O / groups, kh, kw] if transposed.
        groups: of the convolution.
        transposed: a transposed convolution.
        output_size: (height, width) of its output.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    groups: int
    transposed: bool
    output_size: tuple[int, ...]

    @property
    def params(self) -> int:
        """Weights, without the bias."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Network:
    """A network as pruning sees it.

    Attributes:
        layers: the convolutions in execution order.
        coupling: which filters and channels are one and the same.
        trainable: names of the parameters that are trained; buffers are not.
        fixed: names of the others.
    """

    layers: tuple[ConvLayer, ...]
    coupling: Coupling
    trainable: frozenset[str]
    fixed: frozenset[str] = frozenset()

    @staticmethod
    def of(graph: Graph, fixed: Collection[str] = ()) -> Network:
        """Analyse a traced network.

        Args:
            graph: of it.
            fixed: names of parameters that are not trained (`requires_grad` is False).
        """
        parameters = frozenset(name for name, entry in graph.state.items() if entry.kind == "parameter")
        return Network(conv_layers(graph), find_coupling(graph), parameters - frozenset(fixed), frozenset(fixed))


def layer_name(parameter: str) -> str:
    """What people call the layer that owns a parameter."""
    return parameter.removesuffix(".weight")


def conv_layers(graph: Graph) -> tuple[ConvLayer, ...]:
    """Each convolution weight of `graph`, once, in the order of its first use."""
    found: dict[str, ConvLayer] = {}
    for node in graph.nodes:
        if not node.op.startswith(("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.conv_transpose")):
            continue
        weight = node.args[1]
        if not isinstance(weight, StateRef) or weight.name in found:
            continue
        groups = node.args[6] if len(node.args) > 6 else (node.kwargs or {}).get("groups", 1)
        found[weight.name] = ConvLayer(
            name=layer_name(weight.name),
            parameter=weight.name,
            shape=graph.state[weight.name].shape,
            groups=groups,
            transposed=node.op.startswith("aten.conv_transpose"),
            output_size=node.shape[2:],
        )
    return tuple(found.values())


def kept_filters_and_columns(layer: ConvLayer, masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """Filters and columns of `layer` with anything left in them; what a compacted kernel computes is their product.

    The filters of a transposed convolution are its second axis, its columns all the rest.
    """
    axis = 1 if layer.transposed else 0
    mask = masks.get(layer.parameter)
    if mask is None:
        return layer.shape[axis], layer.params // layer.shape[axis]
    rows = mask.movedim(axis, 0).flatten(1)
    return int(rows.any(dim=1).sum()), int(rows.any(dim=0).sum())
