"""What an operator computes, in float64, on random data: the measure of every candidate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from structadmm.errors import InvariantError
from tvm_build.kernels.winograd import INPUT_MATRICES, OUTPUT_MATRICES
from tvm_build.ops import (
    Activation,
    Conv2d,
    Dense,
    GlobalAverage,
    Operator,
    WinogradInput,
    WinogradOutput,
    blocks,
)
from tvm_build.tuning.task_key import describe_operator

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TaskData:
    """Inputs, constants and result of one operator.

    Attributes:
        inputs: by role ("input0", "input1", "residual"), float32, in the kernel's layout.
        constants: as `tvm_build.kernels.build_kernel` takes them.
        expected: float64 in the output's layout; zero in the lanes of C4 that no channel has.
        channels: channels of a C4 output; None for a plain one.
    """

    inputs: Mapping[str, Array]
    constants: Mapping[str, Array]
    expected: Array
    channels: int | None


def task_data(op: Operator) -> TaskData:
    """Random data for `op`, the same every time; results have a variance of about one.

    Raises:
        InvariantError: `op` is of a kind that has nothing to tune.
    """
    seed = hashlib.sha256(json.dumps(describe_operator(op), sort_keys=True).encode()).digest()
    random = np.random.default_rng(int.from_bytes(seed[:8], "little"))
    match op:
        case Conv2d():
            return _conv(op, random)
        case Dense():
            return _dense(op, random)
        case GlobalAverage():
            x = random.standard_normal((op.batch, op.channels, op.height, op.width), np.float32)
            mean = x.astype(np.float64).mean((2, 3), keepdims=True)
            return TaskData({"input0": _c4(x, random)}, {}, _c4(mean), op.channels)
        case WinogradInput():
            x = random.standard_normal((op.batch, op.channels, op.in_height, op.in_width), np.float32)
            return TaskData({"input0": _c4(x, random)}, {}, _c4(_winograd_tiles(op, x)), op.channels)
        case WinogradOutput():
            return _winograd_output(op, random)
        case _:
            raise InvariantError(f"there is nothing to tune about {op}")


def _conv(op: Conv2d, random: np.random.Generator) -> TaskData:
    inputs: dict[str, Array] = {}
    constants: dict[str, Array] = {}
    total: Array = random.standard_normal(op.out_channels, np.float32)
    constants["bias"] = total
    total = total.astype(np.float64)[:, None, None]
    for number, source in enumerate([op] if op.shortcut is None else [op, op.shortcut]):
        x = random.standard_normal((source.batch, source.in_channels, source.in_height, source.in_width), np.float32)
        shape = (source.filter_sets * source.out_channels, source.in_channels // source.groups, *source.kernel)
        weight = (random.standard_normal(shape) / np.sqrt(source.reduction)).astype(np.float32)
        inputs[f"input{number}"] = _c4(x, random)
        constants["weight" if number == 0 else "shortcut_weight"] = weight
        total = total + _convolved(source, x, weight)
    if op.has_residual:
        residual = random.standard_normal(total.shape, np.float32)
        inputs["residual"] = _c4(residual, random)
        total = total + residual
    return TaskData(inputs, constants, _c4(_activated(total, op.activation)), op.out_channels)


def _convolved(op: Conv2d, x: Array, weight: Array) -> Array:
    import torch
    from torch.nn import functional as F

    if op.filter_sets > 1:
        sets = weight.astype(np.float64).reshape(op.filter_sets, op.out_channels, op.in_channels)
        images = x.astype(np.float64).reshape(op.batch, op.in_channels, -1)
        sums = np.matmul(sets[np.arange(op.batch) % op.filter_sets], images)
        shaped: Array = sums.reshape(op.batch, op.out_channels, op.out_height, op.out_width)
        return shaped

    kept = weight.astype(np.float64)
    if op.columns is not None:
        mask = np.zeros(weight[0].size)
        mask[list(op.columns)] = 1
        kept = kept * mask.reshape(weight[0].shape)
    top, left, bottom, right = op.padding
    padded = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
    result = F.conv2d(padded, torch.from_numpy(kept), stride=op.stride, dilation=op.dilation, groups=op.groups)
    found: Array = result.numpy()
    return found


def _winograd_tiles(op: WinogradInput, x: Array) -> Array:
    """B^T d B of each tile of the padded image, as `[N * n * n, C, tiles_y, tiles_x]`."""
    m, n = op.tile, op.tile + 2
    top, left = op.padding[:2]
    height, width = (op.tiles_y - 1) * m + n, (op.tiles_x - 1) * m + n
    padded = np.zeros((op.batch, op.channels, max(height, top + op.in_height), max(width, left + op.in_width)))
    padded[:, :, top : top + op.in_height, left : left + op.in_width] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded[:, :, :height, :width], (n, n), (2, 3))[:, :, ::m, ::m]
    matrix = np.asarray(INPUT_MATRICES[m], np.float64)
    tiles = np.einsum("ik,bcyxkl,jl->bijcyx", matrix, windows, matrix, optimize=True)
    return np.ascontiguousarray(tiles).reshape(op.batch * n * n, op.channels, op.tiles_y, op.tiles_x)


def _winograd_output(op: WinogradOutput, random: np.random.Generator) -> TaskData:
    m, n = op.tile, op.tile + 2
    x = random.standard_normal((op.batch * n * n, op.channels, op.tiles_y, op.tiles_x), np.float32)
    bias = random.standard_normal(op.channels, np.float32)
    matrix = np.asarray(OUTPUT_MATRICES[m], np.float64)
    elements = x.astype(np.float64).reshape(op.batch, n, n, op.channels, op.tiles_y, op.tiles_x)
    whole = np.einsum("ik,bklcyx,jl->bcyixj", matrix, elements, matrix, optimize=True)
    whole = np.ascontiguousarray(whole).reshape(op.batch, op.channels, op.tiles_y * m, op.tiles_x * m)
    total = whole[:, :, : op.out_height, : op.out_width] + bias[:, None, None].astype(np.float64)
    inputs = {"input0": _c4(x, random)}
    if op.has_residual:
        residual = random.standard_normal(total.shape, np.float32)
        inputs["residual"] = _c4(residual, random)
        total = total + residual
    return TaskData(inputs, {"bias": bias}, _c4(_activated(np.ascontiguousarray(total), op.activation)), op.channels)


def _dense(op: Dense, random: np.random.Generator) -> TaskData:
    weight = (random.standard_normal((op.out_features, op.in_features)) / np.sqrt(op.in_features)).astype(np.float32)
    bias = random.standard_normal(op.out_features, np.float32)
    if op.input_is_c4:
        x = random.standard_normal((op.batch, op.in_features, 1, op.pooled_pixels), np.float32)
        flat = x.astype(np.float64).mean((2, 3))
        given = _c4(x, random)
    else:
        given = random.standard_normal((op.batch, op.in_features), np.float32)
        flat = given.astype(np.float64)
    total = flat @ weight.astype(np.float64).T + bias
    return TaskData({"input0": given}, {"weight": weight, "bias": bias}, _activated(total, op.activation), None)


def _activated(x: Array, activation: Activation) -> Array:
    import torch
    from torch.nn import functional as F

    functions: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
        "none": lambda value: value,
        "relu": torch.relu,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "hard_sigmoid": F.hardsigmoid,
        "hard_swish": F.hardswish,
    }
    found: Array = functions[activation](torch.from_numpy(x)).numpy()
    return found


def _c4(x: Array, random: np.random.Generator | None = None) -> Array:
    """NCHW to [N, C / 4, H, W, 4]; lanes that no channel has hold noise if `random` is given, else zero."""
    n, c, h, w = x.shape
    shape = (n, blocks(c) * 4, h, w)
    padded = np.zeros(shape, x.dtype) if random is None else random.standard_normal(shape).astype(x.dtype)
    padded[:, :c] = x
    return np.ascontiguousarray(padded.reshape(n, blocks(c), 4, h, w).transpose(0, 1, 3, 4, 2))
