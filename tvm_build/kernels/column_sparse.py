"""The reduction of a convolution tile over the kept columns only.

Structured pruning removes the same columns (input channel, ky, kx) from every filter, so what is left is a dense
product with a shorter reduction: no divergence between work-items, and offsets that are the same for all of them. Two
things keep it near the dense kernel's efficiency:

- Columns are grouped by tap. A tap's row and pixel predicates are then decided once, outside the loop over its columns,
  and padding costs no copy of the input; the loop itself reads a table of channel offsets.
- Weights are packed [channel tile, kept column, output channels], so each column reads one run of vectors.

Columns of one block of four channels at one tap can share a 128-bit load. With `gather="blocks"` every touched (block,
tap) is read whole, and columns that were removed there get zero weights: right for columns pruned in blocks, and for
mild sparsity. With `gather="lanes"` each kept column reads one scalar per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from tvm import tirx

from structadmm.errors import InvariantError
from tvm_build.kernels.body import Body, Expr, both, lane
from tvm_build.kernels.conv_tile import Accumulators, multiply_add, reduction_loop, steps_in_half
from tvm_build.kernels.conv_tiling import (
    Array,
    Place,
    Tiling,
    input_pixel,
    input_row,
    read_weights,
    share,
    weight_loads,
)
from tvm_build.kernels.stored import Line, Stored, c4
from tvm_build.ops import Conv2d, blocks, memory_of

_UNROLLED_TAPS = 25


@dataclass(frozen=True)
class Entries:
    """The reduction's steps, sorted by tap.

    Attributes:
        offsets: [steps] where a step reads, relative to channel 0: in floats for lanes, in vectors for blocks, in lines
            for blocks of an image.
        columns: [steps, 1 or 4] original columns, -1 where none is kept.
        tap_start: [taps + 1] first step of each tap.
    """

    offsets: Array
    columns: Array
    tap_start: Array


@lru_cache(maxsize=64)
def list_entries(op: Conv2d, gather: Literal["lanes", "blocks"]) -> Entries:
    """Group the kept columns into the steps of the reduction."""
    if op.columns is None:
        raise InvariantError("a column-sparse reduction needs the list of kept columns, got none")
    taps = op.kernel[0] * op.kernel[1]
    plane = op.in_height if "input0" in op.images else op.in_height * op.in_width
    steps: dict[tuple[int, int], dict[int, int]] = {}
    for column in op.columns:
        channel, tap = divmod(column, taps)
        key, slot = ((tap, channel), 0) if gather == "lanes" else ((tap, channel // 4), channel % 4)
        steps.setdefault(key, {})[slot] = column
    ordered = sorted(steps)
    columns = np.full((len(ordered), 1 if gather == "lanes" else 4), -1, np.int64)
    offsets = np.zeros(len(ordered), np.int32)
    for row, key in enumerate(ordered):
        for slot, column in steps[key].items():
            columns[row, slot] = column
        offsets[row] = key[1] * plane if gather == "blocks" else key[1] // 4 * plane * 4 + key[1] % 4
    tap_start = np.searchsorted([tap for tap, _ in ordered], np.arange(taps + 1)).astype(np.int32)
    return Entries(offsets, columns, tap_start)


def together_in_half(gather: Literal["lanes", "blocks"]) -> int:
    """Steps whose products are added up in half: one of blocks, for a tap has few, and pairs would seldom be whole."""
    return 1 if gather == "blocks" else steps_in_half(1)


class SparseReduction:
    """Products with the kept columns of `weight` [O, I, kh, kw]. `prefix` as in `DenseReduction`."""

    def __init__(self, tiling: Tiling, weight: Array, prefix: str = "") -> None:
        self.tiling = tiling
        self.prefix = prefix
        self.entries = list_entries(tiling.op, tiling.schedule.gather)
        self.by_lane = tiling.schedule.gather == "lanes"
        op, memory = tiling.op, memory_of(tiling.op, "input0")
        if self.by_lane and memory == "image":
            raise InvariantError("an image gives whole blocks of four channels: gather them by blocks")
        vectors = c4((op.batch, op.in_channels, op.in_height, op.in_width), tiling.precision.stored(4), memory)
        self.input = replace(vectors, width=vectors.width * 4, dtype=vectors.scalar) if self.by_lane else vectors
        self.value_dtype = tiling.precision.computed(1 if self.by_lane else 4)
        kh, kw = op.kernel
        self.unrolled = kh * kw <= _UNROLLED_TAPS
        self.constants: dict[str, Array] = {
            f"{prefix}weight": self._pack(weight),
            f"{prefix}offset": self.entries.offsets,
        }
        if not self.unrolled:
            self.constants[f"{prefix}tap_start"] = self.entries.tap_start

    def write(self, body: Body, place: Place, buffers: dict[str, Stored], accumulators: Accumulators) -> None:
        """Loop over the steps of each tap that are this work-item's share."""
        op, schedule = self.tiling.op, self.tiling.schedule
        kh, kw = op.kernel
        start, stop = share(body, len(self.entries.offsets), schedule.split, place.part)

        def tap(ky: Expr, kx: Expr, first: Expr, last: Expr) -> None:
            if schedule.split > 1:
                first, last = body.let(tirx.Max(start, first)), body.let(tirx.Min(stop, last))
            self._tap(body, place, buffers, accumulators, tap=(ky, kx), steps=(first, last))

        if self.unrolled:
            for number in range(kh * kw):
                first, last = int(self.entries.tap_start[number]), int(self.entries.tap_start[number + 1])
                if first < last:
                    tap(number // kw, number % kw, first, last)
        else:
            with body.loop(0, kh * kw) as number:
                tap_start = buffers[f"{self.prefix}tap_start"]
                first, last = body.let(tap_start[number]), body.let(tap_start[number + 1])
                tap(body.let(tirx.floordiv(number, kw)), body.let(tirx.floormod(number, kw)), first, last)

    def _tap(
        self,
        body: Body,
        place: Place,
        buffers: dict[str, Stored],
        accumulators: Accumulators,
        *,
        tap: tuple[Expr, Expr],
        steps: tuple[Expr, Expr],
    ) -> None:
        op, schedule = self.tiling.op, self.tiling.schedule
        source, weight = buffers[f"{self.prefix}input"], buffers[f"{self.prefix}weight"]
        width = self.entries.columns.shape[1]
        line = body.line(weight, place.channel_tile)
        rows = [input_row(self.tiling, place, row, tap[0]) for row in range(schedule.rows)]
        # One row's predicate skips the tap; with several rows it goes with the loads.
        skip = rows[0][1] if schedule.rows == 1 else None
        with body.when(skip):
            places: dict[tuple[int, int], tuple[Line, Expr | None]] = {}
            for row, (iy, inside) in enumerate(rows):
                row_ok = None if schedule.rows == 1 else inside
                start = body.line(source, place.image * blocks(op.in_channels) * op.in_height + iy, row_ok)
                for pixel in range(schedule.pixels):
                    ix, pixel_ok = input_pixel(self.tiling, place, pixel, tap[1])
                    ok = both(row_ok, pixel_ok)
                    places[row, pixel] = (
                        body.ahead(start, ix * (4 if self.by_lane else 1)),
                        None if ok is None or source.is_image else body.let(ok),
                    )
            loop = reduction_loop(body, accumulators, steps, together_in_half(schedule.gather))
            with loop as (step, sums):
                offset = body.let(buffers[f"{self.prefix}offset"][step])
                weights = body.ahead(line, step * (width * weight_loads(self.tiling)))
                ws = [read_weights(body, weights, i, self.tiling) for i in range(width)]
                for (row, pixel), (start, ok) in places.items():
                    x = body.let(body.load(start.beyond(offset), 0, self.value_dtype, ok))
                    xs = [x] if self.by_lane else [lane(x, i) for i in range(4)]
                    for v in range(schedule.vectors):
                        multiply_add(sums[row, pixel, v], xs, [w[v] for w in ws], schedule)

    def _pack(self, weight: Array) -> Array:
        """[channel tiles, steps, 1 or 4, vectors, lanes]."""
        op, schedule = self.tiling.op, self.tiling.schedule
        channels = self.tiling.channel_tiles * schedule.tile_channels
        # One column more, which stays zero: -1 refers to it.
        flat = np.zeros((channels, op.in_channels * op.kernel[0] * op.kernel[1] + 1), np.float32)
        flat[: op.out_channels, :-1] = weight.reshape(op.out_channels, -1)
        kept = flat[:, self.entries.columns]  # [O, steps, 1 or 4]
        kept = kept.reshape(self.tiling.channel_tiles, schedule.vectors, schedule.lanes, *self.entries.columns.shape)
        return np.ascontiguousarray(kept.transpose(0, 3, 4, 1, 2))
