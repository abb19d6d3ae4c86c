"""Depthwise convolution on C4: every channel has its own filter, so a block of four channels is one float4 throughout.

A work-item computes `rows` x `pixels` neighbouring outputs of one block. Taps of neighbouring pixels share their loads:
a 3x3 kernel over four pixels reads six vectors for each input row, not twelve.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvm_build.kernels.body import Body, Expr, load_if
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.conv2d import (
    Array,
    ConvSchedule,
    Tiling,
    assemble,
    finish_tile,
    input_column,
    input_row,
    pack_bias,
    place_tile,
)
from tvm_build.ops import Conv2d, blocks


def is_depthwise(op: Conv2d) -> bool:
    """Whether each output channel reads exactly the input channel of its own number."""
    return op.groups == op.in_channels == op.out_channels and op.groups > 1


def build_depthwise(op: Conv2d, weight: Array, bias: Array, schedule: ConvSchedule) -> BuiltKernel:
    """The kernel for a depthwise convolution; `schedule.tile_channels` must be 4 and `split` 1."""
    tiling = Tiling(op, schedule)
    kh, kw = op.kernel
    plane = op.in_height * op.in_width
    offsets = sorted({p * op.stride[1] + kx * op.dilation[1] for p in range(schedule.pixels) for kx in range(kw)})
    packed = np.zeros((tiling.channel_tiles * 4, kh, kw), np.float32)
    packed[: op.out_channels] = weight[:, 0]
    packed = np.ascontiguousarray(packed.reshape(-1, 4, kh, kw).transpose(0, 2, 3, 1))

    def write(body: Body, buffers: dict[str, Any], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        place = place_tile(body, tiling, group, item)
        accumulators = {
            (r, p, 0): body.register("float32x4") for r in range(schedule.rows) for p in range(schedule.pixels)
        }
        base = body.let((place.image * blocks(op.in_channels) + place.channel_tile) * plane)

        def kernel_row(ky: Expr) -> None:
            ws = [body.let(buffers["weight"][(place.channel_tile * kh + ky) * kw + kx]) for kx in range(kw)]
            for r in range(schedule.rows):
                iy, row_ok = input_row(op, tiling, place, r, ky)
                with body.when(row_ok):
                    start = body.let(base + iy * op.in_width)
                    pixels = {}
                    for offset in offsets:
                        ix, ok = input_column(op, tiling, place, offset)
                        pixels[offset] = body.let(load_if(ok, buffers["input"][start + ix], "float32x4"))
                    for p in range(schedule.pixels):
                        total = accumulators[r, p, 0].value
                        for kx in range(kw):
                            total = total + pixels[p * op.stride[1] + kx * op.dilation[1]] * ws[kx]
                        accumulators[r, p, 0].set(total)

        if schedule.unroll_rows:
            for ky in range(kh):
                kernel_row(ky)
        else:
            with body.loop(0, kh) as ky:
                kernel_row(ky)
        finish_tile(body, op, tiling, place, buffers, accumulators, item[2])

    return assemble("depthwise", op, tiling, {"weight": packed, "bias": pack_bias(op, bias, tiling)}, write, schedule)
