"""3x3 convolutions as Winograd's F(2, 3) or F(4, 3), where the cost model says that three launches cost less than one.

The larger tile saves more products and moves less data, but its matrices hold numbers from 1/24 to 8, and what is
stored in between then loses digits: two of float32's seven, which is allowed, and of half's three, which is not. So
tensors of halves get the smaller tile alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule
from tvm_build.kernels.winograd import transform_filters
from tvm_build.network import Network, Node, Tensor, zeros
from tvm_build.ops import Conv2d, Operator, WinogradInput, WinogradOutput, with_images
from tvm_build.precision import FLOAT32, Precision

if TYPE_CHECKING:
    from tvm_build.tuning.tuned import TunedSchedules

# What it must be predicted to save of the direct form's time: two launches more, whose time is mostly memory's, are
# predicted with less certainty than one convolution.
MIN_SAVING = 0.25
# With fewer tiles than a wave has work-items, the product's waves are filled from several of its small matrices. Other
# engines ask for as many on an Adreno.
MIN_TILES = 128


def use_winograd(
    network: Network, gpu: Gpu, precision: Precision = FLOAT32, tuned: TunedSchedules | None = None
) -> Network:
    """Replace convolutions by transform, product and transform back.

    A layer that `tuned` has measured stays as it is: what is predicted is not set against what was measured.

    Requires: convolutions are fused, layouts are not assigned.
    Ensures: every replaced node is three, of which the last has its output, residual and activation.
    """
    # The cost model of CPUs was fitted to direct convolutions alone.
    if gpu.kind == "cpu":
        return network
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    for node in network.nodes:
        measured = isinstance(node.op, Conv2d) and tuned is not None and tuned.measured_us([node.op]) is not None
        tile = best_tile(node.op, gpu, precision) if isinstance(node.op, Conv2d) and not measured else None
        if tile is None:
            nodes.append(node)
            continue
        made, new = split_node(node, tile)
        nodes += made
        tensors += new
    return network.with_nodes(nodes, *tensors)


def best_tile(op: Conv2d, gpu: Gpu, precision: Precision) -> int | None:
    """M of the F(m, 3) that is predicted to be fastest, or None for the direct form."""
    if not is_able(op):
        return None
    direct = _predicted(op, gpu, precision)
    costs = {
        tile: sum(_predicted(part, gpu, precision) for part in parts(op, tile))
        for tile in ((2, 4) if precision.storage == "float32" else (2,))
        if op.batch * -(-op.out_height // tile) * -(-op.out_width // tile) >= MIN_TILES
    }
    if not costs:
        return None
    tile = min(costs, key=lambda tile: costs[tile])
    return tile if costs[tile] < (1 - MIN_SAVING) * direct else None


def is_able(op: Conv2d) -> bool:
    """Whether a convolution has a Winograd form: 3x3, dense, every pixel, one input."""
    plain = op.kernel == (3, 3) and op.stride == (1, 1) and op.dilation == (1, 1) and op.groups == 1
    return plain and op.columns is None and op.shortcut is None and op.filter_sets == 1


def parts(op: Conv2d, tile: int) -> tuple[WinogradInput, Conv2d, WinogradOutput]:
    """The three operators that compute `op`."""
    out_size = (op.out_height, op.out_width)
    forward = WinogradInput(tile, op.batch, op.in_channels, op.in_height, op.in_width, *out_size, op.padding)
    elements = (tile + 2) ** 2
    product = Conv2d(
        op.batch * elements,
        op.in_channels,
        forward.tiles_y,
        forward.tiles_x,
        op.out_channels,
        (1, 1),
        filter_sets=elements,
    )
    back = WinogradOutput(tile, op.batch, op.out_channels, *out_size, op.activation, op.has_residual)
    return forward, product, back


def split_node(node: Node, tile: int) -> tuple[list[Node], list[Tensor]]:
    """The three nodes of a convolution, and the two tensors between them."""
    assert isinstance(node.op, Conv2d)
    forward, product, back = parts(node.op, tile)
    spatial = (product.batch, forward.tiles_y, forward.tiles_x)
    tiles = Tensor(f"{node.output}.tiles", (spatial[0], product.in_channels, *spatial[1:]))
    sums = Tensor(f"{node.output}.sums", (spatial[0], product.out_channels, *spatial[1:]))
    filters = {
        "weight": transform_filters(node.constants["weight"], tile),
        "bias": zeros(product.out_channels),
    }
    source, *residual = node.inputs
    return [
        Node(f"{node.layer}:tiles", forward, (source,), (tiles.name,)),
        Node(node.layer, product, (tiles.name,), (sums.name,), filters),
        Node(f"{node.layer}:sums", back, (sums.name, *residual), node.outputs, {"bias": node.constants["bias"]}),
    ], [tiles, sums]


def _predicted(op: Operator, gpu: Gpu, precision: Precision) -> float:
    """The better of all tensors in buffers and all in images: which it will be is decided later."""
    images = ["input0", "output", *(["residual"] if getattr(op, "has_residual", False) else [])]
    stored = [replace(op, images=())] + ([] if gpu.memory == "buffer" else [with_images(op, images)])
    return min(predict_us(each, default_schedule(each, gpu, precision), gpu, precision) for each in stored)
