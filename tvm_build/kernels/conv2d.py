"""Convolution on C4: one work-item computes a tile of pixels and output channels in registers, in one launch.

    out[n, o, y, x] = act(bias[o] + residual[n, o, y, x]
                          + sum over i, ky, kx of w[o, i, ky, kx] * in[n, i, y*sh - pt + ky*dh, x*sw - pl + kx*dw])

A work-item holds `rows * pixels * vectors` accumulators of `lanes` output channels. The sum is a `DenseReduction`, a
`SparseReduction` over the kept columns, or a `DepthwiseReduction`; a residual block's shortcut convolution, which reads
another tensor, can be a second reduction into the same accumulators, so that its result never goes to memory.

Small layers leave a GPU idle, so the reduction can be split: `split` work-items of one group each take a share of it,
put their accumulators in local memory, and share the work of adding them up and storing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from structadmm.errors import InvariantError
from tvm_build.kernels.body import Body, Expr, build_func, bytes_of
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.column_sparse import SparseReduction
from tvm_build.kernels.conv_tile import finish_tile, start_tile
from tvm_build.kernels.conv_tiling import Array, ConvSchedule, Tiling, place_tile, weight_lanes
from tvm_build.kernels.dense_reduction import DenseReduction
from tvm_build.kernels.depthwise import DepthwiseReduction, is_depthwise
from tvm_build.kernels.stored import Parameter, Stored, c4, run
from tvm_build.ops import Conv2d, memory_of
from tvm_build.precision import FLOAT32, Precision

Reduction = DenseReduction | SparseReduction | DepthwiseReduction


def flatten_pixels(op: Conv2d) -> Conv2d:
    """A 1x1 convolution that visits every pixel, as one over a single row: tiles then straddle the image's rows."""
    # A row of an image is a row of pixels.
    plain = op.kernel == (1, 1) and op.stride == (1, 1) and not any(op.padding) and op.shortcut is None
    plain = plain and not op.images
    return replace(op, in_height=1, in_width=op.in_height * op.in_width) if plain else op


def build_conv2d(
    op: Conv2d,
    weight: Array,
    bias: Array,
    schedule: ConvSchedule,
    shortcut_weight: Array | None = None,
    precision: Precision = FLOAT32,
) -> BuiltKernel:
    """The kernel for a convolution of any kind."""
    op = flatten_pixels(op)
    tiling = Tiling(op, schedule, precision)
    depthwise = is_depthwise(op)
    reductions = [_reduction(tiling, weight, depthwise)]
    if op.shortcut is not None:
        _check_shortcut(op, op.shortcut)
        if shortcut_weight is None:
            raise InvariantError("a convolution with a shortcut needs the constant 'shortcut_weight'")
        shortcut = Tiling(op.shortcut, schedule, precision)
        reductions.append(_reduction(shortcut, shortcut_weight, depthwise, "shortcut_"))

    padded_bias = np.zeros(tiling.channel_tiles * schedule.tile_channels, np.float32)
    padded_bias[: op.out_channels] = bias
    # A split tile is finished four channels at a time.
    constants: dict[str, Array] = {"bias": padded_bias.reshape(-1, schedule.lanes if schedule.split == 1 else 4)}
    parameters = {"output": _pixels(tiling, "output")}
    roles = {"output": "output"}
    if op.has_residual:
        parameters["residual"] = _pixels(tiling, "residual")
        roles["residual"] = "residual"
    for number, reduction in enumerate(reductions):
        name = "input" if number == 0 else "shortcut_input"
        parameters[name] = reduction.input
        roles[name] = f"input{number}"
        for key, array in reduction.constants.items():
            constants[key] = array if array.dtype == np.int32 else precision.pack(array)
    size = sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values())
    for name, array in constants.items():
        parameters[name] = _constant_parameter(name, array, tiling)
        roles[name] = f"constant:{name}"

    def write(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        place = place_tile(body, tiling, group, item)
        accumulators = start_tile(body, tiling)
        for reduction in reductions:
            reduction.write(body, place, buffers, accumulators)
        finish_tile(body, tiling, place, buffers, accumulators)

    return BuiltKernel(
        func=build_func(_name(op), parameters, tiling.grid, write),
        parameters=parameters,
        roles=roles,
        constants=constants,
        flops=2 * op.macs,
        bytes=size + sum(array.nbytes for array in constants.values()),
        schedule=schedule,
    )


def _pixels(tiling: Tiling, role: str) -> Parameter:
    """The output, or what is added to it, in vectors of as many pixels as are stored together."""
    op, together = tiling.op, tiling.stored_together
    shape = (op.batch, op.out_channels, op.out_height, op.out_width // together)
    return c4(shape, tiling.precision.stored(4 * together), memory_of(op, role))


def _constant_parameter(name: str, array: Array, tiling: Tiling) -> Parameter:
    """Tables are runs of integers, weights have a line for each tile of output channels."""
    schedule = tiling.schedule
    if array.dtype == np.int32:
        return run(array.size, "int32", schedule.tables)
    if name == "bias":
        return run(len(array), f"{array.dtype}x{array.shape[1]}")
    lanes = weight_lanes(schedule, tiling.precision)
    lines = tiling.channel_tiles * tiling.op.filter_sets
    width = array.size // (lines * lanes)
    return Parameter(lines, width, f"{array.dtype}x{lanes}", schedule.weights)


def _reduction(tiling: Tiling, weight: Array, depthwise: bool, prefix: str = "") -> Reduction:
    if tiling.op.columns is not None:
        return SparseReduction(tiling, weight, prefix)
    return (DepthwiseReduction if depthwise else DenseReduction)(tiling, weight, prefix)


def _name(op: Conv2d) -> str:
    if op.columns is not None:
        return "column_sparse"
    return "depthwise" if is_depthwise(op) else "conv2d"


def _check_shortcut(op: Conv2d, shortcut: Conv2d) -> None:
    def shape(conv: Conv2d) -> tuple[int, ...]:
        return conv.batch, conv.out_channels, conv.out_height, conv.out_width

    if shape(op) != shape(shortcut):
        raise InvariantError(f"a shortcut must have the output shape {shape(op)}, got {shape(shortcut)}")
