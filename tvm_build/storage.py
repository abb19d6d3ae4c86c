"""Which C4 tensors lie in images and which in buffers, and which of the latter are read as images.

On an Adreno, reads of images have a cache of their own. A tensor has three ways to them:

- an image of its own shape: no predicates beside it, for it answers outside of itself with zeros. But images share
  memory only with images whose rows are equally wide, they have a largest width and height, and a 1x1 convolution over
  buffers may cut a whole image into tiles as if it were one row;
- a part of the arena that is read through an image of one dimension (a view): predicates as for a pointer, memory
  shared with everything else. `image1d_buffer_t` is in OpenCL since 1.2, and what other engines take on Adreno where
  memory counts;
- a pointer, where the cache has enough to do with weights.

Each tensor is tried both in an image and in the arena, each launch with views and without, and the sum of what the cost
model predicts for the launches that touch it decides. Then as many of the images are kept as memory allows, those that
save most first; the others become views. The weights' place is part of a launch's schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule, supports
from tvm_build.memory_plan import ImageRow, largest_live_bytes, least_bytes, lives, plan_memory
from tvm_build.network import Generic, Network, Node, Tensor, View
from tvm_build.ops import Dense, Operator, blocks, with_images
from tvm_build.precision import FLOAT32, Precision

MEMORY_BOUND = 1.3
"""Planned activations over the most that is alive at one launch: images never take more."""

_SWEEPS = 2


def assign_memory(network: Network, gpu: Gpu, precision: Precision = FLOAT32, bound: float = MEMORY_BOUND) -> Network:
    """Give every operator the roles of its tensors that lie in images, or that it reads as images.

    With `gpu.memory` "image", every tensor that is small enough is read as an image, of one kind or the other.

    Args:
        network: layouts are assigned.
        gpu: what it is compiled for.
        precision: of the kernels.
        bound: planned activations over the most that is alive at one launch, above which no image is added. Which
            launches TVM's operators become is not known yet, so this is an estimate where a network has any.

    Ensures: all operators that touch a tensor agree on where it lies; inputs and outputs of the network lie in buffers.
    """
    network = network.with_nodes(_with_input_width(network, node) for node in network.nodes)
    if gpu.memory == "buffer" or (gpu.memory == "auto" and gpu.kind == "cpu"):
        return network
    return _Storage(network, gpu, precision, bound).assigned()


def why_no_image(tensor: Tensor, gpu: Gpu) -> str | None:
    """Why a C4 tensor cannot lie in an image, or None if it can."""
    width, lines = _texels(tensor)
    if max(lines, width) <= gpu.image_max:
        return None
    return f"{width} x {lines} texels, {gpu.name} takes {gpu.image_max}"


def _texels(tensor: Tensor) -> tuple[int, int]:
    """Width and height of the image that holds a C4 tensor."""
    batch, channels, height, width = tensor.shape
    return width, batch * blocks(channels) * height


class _Storage:
    """Places for the tensors of one network, and what the cost model predicts for them."""

    def __init__(self, network: Network, gpu: Gpu, precision: Precision, bound: float) -> None:
        self.network = network
        self.gpu = gpu
        self.precision = precision
        c4 = [tensor for tensor in network.tensors.values() if tensor.layout == "c4"]
        self.able = [tensor.name for tensor in c4 if why_no_image(tensor, gpu) is None]
        long = {tensor.name: _texels(tensor)[0] * _texels(tensor)[1] for tensor in c4}
        self.viewable = {name for name, texels in long.items() if texels <= gpu.image_buffer_max}
        self.touching: dict[str, list[Node]] = {name: [] for name in self.able}
        for node in network.nodes:
            for name in {*node.inputs, *node.outputs} & set(self.touching):
                self.touching[name].append(node)
        self.predicted: dict[Operator, float] = {}
        self.memory = _MemoryNeed(network, bound)

    def assigned(self) -> Network:
        """The network with the best places that memory allows."""
        wanted = set(self.able) if self.gpu.memory == "image" else self.cheapest()
        savings = {name: self.saving(name, wanted) for name in wanted}
        by_saving = sorted(wanted, key=lambda name: (-savings[name], name))
        images = self.within_memory(by_saving, frozenset())
        return self.network.with_nodes(self.placed(node, images) for node in self.network.nodes)

    def cheapest(self) -> set[str]:
        """Images from the better of two starts, all tensors in images or none, improved tensor by tensor."""
        results = []
        for start in (set(self.able), set[str]()):
            images = set(start)
            for _ in range(_SWEEPS):
                before = set(images)
                for name in self.able:
                    # Ties go to the arena, whose memory is shared better.
                    if self.saving(name, images) > 0:
                        images.add(name)
                    else:
                        images.discard(name)
                if images == before:
                    break
            results.append(images)
        return min(results, key=lambda images: self.cost(self.network.nodes, images))

    def saving(self, name: str, images: Iterable[str]) -> float:
        """Predicted microseconds that an image saves for the tensor `name`, where `images` have the others."""
        others = set(images) - {name}
        nodes = self.touching[name]
        return self.cost(nodes, others) - self.cost(nodes, others | {name})

    def cost(self, nodes: Iterable[Node], images: Iterable[str]) -> float:
        """Predicted microseconds of the launches with kernels of ours."""
        images = frozenset(images)
        ops = (self.placed(node, images).op for node in nodes)
        return sum(self.predict_us(op) for op in ops if isinstance(op, Operator) and supports(op))

    def placed(self, node: Node, images: frozenset[str]) -> Node:
        """`node` with those of its tensors in images, and the cheapest way to read the others."""
        if isinstance(node.op, Generic | View) or not isinstance(node.op, Operator):
            return node
        op = node.op
        found = roles(node)
        in_images = [role for role, name in found.items() if name in images]
        # All or none, so that a tensor that a launch reads twice is read through one memory object.
        views = [
            role for role, name in found.items() if role != "output" and name in self.viewable and name not in images
        ]
        options = [with_images(op, in_images, views)] if views else []
        if not views or self.gpu.memory != "image":
            options.append(with_images(op, in_images))
        if len(options) == 1 or not supports(op):
            return replace(node, op=options[-1])
        return replace(node, op=min(options, key=self.predict_us))

    def predict_us(self, op: Operator) -> float:
        """Predicted microseconds of one launch with its default schedule."""
        if op not in self.predicted:
            schedule = default_schedule(op, self.gpu, self.precision)
            self.predicted[op] = predict_us(op, schedule, self.gpu, self.precision)
        return self.predicted[op]

    def within_memory(self, wanted: list[str], kept: frozenset[str]) -> frozenset[str]:
        """`kept` and as many of `wanted`, the first ones first, as memory allows."""
        if self.memory.allows(kept.union(wanted)):
            return kept.union(wanted)
        if len(wanted) <= 1:
            return kept
        half = len(wanted) // 2
        return self.within_memory(wanted[half:], self.within_memory(wanted[:half], kept))


class _MemoryNeed:
    """What a network's activations take, by which of them lie in images.

    Launches are not known yet. A node of ours becomes one. A run of TVM's counts as one, too: what it keeps to itself
    may never be stored.
    """

    def __init__(self, network: Network, bound: float) -> None:
        self.bound = bound
        homes: dict[str, str] = {}
        for node in network.nodes:
            if isinstance(node.op, View):
                homes[node.output] = homes.get(node.inputs[0], node.inputs[0])

        def home(name: str) -> str:
            return homes.get(name, name)

        self.tensors = network.tensors
        self.inputs = [home(port.tensor) for port in network.inputs]
        self.outputs = [home(port.tensor) for port in network.outputs]
        runs = [run for run in network.runs() if not all(isinstance(node.op, View) for node in run)]
        read_by: dict[str, set[int]] = {name: {len(runs)} for name in self.outputs}
        for number, run in enumerate(runs):
            for node in run:
                for name in node.inputs:
                    read_by.setdefault(home(name), set()).add(number)
        self.accesses = []
        for number, run in enumerate(runs):
            written = {home(name) for node in run if not isinstance(node.op, View) for name in node.outputs}
            own = {name for name in written if read_by.get(name, set()) <= {number}}
            touched = {home(name) for node in run for name in (*node.inputs, *node.outputs)}
            self.accesses.append(sorted(touched - own))
        names = {*self.inputs, *self.outputs, *(name for access in self.accesses for name in access)}
        self.sizes: Mapping[str, int] = {name: network.tensors[name].size_bytes for name in names}

    def allows(self, images: Iterable[str]) -> bool:
        """Whether all activations then take at most `bound` times what is alive at one launch."""
        rows = {name: self._row(self.tensors[name]) for name in images}
        alive = lives(self.sizes, self.accesses, self.inputs, self.outputs, rows)
        bound = self.bound * largest_live_bytes(alive)
        # The first is quick to tell, and refuses most.
        return least_bytes(alive) <= bound and plan_memory(alive).total_bytes <= bound

    @staticmethod
    def _row(tensor: Tensor) -> ImageRow:
        return ImageRow(tensor.shape[3], "rgba_half" if tensor.dtype == "float16" else "rgba_float")


def roles(node: Node) -> dict[str, str]:
    """The tensor of each role of a node's operator."""
    has_residual = getattr(node.op, "has_residual", False)
    inputs = node.inputs[:-1] if has_residual else node.inputs
    found = {f"input{number}": name for number, name in enumerate(inputs)}
    if has_residual:
        found["residual"] = node.inputs[-1]
    return found | {"output": node.output}


def _with_input_width(network: Network, node: Node) -> Node:
    if not (isinstance(node.op, Dense) and node.op.input_is_c4):
        return node
    return replace(node, op=replace(node.op, input_width=network.tensors[node.inputs[0]].shape[3]))


def where_it_lies(op: Operator, schedule: Any) -> str:
    """What of a launch lies elsewhere than in buffers, or is read in another way, in words; empty if nothing is."""
    images = list(op.images)
    constants = []
    for name in ("weights", "tables"):
        memory = getattr(schedule, name, "buffer")
        if memory == "image":
            images.append(name)
        elif memory == "constant":
            constants.append(name)
    kinds = {"images": images, "images of buffers": op.views, "constant": constants}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
