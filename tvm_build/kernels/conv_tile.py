"""The accumulators of one convolution tile: how products enter them, and how they leave for memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx

from tvm_build.kernels.activation import activate
from tvm_build.kernels.body import Body, Expr, Register, both, ceil_div, const, quarter, spread
from tvm_build.kernels.conv_tiling import ConvSchedule, Place, Tiling
from tvm_build.kernels.stored import Stored
from tvm_build.ops import blocks

# Products that are added up one by one in half, and how many there must be for groups to matter.
_GROUP_PRODUCTS = 64
LONG_SUM = 256

Accumulators = dict[tuple[int, int, int], Register]
"""By row, pixel and vector of the tile."""


def start_tile(body: Body, tiling: Tiling) -> Accumulators:
    """One register of zeros per row, pixel and vector."""
    schedule = tiling.schedule
    return {
        (row, pixel, vector): body.register(tiling.accumulator)
        for row in range(schedule.rows)
        for pixel in range(schedule.pixels)
        for vector in range(schedule.vectors)
    }


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


@contextmanager
def reduction_loop(
    body: Body,
    tiling: Tiling,
    accumulators: Accumulators,
    bounds: tuple[Expr, Expr],
    *,
    steps: int,
    products: int,
    all_products: int,
) -> Iterator[tuple[Expr, Accumulators]]:
    """A loop over steps of a reduction, and the registers that their products are added to.

    A half has 11 bits: in a sum that is added up one by one the error grows with the number of products, and a 3x3
    convolution of 512 channels is off by percents. Long sums in half are therefore added up in groups, each from zero
    in registers of its own, which then go into the accumulators.

    Args:
        body: of the kernel.
        tiling: of the convolution.
        accumulators: of the tile.
        bounds: first step, and the one after the last.
        steps: the most that lie between them.
        products: that a step adds to each accumulator.
        all_products: that go into each accumulator in the whole reduction of this work-item.
    """
    group = max(1, round(_GROUP_PRODUCTS / products))
    if not tiling.accumulator.startswith("float16") or all_products < LONG_SUM or steps < 2:
        with body.loop(*bounds) as step:
            yield step, accumulators
        return
    first, stop = bounds
    # Whole groups have loops of constant length.
    whole = isinstance(stop, int) and isinstance(first, int) and (stop - first) % group == 0
    with body.loop(0, ceil_div(steps, group)) as number:
        start = body.let(first + number * group)
        count = group if whole else body.let(tirx.Min(const(group, "int32"), stop - start))
        sums = start_tile(body, tiling)
        with body.loop(0, count) as step:
            yield body.let(start + step), sums
        for key, register in accumulators.items():
            register.set(register.value + sums[key].value)


def finish_tile(
    body: Body, tiling: Tiling, place: Place, buffers: dict[str, Stored], accumulators: Accumulators
) -> None:
    """Add up a split reduction, then bias, residual, activation and store, four channels at a time.

    A split reduction is summed by all its work-items: each adds up, finishes and stores some of the vectors.
    """
    op, schedule = tiling.op, tiling.schedule
    dtype = tiling.precision.computed(4)
    quarters = schedule.lanes // 4
    tile_blocks = schedule.tile_channels // 4
    out_blocks = blocks(op.out_channels)
    ragged_blocks = tiling.channel_tiles * tile_blocks != out_blocks

    def store(row: Expr, pixel: Expr, block: Expr, value: Expr) -> None:
        out_block = body.let(place.channel_tile * tile_blocks + block)
        line = (place.image * out_blocks + out_block) * op.out_height + place.oy + row
        x = place.ox + pixel
        ragged_row = op.out_height % schedule.rows != 0 and not _is_zero(row)
        ragged_pixel = op.out_width % schedule.pixels != 0 and not _is_zero(pixel)
        limits = both(
            place.exists,
            out_block < out_blocks if ragged_blocks else None,
            place.oy + row < op.out_height if ragged_row else None,
            place.ox + pixel < op.out_width if ragged_pixel else None,
        )
        with body.when(limits):
            result = value + buffers["bias"][out_block]
            if op.has_residual:
                result = result + body.load(body.line(buffers["residual"], line), x, dtype)
            result = body.let(activate(body, result, op.activation, dtype))
            body.store(body.line(buffers["output"], line), x, result)

    if schedule.split == 1:
        for (row, pixel, vector), register in accumulators.items():
            value = body.let(register.value)
            for q in range(quarters):
                store(row, pixel, vector * quarters + q, quarter(value, tiling.accumulator, q))
        return

    # Local memory as [share, vector of the tile, work-item]: neighbours write neighbouring vectors.
    local = tiling.grid.local[0] * tiling.grid.local[1]
    count = len(accumulators) * quarters
    partial = body.shared(schedule.split * count * local, dtype)
    for number, register in enumerate(accumulators.values()):
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
            store(row, pixel, tirx.floormod(number, tile_blocks), total)


def _is_zero(value: Expr) -> bool:
    return isinstance(value, int) and value == 0
