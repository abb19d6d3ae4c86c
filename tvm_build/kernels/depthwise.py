"""The reduction of a depthwise convolution: a block of four channels is one float4 throughout.

Every channel has its own filter, so products are lane by lane. Taps of neighbouring pixels share their loads: a 3x3
kernel over four pixels reads six vectors for each input row, not twelve.
"""

from __future__ import annotations

import numpy as np

from structadmm.errors import InvariantError
from tvm_build.kernels.body import Body, Expr
from tvm_build.kernels.conv_tile import Accumulators, Registers, short_sum, steps_in_half
from tvm_build.kernels.conv_tiling import Array, Place, Tiling, input_pixel, input_row
from tvm_build.kernels.stored import Stored, c4
from tvm_build.ops import Conv2d, blocks, memory_of


def is_depthwise(op: Conv2d) -> bool:
    """Whether a launch reads for each output channel the channel of its own number alone, also of a shortcut's input.

    To be asked of the launch: beside a dense convolution, a depthwise shortcut is computed like a dense one.
    """
    own = op.groups == op.in_channels == op.out_channels and op.groups > 1
    return own and (op.shortcut is None or is_depthwise(op.shortcut))


class DepthwiseReduction:
    """Lane-wise products with `weight` [C, 1, kh, kw]; a tile is one block of channels, its reduction is not split.

    `prefix` as in `DenseReduction`.
    """

    def __init__(self, tiling: Tiling, weight: Array, prefix: str = "") -> None:
        if tiling.schedule.tile_channels != 4 or tiling.schedule.split != 1:
            raise InvariantError(f"a depthwise tile has 4 channels and split 1, got {tiling.schedule}")
        self.tiling = tiling
        self.prefix = prefix
        op = tiling.op
        shape = (op.batch, op.in_channels, op.in_height, op.in_width)
        self.input = c4(shape, tiling.precision.stored(4), memory_of(op, "input0"))
        kh, kw = op.kernel
        packed = np.zeros((tiling.channel_tiles * 4, kh, kw), np.float32)
        packed[: tiling.op.out_channels] = weight[:, 0]
        by_block = packed.reshape(-1, 4, kh, kw).transpose(0, 2, 3, 1)
        self.constants: dict[str, Array] = {f"{prefix}weight": np.ascontiguousarray(by_block)}

    def write(self, body: Body, place: Place, buffers: dict[str, Stored], accumulators: Accumulators) -> None:
        """Loop over the kernel's rows, or write them out."""
        op, schedule = self.tiling.op, self.tiling.schedule
        vector = self.tiling.precision.computed(4)
        kh, kw = op.kernel
        source, weight = buffers[f"{self.prefix}input"], buffers[f"{self.prefix}weight"]

        def kernel_row(ky: Expr, sums: Registers) -> None:
            weights = body.ahead(body.line(weight, place.channel_tile), ky * kw)
            ws = [body.let(body.load(weights, kx, vector)) for kx in range(kw)]
            for row in self.tiling.rows_inside(ky):
                iy, row_ok = input_row(self.tiling, place, row, ky)
                with body.when(row_ok):
                    block = place.image * blocks(op.in_channels) + place.channel_tile
                    start = body.line(source, block * op.in_height + iy)
                    pixels: dict[int, Expr] = {}
                    for kx in range(kw):
                        for pixel in self.tiling.pixels_inside(kx):
                            distance = pixel * op.stride[1] + kx * op.dilation[1]
                            if distance not in pixels:
                                ix, ok = input_pixel(self.tiling, place, pixel, kx)
                                pixels[distance] = body.let(body.load(start, ix, vector, ok))
                    for pixel in range(schedule.pixels):
                        total = sums[row, pixel, 0].value
                        for kx in range(kw):
                            if pixel in self.tiling.pixels_inside(kx):
                                total = total + pixels[pixel * op.stride[1] + kx * op.dilation[1]] * ws[kx]
                        sums[row, pixel, 0].set(total)

        if schedule.unroll_rows:
            together = steps_in_half(kw)
            for first in range(0, kh, together):
                with short_sum(accumulators) as sums:
                    for ky in range(first, min(first + together, kh)):
                        kernel_row(ky, sums)
        else:
            with body.loop(0, kh) as ky, short_sum(accumulators) as sums:
                kernel_row(ky, sums)
