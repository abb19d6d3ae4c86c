"""The schedules that are worth trying for an operator on a GPU."""

from __future__ import annotations

from typing import Any

from tvm_build.gpu import Gpu
from tvm_build.kernels.body import ceil_div
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, blocks

_UNROLLED_STEPS = 48


def schedules(op: Operator, gpu: Gpu) -> list[Any]:
    """Candidates for `op`, the likeliest first."""
    match op:
        case Conv2d():
            return _cpu_conv(op) if gpu.kind == "cpu" else _adreno_conv(op, gpu)
        case Dense():
            return _dense(op, gpu)
        case GlobalAverage():
            return [MeanSchedule(1 if gpu.kind == "cpu" else 32)]
        case _:
            return [FlatSchedule(64)]


def _finish(op: Conv2d, **fields: Any) -> ConvSchedule:
    """A schedule of the right class for `op`, kernel rows written out while the source stays small."""
    steps = op.kernel[0] * op.kernel[1] * fields["pixels"] * fields.get("rows", 1) * fields.get("vectors", 1)
    return ConvSchedule(**fields, unroll_rows=steps <= _UNROLLED_STEPS * 4)


def _cpu_conv(op: Conv2d) -> list[ConvSchedule]:
    """Few, fat work-items: a group of one, so that drivers do not spread vectors over work-items."""
    if is_depthwise(op):
        return [_finish(op, pixels=min(8, op.out_width), lanes=4, local=1)]
    lanes = 16 if op.out_channels > 8 else 8 if op.out_channels > 4 else 4
    found = []
    gathers = ["blocks", "lanes"] if op.columns is not None else [None]
    for gather in gathers:
        for pixels in (8, 4):
            for rows in (1, 2, 4):
                if (pixels > 4 and op.out_width <= 4) or (rows > 1 and op.out_height < rows):
                    continue
                extra = {} if gather is None else {"gather": gather}
                found.append(_finish(op, pixels=min(pixels, op.out_width), rows=rows, lanes=lanes, local=1, **extra))
    return found


def _adreno_conv(op: Conv2d, gpu: Gpu) -> list[ConvSchedule]:
    """Tiles of 1 to 4 pixels and 1 to 4 vectors, and splits of the reduction for layers that are small."""
    if is_depthwise(op):
        return [
            _finish(op, pixels=min(p, op.out_width), rows=r, local=gpu.wave)
            for p, r in ((2, 2), (4, 1), (2, 1))
            if r <= op.out_height
        ]
    found = []
    steps = op.reduction if op.columns is not None else ceil_div(op.reduction, 4 * op.kernel[1])
    gathers = ["blocks", "lanes"] if op.columns is not None else [None]
    for gather in gathers:
        for pixels, rows, vectors in ((4, 1, 2), (2, 2, 2), (2, 1, 2), (2, 1, 1), (4, 1, 1), (1, 1, 1), (4, 1, 4)):
            if pixels > op.out_width or rows > op.out_height or vectors > blocks(op.out_channels):
                continue
            tiles = op.batch * ceil_div(op.out_height, rows) * ceil_div(op.out_width, pixels)
            for split in (1, 2, 4, 8, 16):
                if split > 1 and split > steps:
                    continue
                local = 1
                while local * 2 <= min(tiles, gpu.wave if split == 1 else gpu.max_work_group // split):
                    local *= 2
                if split * local * pixels * rows * vectors * 16 > gpu.local_bytes // 2 and split > 1:
                    continue
                extra = {} if gather is None else {"gather": gather}
                found.append(_finish(op, pixels=pixels, rows=rows, vectors=vectors, split=split, local=local, **extra))
    return found


def _dense(op: Dense, gpu: Gpu) -> list[DenseSchedule]:
    """On a CPU one work-item per tile; on a GPU a reduction split that fills two waves."""
    if gpu.kind == "cpu":
        lanes = 16 if op.out_features > 8 else 8 if op.out_features > 4 else 4
        return [DenseSchedule(lanes=lanes, tiles=1, split=1)]
    return [DenseSchedule(lanes=4, tiles=tiles, split=split) for tiles, split in ((8, 32), (4, 32), (2, 32), (8, 8))]
