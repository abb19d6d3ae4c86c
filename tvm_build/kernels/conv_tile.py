"""The accumulators of one convolution tile: how products enter them, and how they leave for memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tvm import tirx

from tvm_build.kernels.activation import activate
from tvm_build.kernels.body import Body, Expr, Register, both, ceil_div, converted, quarter, quarters_of, spread, zero
from tvm_build.kernels.conv_tiling import ConvSchedule, Place, Tiling
from tvm_build.kernels.stored import Stored
from tvm_build.ops import blocks

# Products in half that are added up in half before their sum goes into a float32 accumulator.
_HALF_SUM = 8

Registers = dict[tuple[int, int, int], Register]
"""By row, pixel and vector of the tile."""


@dataclass(frozen=True)
class Accumulators:
    """The sums of one tile.

    Attributes:
        totals: in float32.
        halves: of the last few products, where products are half; None otherwise.
    """

    totals: Registers
    halves: Registers | None

    def fold(self) -> None:
        """Add the sums in half to the totals, and begin them anew."""
        for key, half in (self.halves or {}).items():
            total = self.totals[key]
            total.set(total.value + converted(half.value, half.dtype, total.dtype))
            half.set(zero(half.dtype))


def start_tile(body: Body, tiling: Tiling) -> Accumulators:
    """Registers of zeros for every row, pixel and vector."""
    schedule = tiling.schedule

    def registers(dtype: str) -> Registers:
        return {
            (row, pixel, vector): body.register(dtype)
            for row in range(schedule.rows)
            for pixel in range(schedule.pixels)
            for vector in range(schedule.vectors)
        }

    half = tiling.products != tiling.accumulator
    return Accumulators(registers(tiling.accumulator), registers(tiling.products) if half else None)


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


def steps_in_half(products: int) -> int:
    """How many steps of so many half products follow each other before their sum goes into the accumulators.

    A half has 11 bits: added up one by one, n products lose about sqrt(n / 2) times what rounding the result to half
    does, and four times that where they have a common mean. Eight at a time lose 2 of them whatever n is.
    """
    return max(1, round(_HALF_SUM / products))


@contextmanager
def short_sum(accumulators: Accumulators) -> Iterator[Registers]:
    """Registers for the sum of a few products, which goes into the totals afterwards.

    Unless products are half, these are the totals themselves.
    """
    if accumulators.halves is None:
        yield accumulators.totals
        return
    yield accumulators.halves
    accumulators.fold()


@contextmanager
def reduction_loop(
    body: Body, accumulators: Accumulators, bounds: tuple[Expr, Expr], together: int
) -> Iterator[tuple[Expr, Registers]]:
    """A loop over steps of a reduction, and the registers that their products are added to.

    Args:
        body: of the kernel.
        accumulators: of the tile.
        bounds: first step, and the one after the last.
        together: how many steps' products may be added up in half.
    """
    if accumulators.halves is None or together == 1:
        with body.loop(*bounds) as step, short_sum(accumulators) as sums:
            yield step, sums
        return
    # A branch that all work-items of a wave take alike; loops within loops crash Intel's compiler on vectors of half.
    with body.loop(*bounds) as step:
        yield step, accumulators.halves
        with body.when(tirx.floormod(step, together) == together - 1):
            accumulators.fold()
    accumulators.fold()


def finish_tile(
    body: Body, tiling: Tiling, place: Place, buffers: dict[str, Stored], accumulators: Accumulators
) -> None:
    """Add up a split reduction, then bias, residual, activation and store.

    A store takes four channels of `tiling.stored_together` neighbouring pixels: of a wide accumulator whose pixels
    allow it a whole register, instead of a quarter. A split reduction is summed by all its work-items: each adds up,
    finishes and stores some of the vectors.
    """
    op, schedule, totals = tiling.op, tiling.schedule, accumulators.totals
    together = tiling.stored_together
    stored = f"float32x{4 * together}"
    quarters = schedule.lanes // 4
    tile_blocks = schedule.tile_channels // 4
    out_blocks = blocks(op.out_channels)
    ragged_blocks = tiling.channel_tiles * tile_blocks != out_blocks

    def store(row: Expr, pixel: Expr, block: Expr, value: Expr) -> None:
        """Finish and store `value`, of pixel `pixel` and those that are stored together with it."""
        out_block = body.let(place.channel_tile * tile_blocks + block)
        line = (place.image * out_blocks + out_block) * op.out_height + place.oy + row
        x = place.ox + pixel
        ragged_row = op.out_height % schedule.rows != 0 and not _is_zero(row)
        ragged_pixel = op.out_width % schedule.pixels != 0 and not _is_zero(pixel)
        limits = both(
            place.exists,
            out_block < out_blocks if ragged_blocks else None,
            place.oy + row < op.out_height if ragged_row else None,
            x < op.out_width if ragged_pixel else None,
        )
        if together > 1:
            x = tirx.floordiv(x, together)
        with body.when(limits):
            if op.has_residual:
                sum_ = value + body.load(body.line(buffers["residual"], line), x, stored)
                value = body.let(activate(body, sum_, op.activation, stored))
            body.store(body.line(buffers["output"], line), x, value)

    def finished(value: Expr, bias: Expr, dtype: str) -> Expr:
        """What does not need the residual, on whole vectors; with one, the activation comes after it."""
        result = value + bias
        return body.let(result if op.has_residual else activate(body, result, op.activation, dtype))

    if schedule.split == 1:
        biases = [buffers["bias"][place.channel_tile * schedule.vectors + vector] for vector in range(schedule.vectors)]
        values = {
            key: finished(body.let(register.value), biases[key[2]], tiling.accumulator)
            for key, register in totals.items()
        }
        # Neighbouring pixels of a block lie next to each other.
        for vector, q in itertools.product(range(schedule.vectors), range(quarters)):
            for row, pixel in itertools.product(range(schedule.rows), range(0, schedule.pixels, together)):
                group = [values[row, neighbour, vector] for neighbour in range(pixel, pixel + together)]
                store(row, pixel, vector * quarters + q, quarters_of(group, tiling.accumulator, q))
        return

    # Local memory as [share, vector of the tile, work-item]: neighbours write neighbouring vectors.
    local = tiling.grid.local[0] * tiling.grid.local[1]
    count = len(totals) * quarters
    partial = body.shared(schedule.split * count * local, stored)
    for number, register in enumerate(totals.values()):
        value = body.let(register.value)
        for q in range(quarters):
            slot = (place.part * count + (number * quarters + q)) * local + place.neighbour
            body.store(partial, slot, quarter(value, tiling.accumulator, q))
    body.barrier()
    for turn in range(ceil_div(count, schedule.split)):
        number = body.let(place.part + turn * schedule.split)
        with body.when(number < count if (turn + 1) * schedule.split > count else None):
            total = partial[number * local + place.neighbour]
            for part in range(1, schedule.split):
                total = total + partial[(part * count + number) * local + place.neighbour]
            total = body.let(total)
            rest = tirx.floordiv(number, tile_blocks)
            row = tirx.floordiv(rest, schedule.pixels) if schedule.rows > 1 else 0
            pixel = tirx.floormod(rest, schedule.pixels) if schedule.pixels > 1 else 0
            block = tirx.floormod(number, tile_blocks)
            total = finished(total, buffers["bias"][place.channel_tile * tile_blocks + block], stored)
            store(row, pixel, block, total)


def _is_zero(value: Expr) -> bool:
    return isinstance(value, int) and value == 0
