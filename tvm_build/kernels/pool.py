"""Pooling on C4: windows, and the mean of whole images."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from tvm_build.kernels.body import Body, Expr, Grid, Register, both, build_func, const, spread
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.conv_tiling import inside
from tvm_build.kernels.pointwise import FlatSchedule, flat_kernel
from tvm_build.kernels.stored import Stored, c4
from tvm_build.ops import GlobalAverage, Pool2d, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision

_UNROLLED_TAPS = 25
_LOWEST = {"float32": -3.402823e38, "float16": -65504.0}


@dataclass(frozen=True)
class MeanSchedule:
    """`split` work-items share the pixels of one channel block."""

    split: int = 16


def build_pool2d(op: Pool2d, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """One output vector per work-item.

    A maximum starts from the lowest finite number, so a window wholly in the padding gives that, not minus infinity.
    An average divides by the number of taps inside the image, or inside image and padding with `count_include_pad`:
    with a rounded-up output size the last window may reach beyond the padding, where it never counts.
    """
    out_plane = op.out_height * op.out_width
    items = op.batch * blocks(op.channels) * out_plane
    kh, kw = op.kernel
    top, left, bottom, right = op.padding
    # A maximum is one of its arguments: nothing to convert. A mean is a sum of many, so in float32.
    dtype = precision.stored(4) if op.kind == "max" else "float32x4"
    unrolled = kh * kw <= _UNROLLED_TAPS

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        pixel = body.let(tirx.floormod(index, out_plane))
        base = body.let(tirx.floordiv(index, out_plane) * op.in_height)
        y = body.let(tirx.floordiv(pixel, op.out_width) * op.stride[0] - top)
        x = body.let(tirx.floormod(pixel, op.out_width) * op.stride[1] - left)
        highest_y = (op.out_height - 1) * op.stride[0] - top
        highest_x = (op.out_width - 1) * op.stride[1] - left
        total = body.register(dtype)
        if op.kind == "max":
            total.set(const(_LOWEST[precision.storage], dtype))

        def tap(ky: Expr, kx: Expr) -> None:
            iy, ix = y + ky * op.dilation[0], x + kx * op.dilation[1]
            ok = both(
                _tap_inside(iy, ky, (kh, op.dilation[0]), (-top, highest_y), op.in_height),
                _tap_inside(ix, kx, (kw, op.dilation[1]), (-left, highest_x), op.in_width),
            )
            with body.when(ok):
                value = body.let(body.load(body.line(buffers["input"], base + iy), ix, dtype))
                total.set(tirx.Max(total.value, value) if op.kind == "max" else total.value + value)

        if unrolled:
            for ky in range(kh):
                for kx in range(kw):
                    tap(ky, kx)
        else:
            with body.loop(0, kh) as ky, body.loop(0, kw) as kx:
                tap(ky, kx)
        result = total.value
        if op.kind == "avg":
            grown = op.count_include_pad
            y_range = (-top, op.in_height + bottom) if grown else (0, op.in_height)
            x_range = (-left, op.in_width + right) if grown else (0, op.in_width)
            rows = body.let(_taps_inside(y, (kh, op.dilation[0]), y_range))
            columns = body.let(_taps_inside(x, (kw, op.dilation[1]), x_range))
            # A window without any tap inside sums to zero; dividing by one keeps it finite.
            count = body.let(tirx.Cast("float32", tirx.Max(rows * columns, const(1, "int32"))))
            result = result / spread(count, 4)
        body.store(buffers["output"], index, result)

    in_shape = (op.batch, op.channels, op.in_height, op.in_width)
    out_shape = (op.batch, op.channels, op.out_height, op.out_width)
    parameters = {
        "input": c4(in_shape, precision.stored(4), memory_of(op, "input0")),
        "output": c4(out_shape, precision.stored(4), memory_of(op, "output")),
    }
    flops = 4 * items * kh * kw
    return flat_kernel(f"{op.kind}_pool", parameters, write, items=items, schedule=schedule, flops=flops)


def _tap_inside(position: Expr, tap: Expr, taps: tuple[int, int], starts: tuple[int, int], extent: int) -> Expr | None:
    """Whether a tap lies in the image; None where it always does.

    `tap` is a constant or a loop variable, `taps` their count and dilation, `starts` the range of tap 0's position.
    """
    count, dilation = taps
    first, last = (tap, tap) if isinstance(tap, int) else (0, count - 1)
    return inside(position, starts[0] + first * dilation, starts[1] + last * dilation, extent)


def _taps_inside(start: Expr, taps: tuple[int, int], limits: tuple[int, int]) -> Expr:
    """How many of the taps (count, dilation) from `start` on lie in [limits[0], limits[1])."""
    count, dilation = taps

    def before(limit: int) -> Expr:
        steps = tirx.floordiv(tirx.Max(limit - start, const(0, "int32")) + (dilation - 1), dilation)
        return tirx.Min(steps, const(count, "int32"))

    return before(limits[1]) - before(limits[0])


def build_global_average(op: GlobalAverage, schedule: MeanSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """Mean over the image in float32, `split` work-items per channel block and a local-memory sum."""
    plane = op.height * op.width
    count = op.batch * blocks(op.channels)
    split = min(schedule.split, plane)

    def write(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        total = sum_pixels(body, buffers["input"], (group[0] * plane, plane), (item[0], split))
        if split == 1:
            body.store(buffers["output"], group[0], total.value * const(1 / plane, "float32x4"))
            return
        partial = body.shared(split, "float32x4")
        body.store(partial, item[0], total.value)
        body.barrier()
        with body.when(item[0] == 0):
            result = partial[0]
            for part in range(1, split):
                result = result + partial[part]
            body.store(buffers["output"], group[0], result * const(1 / plane, "float32x4"))

    shape = (op.batch, op.channels, op.height, op.width)
    parameters = {
        "input": c4(shape, precision.stored(4), memory_of(op, "input0")),
        "output": c4((op.batch, op.channels, 1, 1), precision.stored(4), memory_of(op, "output")),
    }
    func = build_func("global_average", parameters, Grid((count,), (split,)), write)
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles={"input": "input0", "output": "output"},
        flops=4 * count * plane,
        bytes=4 * precision.item_bytes * count * (plane + 1),
        schedule=schedule,
    )


def sum_pixels(body: Body, source: Stored, pixels: tuple[Expr, int], part: tuple[Expr, int]) -> Register:
    """Sum of `source` in float32 over this work-item's share of the pixels.

    Args:
        body: the kernel.
        source: vectors of four.
        pixels: the first one's index, and how many follow each other.
        part: number of the share, and of shares; share k of n has pixels k, k + n, k + 2n, ...
    """
    first, count = pixels
    index, split = part
    total = body.register("float32x4")
    whole, rest = divmod(count, split)
    if whole:
        with body.loop(0, whole) as turn:
            total.set(total.value + body.load(source, first + turn * split + index, "float32x4"))
    if rest:
        with body.when(index < rest):
            total.set(total.value + body.load(source, first + whole * split + index, "float32x4"))
    return total
