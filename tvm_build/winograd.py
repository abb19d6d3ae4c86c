"""3x3 convolutions as Winograd's F(2, 3) or F(4, 3), where that was measured, or else is predicted, to be faster.

The larger tile saves more products and moves less data, but its matrices hold numbers from 1/24 to 8, and what is
stored in between then loses digits: two of float32's seven, which is allowed, and of half's three, which is not. So
tensors of halves get the smaller tile alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, isqrt
from typing import TypeVar

from tvm_build.cost import predict_us
from tvm_build.gpu import Gpu
from tvm_build.kernels import default_schedule
from tvm_build.kernels.winograd import transform_filters
from tvm_build.launch_names import SHORTCUT, SUMS, TILES
from tvm_build.network import Network, Node, Tensor, zeros
from tvm_build.ops import Conv2d, Operator, WinogradInput, WinogradOutput, with_images
from tvm_build.precision import FLOAT32, Precision
from tvm_build.storage import why_no_image
from tvm_build.tuning.tuned import MIN_GAIN, TunedSchedules

# What it must be predicted to save of the direct form's time: two launches more, whose time is mostly memory's, are
# predicted with less certainty than one convolution.
MIN_SAVING = 0.25
# With fewer tiles than a wave has work-items, the product's waves are filled from several of its small matrices. Other
# engines ask for as many on an Adreno.
MIN_TILES = 128
# A measurement may choose it for less: but with so few tiles, most of the time goes into reading the filters, and there
# are n * n of them for every 9.
MIN_TRIED_TILES = 4
DIRECT = "direct"


def use_winograd(
    network: Network, gpu: Gpu, precision: Precision = FLOAT32, tuned: TunedSchedules | None = None
) -> Network:
    """Replace convolutions by transform, product and transform back.

    What `tuned` has measured of a layer decides alone: a form that was not measured is not set against one that was.

    Requires: convolutions are fused, layouts are not assigned.
    Ensures: every replaced node is three, of which the last has its output, residual and activation, or four where it
        had a shortcut, whose result is then the residual.
    """
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    for node in network.nodes:
        tile = _chosen_tile(node.op, gpu, precision, tuned) if isinstance(node.op, Conv2d) else None
        if tile is None:
            nodes.append(node)
            continue
        made, new = split_node(node, tile)
        nodes += made
        tensors += new
    return network.with_nodes(nodes, *tensors)


def _chosen_tile(op: Conv2d, gpu: Gpu, precision: Precision, tuned: TunedSchedules | None) -> int | None:
    if tuned is None or tuned.measured_us([op]) is None:
        return best_tile(op, gpu, precision)
    return fastest_form(measured_forms_us(op, precision, tuned))


def measured_forms_us(op: Conv2d, precision: Precision, tuned: TunedSchedules) -> dict[int | None, float]:
    """Microseconds of each form that was measured to its end: m of an F(m, 3), None for the direct one."""
    forms: dict[int | None, tuple[Operator, ...]] = {None: (op,)}
    forms |= {tile: parts(op, tile).launches for tile in tiles_to_try(op, precision)}
    return tuned.forms_us(forms)


def fastest_form(times_us: Mapping[int | None, float]) -> int | None:
    """M of the F(m, 3) that compilation takes; None for the direct form, unless that is clearly slower."""
    bound = (1 - MIN_GAIN) * times_us.get(None, inf)
    fast = {tile: us for tile, us in times_us.items() if tile is not None and us < bound}
    return min(fast, key=fast.__getitem__, default=None)


def form_name(tile: int | None) -> str:
    """F(m, 3) in words, or the direct form."""
    return DIRECT if tile is None else f"Winograd F({tile}, 3)"


def form_of_launch(op: Operator) -> str:
    """The form that a launch is a part of, in words; empty for a layer in one launch."""
    match op:
        case WinogradInput() | WinogradOutput():
            return form_name(op.tile)
        case Conv2d() if op.filter_sets > 1:
            return form_name(isqrt(op.filter_sets) - 2)
        case _:
            return ""


def best_tile(op: Conv2d, gpu: Gpu, precision: Precision) -> int | None:
    """M of the F(m, 3) that is predicted to be fastest, or None for the direct form."""
    # The cost model of CPUs was fitted to direct convolutions alone.
    if gpu.kind == "cpu" or not is_able(op) or op.shortcut is not None:
        return None
    direct = _predicted(op, gpu, precision)
    costs = {
        tile: sum(_predicted(part, gpu, precision) for part in parts(op, tile).launches)
        for tile in _tiles(precision)
        if _tile_count(op, tile) >= MIN_TILES
    }
    if not costs:
        return None
    tile = min(costs, key=lambda tile: costs[tile])
    return tile if costs[tile] < (1 - MIN_SAVING) * direct else None


def tiles_to_try(op: Conv2d, precision: Precision) -> list[int]:
    """M of every F(m, 3) that is worth measuring: also of a layer that could leave out zero columns instead."""
    able = is_able(replace(op, columns=None))
    return [tile for tile in _tiles(precision) if able and _tile_count(op, tile) >= MIN_TRIED_TILES]


def _tiles(precision: Precision) -> tuple[int, ...]:
    return (2, 4) if precision.storage == "float32" else (2,)


def _tile_count(op: Conv2d, tile: int) -> int:
    return op.batch * -(-op.out_height // tile) * -(-op.out_width // tile)


def is_able(op: Conv2d) -> bool:
    """Whether a convolution has a Winograd form: 3x3, dense, every pixel."""
    plain = op.kernel == (3, 3) and op.stride == (1, 1) and op.dilation == (1, 1) and op.groups == 1
    return plain and op.columns is None and op.filter_sets == 1 and (op.shortcut is None or not op.has_residual)


@dataclass(frozen=True)
class Parts:
    """The operators that compute a convolution.

    Attributes:
        shortcut: its second convolution, whose result `back` takes as a residual; None if it has none.
        forward: image to tiles.
        product: the sums over input channels.
        back: tiles to image.
    """

    shortcut: Conv2d | None
    forward: WinogradInput
    product: Conv2d
    back: WinogradOutput

    @property
    def launches(self) -> tuple[Operator, ...]:
        """In the order in which they run."""
        first = () if self.shortcut is None else (self.shortcut,)
        return (*first, self.forward, self.product, self.back)

    @property
    def elements(self) -> tuple[int, int, int]:
        """Images, rows and columns of the tensors in between: a pixel is a tile's element."""
        return self.product.batch, self.forward.tiles_y, self.forward.tiles_x


