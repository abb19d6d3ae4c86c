"""Where each tensor lies in channel blocks of four (C4) and where plain, with as few conversions as possible."""

from __future__ import annotations

from dataclasses import replace

from tvm_build.fuse import flatten_into_dense
from tvm_build.network import Generic, Layout, Network, Node, Tensor, View
from tvm_build.ops import (
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Pack,
    Pool2d,
    Unpack,
    WinogradInput,
    WinogradOutput,
)
from tvm_build.precision import FLOAT32, Precision

_C4_OPERATORS = (
    Conv2d | Pool2d | GlobalAverage | Elementwise | ConcatChannels | Interleave | WinogradInput | WinogradOutput
)


def assign_layouts(network: Network, precision: Precision = FLOAT32) -> Network:
    """Give every tensor its producer's layout, and insert `Pack` and `Unpack` where a reader wants the other one.

    C4 tensors are stored as `precision` says, plain ones stay as they are; conversions go between both. A tensor is
    converted at most once. Cheap operators between plain neighbours stay plain, as `Generic`.
    """
    network = _plain_islands(network)
    return _Converter(network, precision).run()


def _plain_islands(network: Network) -> Network:
    """Elementwise operators and concatenations that read nothing in C4 are cheaper as TVM's kernels than converted."""
    c4: set[str] = set()
    nodes: list[Node] = []
    for node in network.nodes:
        if isinstance(node.op, Elementwise | ConcatChannels) and node.source and not c4.intersection(node.inputs):
            nodes.append(replace(node, op=Generic()))
            continue
        if isinstance(node.op, _C4_OPERATORS):
            c4.update(node.outputs)
        nodes.append(node)
    return network.with_nodes(nodes)


class _Converter:
    """Walks the nodes once and keeps, per tensor, the name of its version in each layout."""

    def __init__(self, network: Network, precision: Precision) -> None:
        self.network = network
        self.precision = precision
        self.tensors = dict(network.tensors)
        self.nodes: list[Node] = []
        self.version: dict[tuple[str, Layout], str] = {}
        self.views: dict[str, str] = {}

    def run(self) -> Network:
        for port in self.network.inputs:
            self.version[port.tensor, "plain"] = port.tensor
        for node in self.network.nodes:
            self._node(node)
        outputs = tuple(
            replace(port, tensor=self._in_layout(port.tensor, "plain", f"output:{port.name}"))
            for port in self.network.outputs
        )
        # A View whose only reader was a Dense that now reads the tensor behind it is dead, and so is its Unpack.
        laid_out = replace(self.network, tensors=self.tensors, nodes=tuple(self.nodes), outputs=outputs)
        laid_out = laid_out.without_dead_nodes()
        laid_out.check()
        return laid_out

    def _node(self, node: Node) -> None:
        if isinstance(node.op, Dense) and not node.op.input_is_c4 and self._read_c4_as_it_lies(node):
            return
        wanted: Layout = "plain"
        if isinstance(node.op, _C4_OPERATORS) or (isinstance(node.op, Dense) and node.op.input_is_c4):
            wanted = "c4"
        written: Layout = "c4" if isinstance(node.op, _C4_OPERATORS) else "plain"
        if isinstance(node.op, View):
            self.views[node.output] = node.inputs[0]
        inputs = tuple(self._in_layout(name, wanted, node.layer) for name in node.inputs)
        self._emit(replace(node, inputs=inputs), written)

    def _emit(self, node: Node, layout: Layout) -> None:
        for name in node.outputs:
            dtype = self.precision.storage if layout == "c4" else self.tensors[name].dtype
            self.tensors[name] = replace(self.tensors[name], dtype=dtype, layout=layout)
            self.version[name, layout] = name
        self.nodes.append(node)

    def _read_c4_as_it_lies(self, node: Node) -> bool:
        """Fold the flattening of a C4 tensor into the dense layer's weight, so that nothing is unpacked."""
        before = self.views.get(node.inputs[0])
        if before is None or (before, "c4") not in self.version:
            return False
        shape = self.tensors[before].shape
        if len(shape) != 4 or self.network.tensors[node.inputs[0]].shape[0] != shape[0]:
            return False
        self._emit(flatten_into_dense(node, self.tensors[self.version[before, "c4"]]), "plain")
        return True

    def _in_layout(self, name: str, layout: Layout, layer: str) -> str:
        if (name, layout) in self.version:
            return self.version[name, layout]
        tensor = self.tensors[name]
        batch, channels, height, width = tensor.shape
        dtype = self.precision.storage if layout == "c4" else "float32"
        converted = Tensor(f"{name}.{layout}", tensor.shape, dtype, layout)
        op = Pack(batch, channels, height, width) if layout == "c4" else Unpack(batch, channels, height, width)
        self.tensors[converted.name] = converted
        self.version[name, layout] = converted.name
        self.nodes.append(Node(layer, op, (name,), (converted.name,)))
        return converted.name
