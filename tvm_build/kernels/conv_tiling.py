"""How a convolution is cut into tiles, one per work-item, and where a tile lies in the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx

from tvm_build.kernels.body import Body, Expr, Grid, both, ceil_div, const, quarter
from tvm_build.kernels.stored import Line, Memory
from tvm_build.ops import Conv2d
from tvm_build.precision import FLOAT32, Precision

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ConvSchedule:
    """How a convolution is tiled.

    Attributes:
        pixels: neighbouring output pixels of a row per work-item.
        rows: output rows per work-item.
        vectors: accumulators per pixel.
        lanes: output channels per accumulator: 4, or 8 and 16 for CPUs with wide registers.
        split: work-items that share one tile's reduction.
        local: work-items of a group along the tiles of the image.
        local_channels: work-items of a group along the tiles of the channels.
        form: "sum": `acc += x0*w0 + x1*w1 + x2*w2 + x3*w3`; "chain": `acc = acc + x0*w0 + ...`, a multiply-add each.
        unroll_rows: write the kernel's rows out; otherwise they are a loop. Not of column-sparse kernels.
        gather: how a column-sparse kernel reads: "blocks" of four channels, or single "lanes". Not "lanes" of an image.
        weights: where the weights lie. Images hold vectors of four lanes. Constant memory is fast only where all
            work-items of a wave read the same address, so with `local_channels` 1 and `split` 1.
        tables: where offsets lie.
    """

    pixels: int = 4
    rows: int = 1
    vectors: int = 1
    lanes: int = 4
    split: int = 1
    local: int = 32
    local_channels: int = 1
    form: Literal["sum", "chain"] = "chain"
    unroll_rows: bool = True
    gather: Literal["blocks", "lanes"] = "blocks"
    weights: Memory = "buffer"
    tables: Memory = "buffer"

    @property
    def tile_channels(self) -> int:
        """Output channels per work-item."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of one convolution lie, and the types of its numbers."""

    op: Conv2d
    schedule: ConvSchedule
    precision: Precision = FLOAT32

    @property
    def accumulator(self) -> str:
        """Type of an accumulator: float32 whatever the products are."""
        return f"float32x{self.schedule.lanes}"

    @property
    def products(self) -> str:
        """Type of a product, and of a short sum of them."""
        return self.precision.computed(self.schedule.lanes)

    @property
    def stored_together(self) -> int:
        """Neighbouring pixels that leave in one store as wide as an accumulator, four channels of each."""
        op, schedule = self.op, self.schedule
        together = schedule.lanes // 4
        whole = schedule.pixels % together == 0 and op.out_width % together == 0
        plain = not {"output", "residual"} & {*op.images, *op.views} and self.precision.storage == "float32"
        return together if whole and plain and schedule.split == 1 else 1

    def input_rows(self, row: int, ky: Expr) -> tuple[int, int]:
        """The first and the last input row that kernel row `ky`, or any, reads for row `row` of any tile."""
        return self._reach(0, row, ky, (self.rows - 1) * self.schedule.rows)

    def input_columns(self, pixel: int, kx: Expr) -> tuple[int, int]:
        """The same for pixels of a row."""
        return self._reach(1, pixel, kx, (self.columns - 1) * self.schedule.pixels)

    def _reach(self, axis: int, position: int, tap: Expr, last_tile: int) -> tuple[int, int]:
        op = self.op
        first, last = (tap, tap) if isinstance(tap, int) else (0, op.kernel[axis] - 1)
        low = position * op.stride[axis] - op.padding[axis]
        return low + first * op.dilation[axis], low + last_tile * op.stride[axis] + last * op.dilation[axis]

    def rows_inside(self, ky: Expr | None) -> list[int]:
        """The tile's rows for which kernel row `ky` reads a row of the image in some tile; all if `ky` is not known.

        Where one tile takes in a whole side of the image, the others are padding always: they are left out, not
        multiplied by zero. Of a 3x3 kernel on 4x4 pixels that is up to three products in ten.
        """
        rows = range(self.schedule.rows)
        return [row for row in rows if ky is None or _meets(self.input_rows(row, ky), self.op.in_height)]

    def pixels_inside(self, kx: Expr) -> list[int]:
        """The same for the tile's pixels."""
        pixels = range(self.schedule.pixels)
        return [pixel for pixel in pixels if _meets(self.input_columns(pixel, kx), self.op.in_width)]

    @property
    def columns(self) -> int:
        """Tiles in a row of the image."""
        return ceil_div(self.op.out_width, self.schedule.pixels)

    @property
    def rows(self) -> int:
        """Tiles in a column of the image."""
        return ceil_div(self.op.out_height, self.schedule.rows)

    @property
    def count(self) -> int:
        """Tiles of all images."""
        return self.op.batch * self.rows * self.columns

    @property
    def channel_tiles(self) -> int:
        """Tiles along the output channels."""
        return ceil_div(self.op.out_channels, self.schedule.tile_channels)

    @property
    def grid(self) -> Grid:
        """Tiles of the image along x, of the channels along y, the split along z."""
        local = min(self.schedule.local, self.count)
        channels = min(self.schedule.local_channels, self.channel_tiles)
        groups = (ceil_div(self.count, local), ceil_div(self.channel_tiles, channels), 1)
        return Grid(groups, (local, channels, self.schedule.split))


