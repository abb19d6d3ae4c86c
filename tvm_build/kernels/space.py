"""The schedules that are worth trying for an operator on a GPU."""

from __future__ import annotations

from typing import Any, Literal

from tvm_build.gpu import Gpu
from tvm_build.kernels.body import ceil_div
from tvm_build.kernels.column_sparse import list_entries
from tvm_build.kernels.conv2d import flatten_pixels
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, blocks

_UNROLLED_PRODUCTS = 160
# Pixels, rows, vectors; what other engines use on Adreno, then wider ones for layers with many channels.
_ADRENO_TILES = ((4, 1, 2), (2, 2, 2), (2, 1, 2), (2, 1, 1), (4, 1, 1), (1, 1, 1), (4, 1, 4), (2, 2, 4))


def schedules(op: Operator, gpu: Gpu) -> list[Any]:
    """Candidates for `op`, the likeliest first."""
    match op:
        case Conv2d():
            return _cpu_conv(op) if gpu.kind == "cpu" else _adreno_conv(op, gpu)
        case Dense():
            return _dense(op, gpu)
        case GlobalAverage():
            return [MeanSchedule(1)] if gpu.kind == "cpu" else [MeanSchedule(split) for split in (32, 8, 1)]
        case _:
            return [FlatSchedule(64)]


def _finish(op: Conv2d, **fields: Any) -> ConvSchedule:
    """A schedule with the kernel's rows written out as long as the source stays small."""
    sources = [op] if op.shortcut is None else [op, op.shortcut]
    taps = max(source.kernel[0] * source.kernel[1] for source in sources)
    tile = fields["pixels"] * fields.get("rows", 1) * fields.get("vectors", 1)
    return ConvSchedule(**fields, unroll_rows=taps * tile <= _UNROLLED_PRODUCTS)


def _cpu_conv(op: Conv2d) -> list[ConvSchedule]:
    """Few, fat work-items: a group of one, so that drivers do not spread vectors over work-items."""
    flat = flatten_pixels(op)
    widths = {p for p in range(4, 9) if flat.out_width % p == 0} | {min(4, flat.out_width), min(8, flat.out_width)}
    if is_depthwise(op):
        return [_finish(op, pixels=p, lanes=4, local=1) for p in sorted(widths, reverse=True)]
    found = []
    for gather in _gathers(op):
        for lanes in (16, 8, 4):
            for vectors in (1, 2, 3):
                if vectors * lanes >= op.out_channels + lanes:
                    continue
                for pixels in sorted(widths, reverse=True):
                    for rows in (1, 2, 4):
                        if rows > flat.out_height or not 4 <= pixels * rows * vectors <= 16:
                            continue
                        shape = {"pixels": pixels, "rows": rows, "vectors": vectors, "lanes": lanes}
                        found.append(_finish(op, **shape, local=1, gather=gather))
    return found or [_finish(op, pixels=1, lanes=16, local=1)]


def _adreno_conv(op: Conv2d, gpu: Gpu) -> list[ConvSchedule]:
    """Tiles of 1 to 4 pixels and 1 to 4 vectors, and splits of the reduction for layers that are small."""
    flat = flatten_pixels(op)
    if is_depthwise(op):
        tiles = [(p, r) for p, r in ((2, 2), (4, 1), (2, 1), (1, 1)) if p <= flat.out_width and r <= flat.out_height]
        return [_finish(op, pixels=p, rows=r, local=gpu.wave) for p, r in tiles]
    found = []
    for gather in _gathers(op):
        steps = _steps(flat, gather)
        for pixels, rows, vectors in _ADRENO_TILES:
            if pixels > flat.out_width or rows > flat.out_height or vectors > blocks(op.out_channels):
                continue
            image_tiles = op.batch * ceil_div(flat.out_height, rows) * ceil_div(flat.out_width, pixels)
            for split in (1, 2, 4, 8, 16):
                if split > steps:
                    continue
                # A group takes neighbouring tiles of the image first, then of the channels; partial sums must fit into
                # half of its local memory.
                local = _power_of_two(min(image_tiles, gpu.max_work_group // split, gpu.wave))
                channel_tiles = ceil_div(op.out_channels, 4 * vectors)
                room = min(gpu.max_work_group // (local * split), gpu.wave // local)
                local_channels = _power_of_two(min(channel_tiles, max(1, room)))
                partial_bytes = split * pixels * rows * vectors * 16
                while split > 1 and local * local_channels * partial_bytes > gpu.local_bytes // 2:
                    local, local_channels = (local, local_channels // 2) if local_channels > 1 else (local // 2, 1)
                if local == 0:
                    continue
                shape = {"pixels": pixels, "rows": rows, "vectors": vectors, "local_channels": local_channels}
                found.append(_finish(op, **shape, split=split, local=local, gather=gather))
    return found


def _power_of_two(limit: int) -> int:
    """The largest power of two up to `limit`."""
    return 1 << (limit.bit_length() - 1)


def _gathers(op: Conv2d) -> tuple[Literal["blocks", "lanes"], ...]:
    """How a column-sparse kernel may read; a dense one does not care."""
    sparse = op.columns is not None or (op.shortcut is not None and op.shortcut.columns is not None)
    return ("blocks", "lanes") if sparse else ("blocks",)


def _steps(op: Conv2d, gather: Literal["blocks", "lanes"]) -> int:
    """Into how many parts the reduction can be split at most."""
    if op.columns is not None:
        return len(list_entries(op, gather).offsets)
    return blocks(op.in_channels // op.groups)


def _dense(op: Dense, gpu: Gpu) -> list[DenseSchedule]:
    """On a CPU one work-item per tile; on a GPU a reduction split that fills two waves."""
    if gpu.kind == "cpu":
        lanes = 16 if op.out_features > 8 else 8 if op.out_features > 4 else 4
        return [DenseSchedule(lanes=lanes, tiles=1, split=1)]
    return [DenseSchedule(lanes=4, tiles=tiles, split=split) for tiles, split in ((8, 32), (4, 32), (2, 32), (8, 8))]
