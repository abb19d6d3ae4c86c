"""Column-sparse convolution: the reduction runs over the kept columns only.

Structured pruning removes the same columns (input channel, ky, kx) from every filter, so what is left is a dense product
with a shorter reduction: no divergence between work-items, and offsets that are the same for all of them. Two things
keep it near the dense kernel's efficiency:

- Columns are grouped by tap. A tap's row and pixel predicates are then decided once, outside the loop over its columns,
  and padding costs no copy of the input; the loop itself reads a table of channel offsets.
- Weights are packed [channel tile, kept column, output channels], so each column reads one run of vectors.

Columns of one block of four channels at one tap can share a 128-bit load. With `gather="blocks"` every touched (block,
tap) is read whole, and columns that were removed there get zero weights: right for columns pruned in blocks, and for
mild sparsity. With `gather="lanes"` each kept column reads one scalar per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx

from tvm_build.kernels.body import Body, Expr, both, ceil_div, lane, load_if
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.conv2d import (
    Array,
    ConvSchedule,
    Place,
    Tiling,
    assemble,
    finish_tile,
    input_row,
    inside,
    multiply_add,
    pack_bias,
    place_tile,
)
from tvm_build.ops import Conv2d, blocks

_UNROLLED_TAPS = 25


@dataclass(frozen=True)
class SparseSchedule(ConvSchedule):
    """`ConvSchedule` and how inputs are read; `unroll_rows` is not used (a table holds the taps of large kernels)."""

    gather: Literal["lanes", "blocks"] = "lanes"


@dataclass(frozen=True)
class Entries:
    """The reduction's steps, sorted by tap.

    Attributes:
        offsets: [steps] where a step reads, relative to channel 0: in floats for lanes, in vectors for blocks.
        columns: [steps, 1 or 4] original columns, -1 where none is kept.
        tap_start: [taps + 1] first step of each tap.
    """

    offsets: Array
    columns: Array
    tap_start: Array


def list_entries(op: Conv2d, gather: Literal["lanes", "blocks"]) -> Entries:
    """Group the kept columns into the steps of the reduction."""
    if op.columns is None:
        raise ValueError("a column-sparse convolution needs its list of columns")
    taps = op.kernel[0] * op.kernel[1]
    plane = op.in_height * op.in_width
    steps: dict[tuple[int, int], dict[int, int]] = {}
    for column in op.columns:
        channel, tap = divmod(column, taps)
        key = (tap, channel) if gather == "lanes" else (tap, channel // 4)
        steps.setdefault(key, {})[channel % 4 if gather == "blocks" else 0] = column
    ordered = sorted(steps)
    width = 1 if gather == "lanes" else 4
    columns = np.full((len(ordered), width), -1, np.int64)
    offsets = np.zeros(len(ordered), np.int32)
    for row, key in enumerate(ordered):
        for slot, column in steps[key].items():
            columns[row, slot] = column
        offsets[row] = key[1] * plane if gather == "blocks" else key[1] // 4 * plane * 4 + key[1] % 4
    tap_start = np.searchsorted([key[0] for key in ordered], np.arange(taps + 1)).astype(np.int32)
    return Entries(offsets, columns, tap_start)


def build_column_sparse(op: Conv2d, weight: Array, bias: Array, schedule: SparseSchedule) -> BuiltKernel:
    """The kernel for a convolution over the kept columns; `weight` is the full [O, I, kh, kw] tensor."""
    tiling = Tiling(op, schedule)
    entries = list_entries(op, schedule.gather)
    packed = _pack(op, weight, entries, tiling)
    kh, kw = op.kernel
    plane = op.in_height * op.in_width
    lanes_only = schedule.gather == "lanes"
    # The input is read as floats for lanes and as vectors for blocks.
    unit = 4 if lanes_only else 1
    width = entries.columns.shape[1]
    steps = len(entries.offsets)
    chunk = ceil_div(steps, schedule.split)

    def write(body: Body, buffers: dict[str, Any], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        place = place_tile(body, tiling, group, item)
        buffers["item"] = item[0]
        vector = f"float32x{schedule.lanes}"
        accumulators = {
            (r, p, v): body.register(vector)
            for r in range(schedule.rows)
            for p in range(schedule.pixels)
            for v in range(schedule.vectors)
        }
        image = body.let(place.image * blocks(op.in_channels) * plane)

        def tap(ky: Expr, kx: Expr, first: Expr, last: Expr) -> None:
            if schedule.split > 1:
                first = body.let(tirx.Max(item[2] * chunk, first))
                last = body.let(tirx.Min(item[2] * chunk + chunk, last))
            rows = [input_row(op, tiling, place, r, ky) for r in range(schedule.rows)]
            # With one row its predicate skips the tap; with several they differ and go with the loads.
            outer = rows[0][1] if schedule.rows == 1 else None
            with body.when(outer):
                addresses: dict[tuple[int, int], tuple[Expr, Expr | None]] = {}
                for r, (iy, row_ok) in enumerate(rows):
                    for p in range(schedule.pixels):
                        ix, ok = _column(op, tiling, place, p, kx)
                        address = body.let((image + iy * op.in_width + ix) * unit)
                        condition = both(None if schedule.rows == 1 else row_ok, ok)
                        addresses[r, p] = (address, None if condition is None else body.let(condition))
                with body.loop(first, last) as step:
                    offset = body.let(buffers["offset"][step])
                    start = (place.channel_tile * steps + step) * (width * schedule.vectors)
                    start = body.let(start)
                    ws = [
                        [body.let(buffers["weight"][start + i * schedule.vectors + v]) for i in range(width)]
                        for v in range(schedule.vectors)
                    ]
                    for (r, p), (address, ok) in addresses.items():
                        dtype = "float32" if lanes_only else "float32x4"
                        x = body.let(load_if(ok, buffers["input"][address + offset], dtype))
                        xs = [x] if lanes_only else [lane(x, i) for i in range(4)]
                        for v in range(schedule.vectors):
                            multiply_add(accumulators[r, p, v], xs, ws[v], schedule)

        if kh * kw <= _UNROLLED_TAPS:
            for number in range(kh * kw):
                first, last = int(entries.tap_start[number]), int(entries.tap_start[number + 1])
                if first < last:
                    tap(number // kw, number % kw, first, last)
        else:
            with body.loop(0, kh * kw) as number:
                first = body.let(buffers["tap_start"][number])
                last = body.let(buffers["tap_start"][number + 1])
                tap(body.let(tirx.floordiv(number, kw)), body.let(tirx.floormod(number, kw)), first, last)
        finish_tile(body, op, tiling, place, buffers, accumulators, item[2])

    constants = {"weight": packed, "bias": pack_bias(op, bias, tiling), "offset": entries.offsets}
    if kh * kw > _UNROLLED_TAPS:
        constants["tap_start"] = entries.tap_start
    return assemble("column_sparse", op, tiling, constants, write, schedule, "float32" if lanes_only else "float32x4")


def _column(op: Conv2d, tiling: Tiling, place: Place, pixel: int, kx: Expr) -> tuple[Expr, Expr | None]:
    """The input pixel that tap `kx` (constant or loop variable) reads for tile pixel `pixel`, and its predicate."""
    first, last = (kx, kx) if isinstance(kx, int) else (0, op.kernel[1] - 1)
    ix = place.ox * op.stride[1] + (pixel * op.stride[1] - op.padding[1]) + kx * op.dilation[1]
    low = pixel * op.stride[1] - op.padding[1]
    high = low + (tiling.columns - 1) * tiling.schedule.pixels * op.stride[1]
    return ix, inside(ix, low + first * op.dilation[1], high + last * op.dilation[1], op.in_width)


def _pack(op: Conv2d, weight: Array, entries: Entries, tiling: Tiling) -> Array:
    """[channel tiles, steps, 1 or 4, vectors, lanes]."""
    schedule = tiling.schedule
    flat = np.zeros((tiling.channel_tiles * schedule.tile_channels, op.in_channels * op.kernel[0] * op.kernel[1] + 1))
    # The last column stays zero; -1 refers to it.
    flat[: op.out_channels, :-1] = weight.reshape(op.out_channels, -1)
    kept = flat[:, entries.columns]  # [O, steps, width]
    kept = kept.reshape(tiling.channel_tiles, schedule.vectors, schedule.lanes, *entries.columns.shape)
    return np.ascontiguousarray(kept.transpose(0, 3, 4, 1, 2), dtype=np.float32)