def _meets(reach: tuple[int, int], extent: int) -> bool:
    return reach[1] >= 0 and reach[0] < extent


def weight_lanes(schedule: ConvSchedule, precision: Precision) -> int:
    """Numbers per access to the weights: of half, two vectors of four together are 128 bits."""
    pairs = precision.storage == "float16" and schedule.lanes == 4 and schedule.vectors % 2 == 0
    return 8 if pairs and schedule.weights != "image" else schedule.lanes


def weight_loads(tiling: Tiling) -> int:
    """Loads for the weight vectors of one reduction step."""
    return tiling.schedule.tile_channels // weight_lanes(tiling.schedule, tiling.precision)


def read_weights(body: Body, weights: Line, step: Expr, tiling: Tiling) -> list[Expr]:
    """The weight vectors of reduction step `step`, counted from `weights`, in the type of a product."""
    lanes, count = weight_lanes(tiling.schedule, tiling.precision), weight_loads(tiling)
    dtype = tiling.precision.computed(lanes)
    loads = [body.let(body.load(weights, step * count + n, dtype)) for n in range(count)]
    if lanes == tiling.schedule.lanes:
        return loads
    return [body.let(quarter(load, dtype, half)) for load in loads for half in range(2)]


@dataclass(frozen=True)
class Place:
    """The tile of one work-item.

    Attributes:
        image: number in the batch.
        oy: first output row.
        ox: first output pixel of a row.
        channel_tile: tile along the output channels.
        part: which share of the reduction is this work-item's.
        neighbour: number of the work-item among those of its group with the same share.
        exists: false for work-items beyond the last tile, which then compute that one again; None: always true.
    """

    image: Expr
    oy: Expr
    ox: Expr
    channel_tile: Expr
    part: Expr
    neighbour: Expr
    exists: Expr | None


def place_tile(body: Body, tiling: Tiling, group: tuple[Expr, ...], item: tuple[Expr, ...]) -> Place:
    """Find this work-item's tile."""
    grid = tiling.grid

    def number(axis: int, count: int) -> tuple[Expr, Expr | None]:
        index = group[axis] * grid.local[axis] + item[axis]
        if grid.groups[axis] * grid.local[axis] == count:
            return body.let(index), None
        return body.let(tirx.Min(index, const(count - 1, "int32"))), index < count

    index, image_tile_exists = number(0, tiling.count)
    channel_tile, channel_tile_exists = number(1, tiling.channel_tiles)
    row = tirx.floordiv(index, tiling.columns)
    return Place(
        image=body.let(tirx.floordiv(row, tiling.rows)),
        oy=body.let(tirx.floormod(row, tiling.rows) * tiling.schedule.rows),
        ox=body.let(tirx.floormod(index, tiling.columns) * tiling.schedule.pixels),
        channel_tile=channel_tile,
        part=item[2],
        neighbour=item[1] * grid.local[0] + item[0],
        exists=both(image_tile_exists, channel_tile_exists),
    )


def share(body: Body, steps: int, split: int, part: Expr) -> tuple[Expr, Expr]:
    """[start, stop) of this work-item's share of `steps` steps."""
    if split == 1:
        return 0, steps
    chunk = ceil_div(steps, split)
    start = body.let(part * chunk)
    return start, body.let(tirx.Min(start + chunk, const(steps, "int32")))


def inside(position: Expr, low: int, high: int, extent: int) -> Expr | None:
    """`0 <= position < extent`, where `position` is known to lie in [low, high]; None if that decides it."""
    lower = position >= 0 if low < 0 else None
    upper = position < extent if high >= extent else None
    return both(lower, upper)


def input_row(tiling: Tiling, place: Place, row: int, ky: Expr) -> tuple[Expr, Expr | None]:
    """The input row that kernel row `ky` (constant or loop variable) reads for tile row `row`, and its predicate."""
    op = tiling.op
    low, high = tiling.input_rows(row, ky)
    iy = place.oy * op.stride[0] + row * op.stride[0] - op.padding[0] + ky * op.dilation[0]
    return iy, inside(iy, low, high, op.in_height)


def input_pixel(tiling: Tiling, place: Place, pixel: int, kx: Expr) -> tuple[Expr, Expr | None]:
    """The same for pixels of a row: what tap `kx` (constant or loop variable) reads for tile pixel `pixel`."""
    op = tiling.op
    low, high = tiling.input_columns(pixel, kx)
    ix = place.ox * op.stride[1] + pixel * op.stride[1] - op.padding[1] + kx * op.dilation[1]
    return ix, inside(ix, low, high, op.in_width)
