"""Direct convolution on C4: one work-item computes a tile of pixels and output channels in registers.

    out[n, o, y, x] = act(bias[o] + sum over i, ky, kx of  w[o, i, ky, kx] * in[n, i, y*sh - pt + ky*dh, x*sw - pl + kx*dw])

A work-item holds `rows * pixels * vectors` accumulators of `lanes` output channels. For each input block (4 channels)
and kernel row it reads the input pixels that its tile needs once (neighbouring taps share them) and, for each tap, 4 *
`vectors` weight vectors that lie next to each other in memory. Padding is a branch over a whole kernel row and, for the
few (pixel, tap) pairs that can fall outside the image in some tile, a predicate on the load: no padded copy exists.

Small layers leave a GPU idle, so the reduction can be split: `split` work-items of one group each take a part of the
input blocks, put their accumulators in local memory, and share the work of adding them up and storing.

Grouped convolution is the same kernel: the tile's input blocks start at a block looked up in a table, and weights that
would connect different groups are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx

from tvm_build.kernels.body import (
    Body,
    Expr,
    Grid,
    Register,
    both,
    build_func,
    ceil_div,
    const,
    lane,
    lanes_of,
    load_if,
    quarter,
    spread,
)
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.epilogue import activate
from tvm_build.ops import Conv2d, blocks

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
        form: "sum": `acc += x0*w0 + x1*w1 + x2*w2 + x3*w3`; "chain": `acc = acc + x0*w0 + ...`, a multiply-add each.
        unroll_rows: write the kernel's rows out; otherwise they are a loop.
    """

    pixels: int = 4
    rows: int = 1
    vectors: int = 1
    lanes: int = 4
    split: int = 1
    local: int = 32
    form: Literal["sum", "chain"] = "chain"
    unroll_rows: bool = True

    @property
    def tile_channels(self) -> int:
        """Output channels per work-item."""
        return self.vectors * self.lanes


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of one convolution lie."""

    op: Conv2d
    schedule: ConvSchedule

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
        return Grid((ceil_div(self.count, local), self.channel_tiles, 1), (local, 1, self.schedule.split))


@dataclass(frozen=True)
class Place:
    """The tile of one work-item: image, first output row and pixel, channel tile, and whether the tile exists."""

    image: Expr
    oy: Expr
    ox: Expr
    channel_tile: Expr
    exists: Expr | None


def place_tile(body: Body, tiling: Tiling, group: tuple[Expr, ...], item: tuple[Expr, ...]) -> Place:
    """Find this work-item's tile. Work-items beyond the last tile get the last one and `exists` false."""
    grid = tiling.grid
    index = group[0] * grid.local[0] + item[0]
    exists = None
    if grid.groups[0] * grid.local[0] != tiling.count:
        exists = index < tiling.count
        index = tirx.Min(index, const(tiling.count - 1, "int32"))
    index = body.let(index)
    row = tirx.floordiv(index, tiling.columns)
    schedule = tiling.schedule
    return Place(
        image=body.let(tirx.floordiv(row, tiling.rows)),
        oy=body.let(tirx.floormod(row, tiling.rows) * schedule.rows),
        ox=body.let(tirx.floormod(index, tiling.columns) * schedule.pixels),
        channel_tile=group[1],
        exists=exists,
    )


def inside(position: Expr, low: int, high: int, extent: int) -> Expr | None:
    """`0 <= position < extent`, where `position` is known to lie in [low, high]; None if that decides it."""
    lower = position >= 0 if low < 0 else None
    upper = position < extent if high >= extent else None
    return both(lower, upper)