def parts(op: Conv2d, tile: int) -> Parts:
    """The operators that compute `op` over all of its columns, all tensors in buffers."""
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
    has_residual = op.has_residual or op.shortcut is not None
    back = WinogradOutput(tile, op.batch, op.out_channels, *out_size, op.activation, has_residual)
    return Parts(None if op.shortcut is None else replace(op.shortcut, images=()), forward, product, back)


def placed_parts(op: Conv2d, tile: int, gpu: Gpu, precision: Precision) -> Parts:
    """The same with its tensors where `op` has them, and those in between where they are predicted to be best."""
    plain = parts(op, tile)
    in_images = set(op.images)
    # A shortcut's result is a tensor like the output.
    residual = "output" if plain.shortcut is not None else "residual"

    def placed(tiles: bool, sums: bool) -> Parts:
        return Parts(
            shortcut=plain.shortcut
            and _with(plain.shortcut, input0="input1" in in_images, output=residual in in_images),
            forward=_with(plain.forward, input0="input0" in in_images, output=tiles),
            product=_with(plain.product, input0=tiles, output=sums),
            back=_with(plain.back, input0=sums, output="output" in in_images, residual=residual in in_images),
        )

    def cost(found: Parts) -> float:
        return sum(predict_us(part, default_schedule(part, gpu, precision), gpu, precision) for part in found.launches)

    images, rows, columns = plain.elements
    largest = Tensor("elements", (images, max(op.in_channels, op.out_channels), rows, columns))
    if gpu.kind == "cpu" or gpu.memory == "buffer" or why_no_image(largest, gpu) is not None:
        return placed(False, False)
    return min((placed(tiles, sums) for tiles in (True, False) for sums in (True, False)), key=cost)


AnyOperator = TypeVar("AnyOperator", bound=Operator)


def _with(part: AnyOperator, **images: bool) -> AnyOperator:
    return with_images(part, [role for role, is_image in images.items() if is_image])  # type: ignore[return-value]


def split_node(node: Node, tile: int) -> tuple[list[Node], list[Tensor]]:
    """The nodes that compute a convolution, and the tensors between them."""
    assert isinstance(node.op, Conv2d)
    found = parts(node.op, tile)
    images, rows, columns = found.elements
    tiles = Tensor(f"{node.output}.tiles", (images, node.op.in_channels, rows, columns))
    sums = Tensor(f"{node.output}.sums", (images, node.op.out_channels, rows, columns))
    filters = {
        "weight": transform_filters(node.constants["weight"], tile),
        "bias": zeros(node.op.out_channels),
    }
    source, *rest = node.inputs
    nodes = [
        Node(f"{node.layer}{TILES}", found.forward, (source,), (tiles.name,)),
        Node(node.layer, found.product, (tiles.name,), (sums.name,), filters),
    ]
    tensors = [tiles, sums]
    if found.shortcut is not None:
        op = found.shortcut
        shortcut = Tensor(f"{node.output}.shortcut", (op.batch, op.out_channels, op.out_height, op.out_width))
        constants = {"weight": node.constants["shortcut_weight"], "bias": zeros(op.out_channels)}
        nodes.append(Node(f"{node.layer}{SHORTCUT}", op, tuple(rest), (shortcut.name,), constants))
        tensors.append(shortcut)
        rest = [shortcut.name]
    bias = {"bias": node.constants["bias"]}
    return [*nodes, Node(f"{node.layer}{SUMS}", found.back, (sums.name, *rest), node.outputs, bias)], tensors


def _predicted(op: Operator, gpu: Gpu, precision: Precision) -> float:
    """The better of all tensors in buffers and all in images: which it will be is decided later."""
    images = ["input0", "output", *(["residual"] if getattr(op, "has_residual", False) else [])]
    stored = [replace(op, images=())] + ([] if gpu.memory == "buffer" else [with_images(op, images)])
    return min(predict_us(each, default_schedule(each, gpu, precision), gpu, precision) for each in stored)
