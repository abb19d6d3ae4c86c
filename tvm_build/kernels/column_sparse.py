"""The reduction of a convolution tile over the kept columns only.

Structured pruning removes the same columns (input channel, ky, kx) from every filter, so what is left is a dense
product with a shorter reduction: no divergence between work-items, and offsets that are the same for all of them. Two
things keep it near the dense kernel's efficiency:

- Columns are sorted by kx, then ky, and a loop over them reads a table of offsets. With one row to a tile, all ky of a
  kx are one loop: its pixel predicates are decided once, and rows beside the image are at its ends and shorten it, so
  that padding costs no copy of the input.
- Weights are packed [channel tile, kept column, output channels], so each column reads one run of vectors.

Columns of one block of four channels at one tap can share a 128-bit load. With `gather="blocks"` every touched (block,
tap) is read whole, and columns that were removed there get zero weights: right for columns pruned in blocks, and for
mild sparsity. With `gather="lanes"` each kept column reads one scalar per pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from tvm import tirx

from structadmm.errors import InvariantError
from tvm_build.kernels.body import Body, Expr, both, choose, lane
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
    """The reduction's steps, sorted by kx, then ky, then channel.

    Attributes:
        offsets: [steps] where a step reads, relative to channel 0 in the row of ky = 0: in floats for lanes, in vectors
            for blocks, in lines for blocks of an image.
        columns: [steps, 1 or 4] original columns, -1 where none is kept.
        tap_start: [kw * kh + 1] first step of each tap, `kx * kh + ky`.
    """

    offsets: Array
    columns: Array
    tap_start: Array


@lru_cache(maxsize=64)
def list_entries(op: Conv2d, gather: Literal["lanes", "blocks"]) -> Entries:
    """Group the kept columns into the steps of the reduction."""
    if op.columns is None:
        raise InvariantError("a column-sparse reduction needs the list of kept columns, got none")
    kh, kw = op.kernel
    image = "input0" in op.images
    row = op.dilation[0] * (1 if image else op.in_width)
    plane = op.in_height * (1 if image else op.in_width)
    steps: dict[tuple[int, int], dict[int, int]] = {}
    for column in op.columns:
        channel, tap = divmod(column, kh * kw)
        number = tap % kw * kh + tap // kw
        key, slot = ((number, channel), 0) if gather == "lanes" else ((number, channel // 4), channel % 4)
        steps.setdefault(key, {})[slot] = column
    ordered = sorted(steps)
    columns = np.full((len(ordered), 1 if gather == "lanes" else 4), -1, np.int64)
    offsets = np.zeros(len(ordered), np.int32)
    for index, (number, part) in enumerate(ordered):
        for slot, column in steps[number, part].items():
            columns[index, slot] = column
        below = number % kh * row
        offsets[index] = below + part * plane if gather == "blocks" else 4 * (below + part // 4 * plane) + part % 4
    tap_start = np.searchsorted([number for number, _ in ordered], np.arange(kh * kw + 1)).astype(np.int32)
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
        if self.by_lane and memory != "buffer":
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
        """Loop over this work-item's share of each kx, or of each tap where a tile has several rows."""
        op, schedule = self.tiling.op, self.tiling.schedule
        kh, kw = op.kernel
        start, stop = share(body, len(self.entries.offsets), schedule.split, place.part)

        def first_step(tap: Expr) -> Expr:
            return int(self.entries.tap_start[tap]) if self.unrolled else buffers[f"{self.prefix}tap_start"][tap]

        def loop(number: Expr) -> None:
            if schedule.rows == 1:
                ky, kx = None, number
                first, last = self._rows_inside(place, lambda row: first_step(kx * kh + row))
            else:
                ky, kx = tirx.floormod(number, kh), tirx.floordiv(number, kh)
                if not self.unrolled:
                    ky, kx = body.let(ky), body.let(kx)
                first, last = first_step(number), first_step(number + 1)
            first, last = (step if isinstance(step, int) else body.let(step) for step in (first, last))
            if schedule.split > 1:
                first, last = body.let(tirx.Max(start, first)), body.let(tirx.Min(stop, last))
            self._steps(body, place, buffers, accumulators, tap=(ky, kx), steps=(first, last))

        taps = 1 if schedule.rows > 1 else kh
        if self.unrolled:
            for number in range(kh * kw // taps):
                if first_step(number * taps) < first_step((number + 1) * taps):
                    loop(number)
        else:
            with body.loop(0, kh * kw // taps) as number:
                loop(number)

    def _rows_inside(self, place: Place, first_step: Callable[[int], Expr]) -> tuple[Expr, Expr]:
        """The steps that read rows of the image, in a tile of one row; `first_step` is that of a row of the kernel."""
        op = self.tiling.op
        bottom = (self.tiling.rows - 1) * op.stride[0]
        first, last = first_step(op.kernel[0]), first_step(0)
        for ky in reversed(range(op.kernel[0])):
            y = ky * op.dilation[0] - op.padding[0]
            first = first_step(ky) if y >= 0 else choose(place.oy * op.stride[0] + y >= 0, first_step(ky), first)
        for ky in range(op.kernel[0]):
            y = ky * op.dilation[0] - op.padding[0]
            after = first_step(ky + 1)
            last = (
                after if y + bottom < op.in_height else choose(place.oy * op.stride[0] + y < op.in_height, after, last)
            )
        return first, last

    def _steps(
        self,
        body: Body,
        place: Place,
        buffers: dict[str, Stored],
        accumulators: Accumulators,
        *,
        tap: tuple[Expr | None, Expr],
        steps: tuple[Expr, Expr],
    ) -> None:
        """Loop over `steps` of the tap (ky, kx), or of all taps of kx that lie in the image if ky is None."""
        op, schedule = self.tiling.op, self.tiling.schedule
        source, weight = buffers[f"{self.prefix}input"], buffers[f"{self.prefix}weight"]
        width = self.entries.columns.shape[1]
        line = body.line(weight, place.channel_tile)
        places: dict[tuple[int, int], tuple[Line, Expr | None]] = {}
        for row in self.tiling.rows_inside(tap[0]):
            # A step's offset leads from the row of ky = 0 to its own.
            iy, _ = input_row(self.tiling, place, row, 0)
            row_ok = None if tap[0] is None else input_row(self.tiling, place, row, tap[0])[1]
            start = body.line(source, place.image * blocks(op.in_channels) * op.in_height + iy, row_ok)
            for pixel in self.tiling.pixels_inside(tap[1]):
                ix, pixel_ok = input_pixel(self.tiling, place, pixel, tap[1])
                ok = both(row_ok, pixel_ok)
                places[row, pixel] = (
                    body.ahead(start, ix * (4 if self.by_lane else 1)),
                    None if ok is None or source.is_image else body.let(ok),
                )
        if not places:
            return  # padding in every tile
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
