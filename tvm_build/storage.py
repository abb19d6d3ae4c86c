"""Which C4 tensors lie in images and which in buffers.

On an Adreno, reads of images have a cache of their own, need no predicates beside the image and answer outside of it
with zeros; but an image has a largest width and height, and a 1x1 convolution over buffers may cut a whole image into
tiles as if it were one row. So each tensor is tried both ways, and the sum of what the cost model predicts for the
launches that touch it decides. The weights' place is part of a launch's schedule.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule, supports
from tvm_build.network import Generic, Network, Node, Tensor, View
from tvm_build.ops import Dense, Operator, blocks, with_images
from tvm_build.precision import FLOAT32, Precision

_SWEEPS = 2


def assign_memory(network: Network, gpu: Gpu, precision: Precision = FLOAT32) -> Network:
    """Give every operator the roles of its tensors that lie in images.

    Requires: layouts are assigned.
    Ensures: all operators that touch a tensor agree on where it lies; inputs and outputs of the network lie in buffers.
    """
    network = network.with_nodes(_with_input_width(network, node) for node in network.nodes)
    c4 = [tensor for tensor in network.tensors.values() if tensor.layout == "c4"]
    able = [tensor.name for tensor in c4 if why_no_image(tensor, gpu) is None]
    if gpu.memory == "buffer" or (gpu.memory == "auto" and gpu.kind == "cpu"):
        return network
    chosen = set(able) if gpu.memory == "image" else _cheapest(network, able, gpu, precision)
    return network.with_nodes(_in_images(node, chosen) for node in network.nodes)


def why_no_image(tensor: Tensor, gpu: Gpu) -> str | None:
    """Why a C4 tensor cannot lie in an image, or None if it can."""
    batch, channels, height, width = tensor.shape
    lines = batch * blocks(channels) * height
    if max(lines, width) <= gpu.image_max:
        return None
    return f"{width} x {lines} texels, {gpu.name} takes {gpu.image_max}"


def _cheapest(network: Network, able: Iterable[str], gpu: Gpu, precision: Precision) -> set[str]:
    """Images from the better of two starts, all tensors in images or none, improved tensor by tensor."""
    touching: dict[str, list[Node]] = {name: [] for name in able}
    for node in network.nodes:
        for name in {*node.inputs, *node.outputs} & set(touching):
            touching[name].append(node)
    predicted: dict[Operator, float] = {}

    def cost(nodes: Iterable[Node], images: set[str]) -> float:
        total = 0.0
        for node in nodes:
            op = _in_images(node, images).op
            if isinstance(op, Operator) and supports(op):
                if op not in predicted:
                    predicted[op] = predict_us(op, default_schedule(op, gpu, precision), gpu, precision)
                total += predicted[op]
        return total

    results = []
    for start in (set(touching), set[str]()):
        images = set(start)
        for _ in range(_SWEEPS):
            before = set(images)
            for name, nodes in touching.items():
                # Ties go to images: the model does not know what else the other cache is good for.
                if cost(nodes, images | {name}) <= cost(nodes, images - {name}):
                    images.add(name)
                else:
                    images.discard(name)
            if images == before:
                break
        results.append(images)
    return min(results, key=lambda images: cost(network.nodes, images))


def _in_images(node: Node, chosen: set[str]) -> Node:
    if isinstance(node.op, Generic | View) or not isinstance(node.op, Operator):
        return node
    return replace(node, op=with_images(node.op, (role for role, name in roles(node).items() if name in chosen)))


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
    """What of a launch lies elsewhere than in buffers, in words; empty if nothing does."""
    images = list(op.images)
    constants = []
    for name in ("weights", "tables"):
        memory = getattr(schedule, name, "buffer")
        if memory == "image":
            images.append(name)
        elif memory == "constant":
            constants.append(name)
    words = [f"images: {', '.join(images)}"] if images else []
    return "; ".join(words + ([f"constant: {', '.join(constants)}"] if constants else []))