def input_row(op: Conv2d, tiling: Tiling, place: Place, row: int, ky: Expr) -> tuple[Expr, Expr | None]:
    """The input row that kernel row `ky` (constant or loop variable) reads for tile row `row`, and its predicate."""
    iy = place.oy * op.stride[0] + (row * op.stride[0] - op.padding[0]) + ky * op.dilation[0]
    first, last = (ky, ky) if isinstance(ky, int) else (0, op.kernel[0] - 1)
    low = row * op.stride[0] - op.padding[0] + first * op.dilation[0]
    high = ((tiling.rows - 1) * tiling.schedule.rows + row) * op.stride[0] - op.padding[0] + last * op.dilation[0]
    return iy, inside(iy, low, high, op.in_height)


def input_column(op: Conv2d, tiling: Tiling, place: Place, offset: int) -> tuple[Expr, Expr | None]:
    """The input pixel at `offset` from the tile's first one, and its predicate."""
    ix = place.ox * op.stride[1] + (offset - op.padding[1])
    low = offset - op.padding[1]
    high = (tiling.columns - 1) * tiling.schedule.pixels * op.stride[1] + low
    return ix, inside(ix, low, high, op.in_width)


def finish_tile(
    body: Body,
    op: Conv2d,
    tiling: Tiling,
    place: Place,
    buffers: dict[str, Any],
    accumulators: dict[tuple[int, int, int], Register],
    split_index: Expr,
) -> None:
    """Add up a split reduction, then bias, residual, activation and store, four channels at a time."""
    schedule = tiling.schedule
    dtype = f"float32x{schedule.lanes}"
    quarters = schedule.lanes // 4
    tile_blocks = schedule.tile_channels // 4

    def store(row: Expr, pixel: Expr, block: Expr, value: Expr, limits: Expr | None) -> None:
        out_block = body.let(place.channel_tile * tile_blocks + block)
        plane = op.out_height * op.out_width
        index = (place.image * blocks(op.out_channels) + out_block) * plane + (place.oy + row) * op.out_width
        index = index + place.ox + pixel
        with body.when(both(place.exists, limits, block_limit(out_block))):
            result = value + buffers["bias"][out_block]
            if op.has_residual:
                result = result + buffers["residual"][index]
            body.store(buffers["output"], index, activate(body, result, op.activation, "float32x4"))

    def block_limit(out_block: Expr) -> Expr | None:
        ragged = tiling.channel_tiles * tile_blocks != blocks(op.out_channels)
        return out_block < blocks(op.out_channels) if ragged else None

    def row_limit(row: Expr) -> Expr | None:
        return place.oy + row < op.out_height if op.out_height % schedule.rows else None

    def pixel_limit(pixel: Expr) -> Expr | None:
        return place.ox + pixel < op.out_width if op.out_width % schedule.pixels else None

    if schedule.split == 1:
        for (row, pixel, vector), register in accumulators.items():
            value = body.let(register.value)
            for q in range(quarters):
                store(
                    row,
                    pixel,
                    vector * quarters + q,
                    quarter(value, dtype, q),
                    both(row_limit(row) if row else None, pixel_limit(pixel) if pixel else None),
                )
        return

    # Local memory as [split, accumulator, work-item]: neighbours write neighbouring vectors.
    local = tiling.grid.local[0]
    count = len(accumulators) * quarters
    partial = body.shared(schedule.split * count * local, "float32x4")
    item = buffers["item"]
    for number, register in enumerate(accumulators.values()):
        value = body.let(register.value)
        for q in range(quarters):
            slot = (split_index * count + (number * quarters + q)) * local + item
            body.store(partial, slot, quarter(value, dtype, q))
    body.barrier()
    rounds = ceil_div(count, schedule.split)
    for turn in range(rounds):
        number = body.let(split_index + turn * schedule.split)
        with body.when(number < count if (turn + 1) * schedule.split > count else None):
            total = partial[number * local + item]
            for part in range(1, schedule.split):
                total = total + partial[(part * count + number) * local + item]
            total = body.let(total)
            block = tirx.floormod(number, tile_blocks)
            pixel = tirx.floormod(tirx.floordiv(number, tile_blocks), schedule.pixels)
            row = tirx.floordiv(number, tile_blocks * schedule.pixels)
            store(row, pixel, block, total, both(row_limit(row), pixel_limit(pixel)))


