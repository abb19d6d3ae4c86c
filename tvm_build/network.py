"""The compiler's own description of a network: tensors, and nodes in the order they run.

It lies between Relax and the kernels. A node is an operator that has a kernel of ours, or `Generic`: Relax bindings
that TVM lowers by itself. Every node keeps the Relax bindings it stands for (`source`), so that a node whose operator
finds no kernel can fall back to TVM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import InvariantError
from tvm_build.ops import Activation, Operator, blocks

Layout = Literal["plain", "c4"]
ITEM_BYTES = {"float32": 4, "float16": 2, "int32": 4, "int64": 8, "bool": 1, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Tensor:
    """An activation: its logical NCHW (or other) shape, and how its elements lie in memory."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: Layout = "plain"

    @property
    def elements(self) -> int:
        """Values of the logical tensor."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in memory, the unused lanes of the last channel block included."""
        if self.layout == "c4":
            batch, channels, height, width = self.shape
            return batch * blocks(channels) * 4 * height * width * ITEM_BYTES[self.dtype]
        return self.elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Generic:
    """Whatever the node's `source` bindings compute, by TVM's operator library and its generic GPU schedule."""


@dataclass(frozen=True)
class View:
    """The same elements under another shape: no work, no memory of its own. Plain layout only."""


@dataclass(frozen=True)
class Activate:
    """An activation that no other operator has taken up yet."""

    activation: Activation


@dataclass(frozen=True)
class ChannelAffine:
    """`x * scale + shift` along axis 1, with constants "scale" and "shift" (float64 `[C]`): BatchNorm and biases."""


@dataclass(frozen=True)
class ZeroPad:
    """Zeros around H and W: (top, left, bottom, right)."""

    padding: tuple[int, int, int, int]


NodeOperator = Operator | Generic | View | Activate | ChannelAffine | ZeroPad
Array = NDArray[Any]


@dataclass(frozen=True)
class Node:
    """One step of the network.

    Attributes:
        layer: the source network's name for it.
        op: what it computes.
        inputs: tensor names, in the operator's order (a residual last).
        outputs: tensor names; one, except for some `Generic` nodes.
        constants: arrays by role ("weight", "bias", "scale", "shift").
        source: Relax bindings that compute `outputs` from `inputs`.
    """

    layer: str
    op: NodeOperator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array] = field(default_factory=dict)
    source: tuple[Any, ...] = ()

    @property
    def output(self) -> str:
        """The only output."""
        (name,) = self.outputs
        return name


@dataclass(frozen=True)
class Port:
    """A network input or output: its public name and the tensor that holds it."""

    name: str
    tensor: str


@dataclass(frozen=True)
class Network:
    """Nodes in an order in which every tensor is written before it is read.

    Attributes:
        tensors: by name, those of `inputs` included.
        nodes: what to compute, in order.
        inputs: what the caller gives.
        outputs: what the caller gets; always plain.
        variables: the tensor that each Relax variable in a node's `source` stands for.
        functions: TIR functions that `source` bindings call, by name.
    """

    tensors: Mapping[str, Tensor]
    nodes: tuple[Node, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    variables: Mapping[Any, str] = field(default_factory=dict)
    functions: Mapping[str, Any] = field(default_factory=dict)

    def with_nodes(self, nodes: Iterable[Node], *new: Tensor) -> Network:
        """This network with other nodes, and with `new` tensors added or replaced."""
        tensors = {**self.tensors, **{tensor.name: tensor for tensor in new}}
        return replace(self, nodes=tuple(nodes), tensors=tensors)

    def runs(self) -> list[list[Node]]:
        """Nodes with kernels of ours one by one, neighbouring `Generic` and `View` nodes together."""
        runs: list[list[Node]] = []
        for node in self.nodes:
            shared = isinstance(node.op, Generic | View)
            if shared and runs and isinstance(runs[-1][0].op, Generic | View):
                runs[-1].append(node)
            else:
                runs.append([node])
        return runs

    def uses(self) -> Counter[str]:
        """How often each tensor is read, being an output of the network counted as a read."""
        counts = Counter(name for node in self.nodes for name in node.inputs)
        counts.update(port.tensor for port in self.outputs)
        return counts

    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor; network inputs have none."""
        return {name: node for node in self.nodes for name in node.outputs}

    def check(self) -> None:
        """Raise InvariantError unless every tensor is written once, and before it is read."""
        written = {port.tensor for port in self.inputs}
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in written]
            if missing:
                raise InvariantError(f"{node.layer}: reads {missing} before anything wrote it")
            again = [name for name in node.outputs if name in written]
            if again:
                raise InvariantError(f"{node.layer}: writes {again} a second time")
            written.update(node.outputs)
        for port in self.outputs:
            if port.tensor not in written:
                raise InvariantError(f"the output {port.name} is never written")

    def without_dead_nodes(self) -> Network:
        """This network without the nodes whose outputs nobody reads."""
        needed = {port.tensor for port in self.outputs}
        kept: list[Node] = []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        return self.with_nodes(reversed(kept))


def zeros(length: int) -> Array:
    """A bias of nothing."""
    return np.zeros(length, dtype=np.float32)
