"""Operators in float64, by PyTorch and numpy, and random data for them in the layouts of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_build.kernel_bundle import KernelCase
from tvm_build.kernels.winograd import INPUT_MATRICES as WINOGRAD_INPUT
from tvm_build.kernels.winograd import OUTPUT_MATRICES as WINOGRAD_OUTPUT
from tvm_build.ops import (
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Operator,
    Pack,
    Pool2d,
    Unpack,
    WinogradInput,
    WinogradOutput,
    blocks,
)

Array = np.ndarray[Any, Any]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


def to_c4(x: Array) -> Array:
    """NCHW to [N, C / 4, H, W, 4]. Lanes that no channel has hold noise: kernels must not let it through."""
    n, c, h, w = x.shape
    padded = np.random.default_rng(1).standard_normal((n, blocks(c) * 4, h, w)).astype(np.float32)
    padded[:, :c] = x
    return np.ascontiguousarray(padded.reshape(n, blocks(c), 4, h, w).transpose(0, 1, 3, 4, 2))


def from_c4(y: Array, channels: int) -> Array:
    """[N, C / 4, H, W, 4] to NCHW."""
    n, b, h, w, _ = y.shape
    return y.transpose(0, 1, 4, 2, 3).reshape(n, b * 4, h, w)[:, :channels]


def make_case(
    op: Operator, seed: int = 0, schedule: Any = None, *, rectified_halves: bool = False
) -> tuple[KernelCase, Array, Callable[[Array], Array]]:
    """Random data for `op`: the case, the result in float64, and how to bring the kernel's output into its layout.

    With `rectified_halves` all numbers are ones that half has, and a convolution's inputs are none below zero.
    """
    generator = np.random.default_rng(seed)

    def values(*shape: int) -> Array:
        drawn = generator.standard_normal(shape, dtype=np.float32)
        return drawn.astype(np.float16).astype(np.float32) if rectified_halves else drawn

    def case(inputs: dict[str, Array], **constants: Array) -> KernelCase:
        return KernelCase(type(op).__name__, op, inputs, constants, schedule)

    match op:
        case Conv2d():
            return _conv(op, values, case, np.abs if rectified_halves else np.asarray)
        case Dense():
            weight, bias = values(op.out_features, op.in_features), values(op.out_features)
            if op.input_is_c4:
                x = values(op.batch, op.in_features, 1, op.pooled_pixels)
                inputs, flat = {"input0": to_c4(x)}, _double(x).mean((2, 3))
            else:
                x = values(op.batch, op.in_features)
                inputs, flat = {"input0": x}, _double(x)
            result = flat @ _double(weight).T + _double(bias)
            expected = ACTIVATIONS[op.activation](result).numpy()
            return case(inputs, weight=weight, bias=bias), expected, lambda y: y
        case Pool2d():
            x = values(op.batch, op.channels, op.in_height, op.in_width)
            return case({"input0": to_c4(x)}), _pool(op, x), lambda y: from_c4(y, op.channels)
        case GlobalAverage():
            x = values(op.batch, op.channels, op.height, op.width)
            expected = x.astype(np.float64).mean((2, 3), keepdims=True)
            return case({"input0": to_c4(x)}), expected, lambda y: from_c4(y, op.channels)
        case Elementwise():
            a = values(op.batch, op.channels, op.height, op.width)
            b = values(op.batch, op.channels, *((1, 1) if op.broadcast_pixels else (op.height, op.width)))
            x, y = _double(a), _double(b)
            result = {"add": x + y, "sub": x - y, "mul": x * y, "copy": x}[op.operator]
            inputs = {"input0": to_c4(a)} | ({} if op.operator == "copy" else {"input1": to_c4(b)})
            expected = ACTIVATIONS[op.activation](result).numpy()
            return case(inputs), expected, lambda y: from_c4(y, op.channels)
        case Pack():
            x = values(op.batch, op.channels, op.height, op.width)
            zeros = np.zeros((op.batch, -op.channels % 4, op.height, op.width), np.float32)
            # Every lane is compared: the ones beyond the last channel must be zero.
            expected = np.concatenate([x, zeros], 1)
            return case({"input0": x}), expected, lambda y: from_c4(y, blocks(op.channels) * 4)
        case Unpack():
            x = values(op.batch, op.channels, op.height, op.width)
            return case({"input0": to_c4(x)}), x, lambda y: y
        case WinogradInput():
            x = values(op.batch, op.channels, op.in_height, op.in_width)
            return case({"input0": to_c4(x)}), _winograd_input(op, x), lambda y: from_c4(y, op.channels)
        case WinogradOutput():
            n = op.tile + 2
            x = values(op.batch * n * n, op.channels, op.tiles_y, op.tiles_x)
            bias = values(op.channels)
            inputs = {"input0": to_c4(x)}
            result = torch.from_numpy(_winograd_output(op, x)) + _double(bias).reshape(1, -1, 1, 1)
            if op.has_residual:
                residual = values(op.batch, op.channels, op.out_height, op.out_width)
                inputs["residual"] = to_c4(residual)
                result = result + _double(residual)
            expected = ACTIVATIONS[op.activation](result).numpy()
            return case(inputs, bias=bias), expected, lambda y: from_c4(y, op.channels)
        case Interleave():
            phases = op.stride[0] * op.stride[1]
            x = values(op.batch, phases * blocks(op.channels) * 4, op.in_height, op.in_width)
            return case({"input0": to_c4(x)}), interleaved(op, x), lambda y: from_c4(y, op.channels)
        case ConcatChannels():
            xs = [values(op.batch, channels, op.height, op.width) for channels in op.channels]
            inputs = {f"input{i}": to_c4(x) for i, x in enumerate(xs)}
            return case(inputs), np.concatenate(xs, 1), lambda y: from_c4(y, sum(op.channels))


def interleaved(op: Interleave, x: Array) -> Array:
    """By the definition, one pixel after the other."""
    y = np.zeros((op.batch, op.channels, op.out_height, op.out_width), x.dtype)
    rounded = blocks(op.channels) * 4
    for row in range(op.out_height):
        for column in range(op.out_width):
            i, phase_y = divmod(row + op.crop[0], op.stride[0])
            j, phase_x = divmod(column + op.crop[1], op.stride[1])
            first = (phase_y * op.stride[1] + phase_x) * rounded
            y[:, :, row, column] = x[:, first : first + op.channels, i, j]
    return y


def _double(x: Array) -> Tensor:
    return torch.from_numpy(x).double()


def _conv(
    op: Conv2d, values: Callable[..., Array], case: Callable[..., KernelCase], rectify: Callable[[Array], Array]
) -> tuple[KernelCase, Array, Callable[[Array], Array]]:
    def product(source: Conv2d) -> tuple[Array, Array, Tensor]:
        x = rectify(values(source.batch, source.in_channels, source.in_height, source.in_width))
        if source.filter_sets > 1:
            weight = values(source.filter_sets * source.out_channels, source.in_channels, 1, 1)
            sets = _double(weight).reshape(source.filter_sets, source.out_channels, source.in_channels)
            chosen = sets[torch.arange(source.batch) % source.filter_sets]
            return x, weight, torch.einsum("noi,nihw->nohw", chosen, _double(x))
        weight = values(source.out_channels, source.in_channels // source.groups, *source.kernel)
        kept = weight
        if source.columns is not None:
            mask = np.zeros(weight[0].size, np.float32)
            mask[list(source.columns)] = 1
            kept = weight * mask.reshape(1, *weight.shape[1:])
        top, left, bottom, right = source.padding
        padded = F.pad(_double(x), (left, right, top, bottom))
        shape = {"stride": source.stride, "dilation": source.dilation, "groups": source.groups}
        return x, weight, F.conv2d(padded, _double(kept), **shape)

    x, weight, result = product(op)
    bias = values(op.out_channels)
    result = result + _double(bias).reshape(1, -1, 1, 1)
    inputs = {"input0": to_c4(x)}
    constants = {"weight": weight, "bias": bias}
    if op.shortcut is not None:
        x, constants["shortcut_weight"], added = product(op.shortcut)
        inputs["input1"] = to_c4(x)
        result = result + added
    if op.has_residual:
        residual = values(op.batch, op.out_channels, op.out_height, op.out_width)
        inputs["residual"] = to_c4(residual)
        result = result + _double(residual)
    expected = ACTIVATIONS[op.activation](result).numpy()
    return case(inputs, **constants), expected, lambda y: from_c4(y, op.out_channels)


def _winograd_input(op: WinogradInput, x: Array) -> Array:
    """B^T d B of each tile, d cut from the padded image."""
    m, n = op.tile, op.tile + 2
    top, left = op.padding[:2]
    padded = np.zeros((op.batch, op.channels, op.tiles_y * m + n, op.tiles_x * m + n))
    padded[:, :, top : top + op.in_height, left : left + op.in_width] = x
    matrix = np.asarray(WINOGRAD_INPUT[m], np.float64)
    result = np.zeros((op.batch, n * n, op.channels, op.tiles_y, op.tiles_x))
    for ty in range(op.tiles_y):
        for tx in range(op.tiles_x):
            tile = padded[:, :, ty * m : ty * m + n, tx * m : tx * m + n]
            result[:, :, :, ty, tx] = np.einsum("ik,bckl,jl->bijc", matrix, tile, matrix).reshape(op.batch, n * n, -1)
    return result.reshape(-1, op.channels, op.tiles_y, op.tiles_x)


def _winograd_output(op: WinogradOutput, x: Array) -> Array:
    """A^T M A of each tile."""
    m, n = op.tile, op.tile + 2
    tiles = x.astype(np.float64).reshape(op.batch, n, n, op.channels, op.tiles_y, op.tiles_x)
    matrix = np.asarray(WINOGRAD_OUTPUT[m], np.float64)
    whole = np.einsum("ik,bklcyx,jl->bcyixj", matrix, tiles, matrix)
    whole = whole.reshape(op.batch, op.channels, op.tiles_y * m, op.tiles_x * m)
    return whole[:, :, : op.out_height, : op.out_width]


def _pool(op: Pool2d, x: Array) -> Array:
    """By the definition, one window at a time."""
    top, left, bottom, right = op.padding
    y = np.zeros((op.batch, op.channels, op.out_height, op.out_width))
    for oy in range(op.out_height):
        for ox in range(op.out_width):
            rows = [oy * op.stride[0] - top + k * op.dilation[0] for k in range(op.kernel[0])]
            columns = [ox * op.stride[1] - left + k * op.dilation[1] for k in range(op.kernel[1])]
            inside = [
                x[:, :, r, c].astype(np.float64)
                for r in rows
                for c in columns
                if 0 <= r < op.in_height and 0 <= c < op.in_width
            ]
            counted = sum(
                -top <= r < op.in_height + bottom and -left <= c < op.in_width + right for r in rows for c in columns
            )
            if op.kind == "max":
                y[:, :, oy, ox] = np.max(inside, axis=0)
            else:
                y[:, :, oy, ox] = np.sum(inside, axis=0) / (counted if op.count_include_pad else len(inside))
    return y
