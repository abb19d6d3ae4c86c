"""The reduction of a convolution tile over whole blocks of input channels, within groups.

For each input block and kernel row a work-item reads the input pixels that its tile needs once (neighbouring taps share
them) and, for each tap, 4 x `vectors` weight vectors that lie next to each other in memory. Padding is a branch over a
whole kernel row and, for the few (pixel, tap) pairs that can fall outside the image in some tile, a predicate on the
load: no padded copy exists.

With groups, a tile's input blocks start at a block looked up in a table, and weights that would connect different
groups are zero; so a group need not start at a multiple of four channels.
"""

from __future__ import annotations

import itertools

import numpy as np
from tvm import tirx

from tvm_build.kernels.body import Body, Expr, both, lane
from tvm_build.kernels.conv_tile import (
    Accumulators,
    Registers,
    multiply_add,
    reduction_loop,
    short_sum,
    steps_in_half,
)
from tvm_build.kernels.conv_tiling import (
    Array,
    ConvSchedule,
    Place,
    Tiling,
    input_pixel,
    input_row,
    read_weights,
    share,
    weight_loads,
)
from tvm_build.kernels.stored import Stored, c4
from tvm_build.ops import Conv2d, blocks, memory_of


class DenseReduction:
    """Products with the whole weight. `prefix` tells its parameters from those of a second reduction."""

    def __init__(self, tiling: Tiling, weight: Array, prefix: str = "") -> None:
        self.tiling = tiling
        self.prefix = prefix
        op = tiling.op
        shape = (op.batch, op.in_channels, op.in_height, op.in_width)
        self.input = c4(shape, tiling.precision.stored(4), memory_of(op, "input0"))
        self.first_block, self.block_count = input_blocks(tiling.op, tiling.schedule)
        # A single block, such as an image's three channels, has its missing lanes left out, not multiplied by zero.
        self.depth = min(4, tiling.op.in_channels) if self.block_count == 1 else 4
        # Sets of filters lie one after the other.
        packed = [pack_weight(tiling.op, filters, tiling.schedule) for filters in np.split(weight, op.filter_sets)]
        whole = np.concatenate(packed)[:, :, :, :, : self.depth]
        self.constants: dict[str, Array] = {f"{prefix}weight": np.ascontiguousarray(whole)}
        self.table = len(set(self.first_block)) > 1
        if self.table:
            self.constants[f"{prefix}first_block"] = np.asarray(self.first_block, np.int32)

    def write(self, body: Body, place: Place, buffers: dict[str, Stored], accumulators: Accumulators) -> None:
        """Loop over this work-item's share of (input block) or (input block, kernel row)."""
        op, schedule = self.tiling.op, self.tiling.schedule
        base = place.image * blocks(op.in_channels)
        if self.table:
            base = base + buffers[f"{self.prefix}first_block"][place.channel_tile]
        base = body.let(base)
        kh, kw = op.kernel
        products = self.depth * kw
        if schedule.unroll_rows and kh > 1:
            together = steps_in_half(products)
            with body.loop(*share(body, self.block_count, schedule.split, place.part)) as block:
                for first in range(0, kh, together):
                    with short_sum(accumulators) as sums:
                        for ky in range(first, min(first + together, kh)):
                            self._kernel_row(body, place, buffers, sums, base=base, block=block, ky=ky)
            return
        bounds = share(body, self.block_count * kh, schedule.split, place.part)
        loop = reduction_loop(body, accumulators, bounds, steps_in_half(products))
        with loop as (step, sums):
            block, ky = (step, 0) if kh == 1 else (body.let(tirx.floordiv(step, kh)), body.let(tirx.floormod(step, kh)))
            self._kernel_row(body, place, buffers, sums, base=base, block=block, ky=ky)

    def _kernel_row(
        self,
        body: Body,
        place: Place,
        buffers: dict[str, Stored],
        sums: Registers,
        *,
        base: Expr,
        block: Expr,
        ky: Expr,
    ) -> None:
        op, schedule = self.tiling.op, self.tiling.schedule
        vector = self.tiling.precision.computed(4)
        kh, kw = op.kernel
        source, weight = buffers[f"{self.prefix}input"], buffers[f"{self.prefix}weight"]
        filters = place.channel_tile
        if op.filter_sets > 1:
            filters = tirx.floormod(place.image, op.filter_sets) * self.tiling.channel_tiles + filters
        line = body.line(weight, filters)
        weights = body.ahead(line, (block * kh + ky) * (kw * self.depth * weight_loads(self.tiling)))

        def read_row(row: int, iy: Expr, row_ok: Expr | None) -> dict[int, Expr]:
            """The pixels that any tap needs for this row of the tile, by their distance from the first one."""
            start = body.line(source, (base + block) * op.in_height + iy, row_ok)
            pixels: dict[int, Expr] = {}
            for kx in range(kw):
                for pixel in self.tiling.pixels_inside(kx):
                    distance = pixel * op.stride[1] + kx * op.dilation[1]
                    if distance not in pixels:
                        ix, ok = input_pixel(self.tiling, place, pixel, kx)
                        pixels[distance] = body.let(body.load(start, ix, vector, both(row_ok, ok)))
            return pixels

        rows = {row: input_row(self.tiling, place, row, ky) for row in self.tiling.rows_inside(ky)}
        # One row's predicate skips its loads and products; several rows differ, and share the weights they read.
        skip = rows[0][1] if schedule.rows == 1 and rows else None
        with body.when(skip):
            read = {
                row: read_row(row, iy, None if schedule.rows == 1 or ok is None else body.let(ok))
                for row, (iy, ok) in rows.items()
            }
            for kx in range(kw):
                products = list(itertools.product(rows, self.tiling.pixels_inside(kx), range(schedule.vectors)))
                if not products:
                    continue
                ws = [read_weights(body, weights, kx * self.depth + i, self.tiling) for i in range(self.depth)]
                for row, pixel, v in products:
                    x = read[row][pixel * op.stride[1] + kx * op.dilation[1]]
                    xs = [lane(x, i) for i in range(self.depth)]
                    multiply_add(sums[row, pixel, v], xs, [w[v] for w in ws], schedule)


def input_blocks(op: Conv2d, schedule: ConvSchedule) -> tuple[list[int], int]:
    """For each channel tile the first input block it reads, and how many blocks every tile reads."""
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
    """[O, I / groups, kh, kw] to [channel tiles, input blocks, kh, kw, 4, vectors, lanes], zeros where none is."""
    first_block, count = input_blocks(op, schedule)
    group_in = op.in_channels // op.groups
    group_out = op.out_channels // op.groups
    tile = schedule.tile_channels
    packed = np.zeros((len(first_block), tile, count * 4, *op.kernel), np.float32)
    for o in range(op.out_channels):
        start = o // group_out * group_in - first_block[o // tile] * 4
        packed[o // tile, o % tile, start : start + group_in] = weight[o]
    packed = packed.reshape(len(first_block), schedule.vectors, schedule.lanes, count, 4, *op.kernel)
    return packed.transpose(0, 3, 5, 6, 4, 1, 2)