def multiply_add(register: Register, xs: list[Expr], ws: list[Expr], schedule: ConvSchedule) -> None:
    """`register += sum of xs[i] * ws[i]`, each x a scalar, each w a vector."""
    products = [spread(x, schedule.lanes) * w for x, w in zip(xs, ws, strict=True)]
    if schedule.form == "sum":
        total = products[0]
        for product in products[1:]:
            total = total + product
        register.set(register.value + total)
    else:
        total = register.value
        for product in products:
            total = total + product
        register.set(total)


def build_conv2d(op: Conv2d, weight: Array, bias: Array, schedule: ConvSchedule) -> BuiltKernel:
    """The kernel for a convolution whose reduction is dense within its groups."""
    tiling = Tiling(op, schedule)
    first_block, reduced_blocks = _input_blocks(op, schedule)
    packed = pack_weight(op, weight, schedule)
    table = len(set(first_block)) > 1
    kh, kw = op.kernel
    plane = op.in_height * op.in_width
    vector = f"float32x{schedule.lanes}"
    offsets = sorted({p * op.stride[1] + kx * op.dilation[1] for p in range(schedule.pixels) for kx in range(kw)})

    def write(body: Body, buffers: dict[str, Any], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        place = place_tile(body, tiling, group, item)
        buffers["item"] = item[0]
        accumulators = {
            (r, p, v): body.register(vector)
            for r in range(schedule.rows)
            for p in range(schedule.pixels)
            for v in range(schedule.vectors)
        }
        base = place.image * blocks(op.in_channels)
        if table:
            base = base + buffers["first_block"][place.channel_tile]
        base = body.let(base)

        def kernel_row(block: Expr, ky: Expr) -> None:
            weights = ((place.channel_tile * reduced_blocks + block) * kh + ky) * (kw * 4 * schedule.vectors)
            weights = body.let(weights)
            for r in range(schedule.rows):
                iy, row_ok = input_row(op, tiling, place, r, ky)
                # With one row the branch covers all its work; with several it would repeat the weight loads.
                with body.when(row_ok):
                    start = body.let((base + block) * plane + iy * op.in_width)
                    pixels = {}
                    for offset in offsets:
                        ix, ok = input_column(op, tiling, place, offset)
                        pixels[offset] = body.let(load_if(ok, buffers["input"][start + ix], "float32x4"))
                    for kx in range(kw):
                        ws = [
                            [
                                body.let(buffers["weight"][weights + ((kx * 4 + i) * schedule.vectors + v)])
                                for i in range(4)
                            ]
                            for v in range(schedule.vectors)
                        ]
                        for p in range(schedule.pixels):
                            x = pixels[p * op.stride[1] + kx * op.dilation[1]]
                            xs = [lane(x, i) for i in range(4)]
                            for v in range(schedule.vectors):
                                multiply_add(accumulators[r, p, v], xs, ws[v], schedule)

        if schedule.unroll_rows:
            chunk = ceil_div(reduced_blocks, schedule.split)
            stop = reduced_blocks
            start = 0
            if schedule.split > 1:
                start = item[2] * chunk
                stop = tirx.Min(item[2] * chunk + chunk, const(reduced_blocks, "int32"))
            with body.loop(start, stop) as block:
                for ky in range(kh):
                    kernel_row(block, ky)
        else:
            units = reduced_blocks * kh
            chunk = ceil_div(units, schedule.split)
            stop = units
            start = 0
            if schedule.split > 1:
                start = item[2] * chunk
                stop = tirx.Min(item[2] * chunk + chunk, const(units, "int32"))
            with body.loop(start, stop) as unit:
                kernel_row(body.let(tirx.floordiv(unit, kh)), body.let(tirx.floormod(unit, kh)))
        finish_tile(body, op, tiling, place, buffers, accumulators, item[2])

    constants = {"weight": packed, "bias": pack_bias(op, bias, tiling)}
    if table:
        constants["first_block"] = np.asarray(first_block, np.int32)
    return assemble("conv2d", op, tiling, constants, write, schedule)


def assemble(
    name: str,
    op: Conv2d,
    tiling: Tiling,
    constants: dict[str, Array],
    write: Any,
    schedule: ConvSchedule,
    input_dtype: str = "float32x4",
) -> BuiltKernel:
    """Declare the parameters that all convolutions have and build the function."""
    in_elements = op.batch * blocks(op.in_channels) * op.in_height * op.in_width
    out_elements = op.batch * blocks(op.out_channels) * op.out_height * op.out_width
    parameters = {"input": (in_elements * 4 // lanes_of(input_dtype), input_dtype)}
    roles = {"input": "input0"}
    for key, array in constants.items():
        if array.dtype == np.int32:
            parameters[key] = (array.size, "int32")
        else:
            lanes = array.shape[-1]
            parameters[key] = (array.size // lanes, f"float32x{lanes}")
        roles[key] = f"constant:{key}"
    if op.has_residual:
        parameters["residual"] = (out_elements, "float32x4")
        roles["residual"] = "residual"
    parameters["output"] = (out_elements, "float32x4")
    roles["output"] = "output"
    func = build_func(name, parameters, tiling.grid, write)
    moved = 16 * (in_elements + out_elements * (2 if op.has_residual else 1))
    return BuiltKernel(
        func=func,
        roles=roles,
        constants=constants,
        flops=2 * op.macs,
        bytes=moved + sum(array.nbytes for array in constants.values()),
        schedule=schedule,
    )


def pack_bias(op: Conv2d, bias: Array, tiling: Tiling) -> Array:
    """[blocks of the tiled channels, 4], zeros beyond the last channel."""
    channels = tiling.channel_tiles * tiling.schedule.tile_channels
    packed = np.zeros(channels, np.float32)
    packed[: op.out_channels] = bias
    return packed.reshape(-1, 4)


def _input_blocks(op: Conv2d, schedule: ConvSchedule) -> tuple[list[int], int]:
    """For each channel tile the first input block it reads, and how many blocks all tiles read."""
    group_in = op.in_channels // op.groups
    group_out = op.out_channels // op.groups
    ranges = []
    for first in range(0, op.out_channels, schedule.tile_channels):
        last = min(first + schedule.tile_channels, op.out_channels) - 1
        low = first // group_out * group_in
        high = (last // group_out + 1) * group_in
        ranges.append((low // 4, blocks(high)))
    count = max(high - low for low, high in ranges)
    # Every tile reads the same number of blocks; the last ones start earlier rather than end beyond the tensor.
    return [min(low, blocks(op.in_channels) - count) for low, _ in ranges], count


def pack_weight(op: Conv2d, weight: Array, schedule: ConvSchedule) -> Array:
    """[O, I / groups, kh, kw] to [channel tiles, input blocks, kh, kw, 4, vectors, lanes], zeros where there is none."""
    first_block, count = _input_blocks(op, schedule)
    kh, kw = op.kernel
    group_in = op.in_channels // op.groups
    group_out = op.out_channels // op.groups
    tile = schedule.tile_channels
    packed = np.zeros((len(first_block), tile, count * 4, kh, kw), np.float32)
    for o in range(op.out_channels):
        start = o // group_out * group_in - first_block[o // tile] * 4
        packed[o // tile, o % tile, start : start + group_in] = weight[o]
    packed = packed.reshape(len(first_block), schedule.vectors, schedule.lanes, count, 4, kh, kw)
    return np.ascontiguousarray(packed.transpose(0, 3, 5, 6, 4, 1, 2))
