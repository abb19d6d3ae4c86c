"""The schedules that are worth trying for an operator on a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from tvm_build.gpu import Gpu
from tvm_build.kernels.body import ceil_div
from tvm_build.kernels.column_sparse import list_entries
from tvm_build.kernels.conv2d import flatten_pixels
from tvm_build.kernels.conv_tiling import ConvSchedule, Tiling
from tvm_build.kernels.dense import DenseSchedule, local_bytes
from tvm_build.kernels.dense_reduction import input_blocks
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.winograd import TransformSchedule
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, WinogradInput, WinogradOutput, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision

_UNROLLED_PRODUCTS = 160
_WEIGHTS: tuple[Literal["buffer", "image"], ...] = ("buffer", "image")
# Pixels, rows, vectors; what other engines use on Adreno, then wider ones for layers with many channels.
_ADRENO_TILES = ((4, 1, 2), (2, 2, 2), (2, 1, 2), (2, 1, 1), (4, 1, 1), (1, 1, 1), (4, 1, 4), (2, 2, 4))
# Engines that hold all weights in constants stop at 32 output channels.
_MOST_VECTORS = 8
# Tiles of outputs with which a dense layer is a single group of its widest shape.
_FEW_TILES = 8
# Of column-sparse kernels. With 16 items to a group Intel's compiler was seen to spread a dense kernel over them.
_CPU_MOST_ITEMS, _CPU_GROUPS_PER_CORE = 8, 8


def schedules(op: Operator, gpu: Gpu, precision: Precision = FLOAT32) -> list[Any]:
    """Candidates for `op`, the likeliest first."""
    match op:
        case Conv2d():
            return _cpu_conv(op, gpu) if gpu.kind == "cpu" else _adreno_conv(op, gpu, precision)
        case Dense():
            return _dense(op, gpu)
        case GlobalAverage():
            return [MeanSchedule(1)] if gpu.kind == "cpu" else [MeanSchedule(split) for split in (32, 8, 1)]
        case WinogradInput() | WinogradOutput():
            return _transforms(op, gpu)
        case _:
            return [FlatSchedule(_whole_waves(gpu))]


def _whole_waves(gpu: Gpu) -> int:
    """Work-items of a group where nothing is shared: a wave; on CPUs enough to be worth a group's start."""
    return max(64, gpu.wave)


def _transforms(op: WinogradInput | WinogradOutput, gpu: Gpu) -> list[TransformSchedule]:
    """On a CPU all rows of as many tiles as lie in a row and a register; on a GPU a row of one tile."""
    if gpu.kind != "cpu":
        return [TransformSchedule(_whole_waves(gpu))]
    widths = [tiles for tiles in (4, 2, 1) if op.tiles_x % tiles == 0]
    return [TransformSchedule(1, tiles, whole=True) for tiles in (widths if not (op.images or op.views) else [1])]


def _finish(op: Conv2d, **fields: Any) -> ConvSchedule:
    """A schedule with the kernel's rows written out as long as the source stays small."""
    sources = [op] if op.shortcut is None else [op, op.shortcut]
    taps = max(source.kernel[0] * source.kernel[1] for source in sources)
    tile = fields["pixels"] * fields.get("rows", 1) * fields.get("vectors", 1)
    return ConvSchedule(**fields, unroll_rows=taps * tile <= _UNROLLED_PRODUCTS)


def _cpu_conv(op: Conv2d, gpu: Gpu) -> list[ConvSchedule]:
    """Few, fat work-items, of dense kernels a group of one: drivers do not spread vectors over work-items then."""
    flat = flatten_pixels(op)
    widths = {p for p in range(4, 9) if flat.out_width % p == 0} | {min(4, flat.out_width), min(8, flat.out_width)}
    if is_depthwise(op):
        return [
            s for p in sorted(widths, reverse=True) for s in _placed(op, _finish(op, pixels=p, lanes=4, local=1), gpu)
        ]
    found = []
    for gather in _gathers(op):
        # A texel has four lanes.
        for lanes in (4,) if gpu.memory == "image" else (16, 8, 4):
            for vectors in (1, 2, 3):
                if vectors * lanes >= op.out_channels + lanes:
                    continue
                for pixels in sorted(widths, reverse=True):
                    for rows in (1, 2, 4):
                        if rows > flat.out_height or not 4 <= pixels * rows * vectors <= 16:
                            continue
                        shape = {"pixels": pixels, "rows": rows, "vectors": vectors, "lanes": lanes}
                        single = _finish(op, **shape, local=1, gather=gather)
                        found += _placed(op, replace(single, local=_neighbours(op, single, gpu)), gpu)
    return found or [_finish(op, pixels=1, lanes=16, local=1)]


def _neighbours(op: Conv2d, schedule: ConvSchedule, gpu: Gpu) -> int:
    """Work-items of a group on a CPU. Starting a group is a good part of so short a kernel as a column-sparse one.

    Every core still gets several groups, so that one that is late does not decide.
    """
    if op.columns is None:
        return 1
    tiling = Tiling(flatten_pixels(op), schedule)
    local = 1
    while (
        local < _CPU_MOST_ITEMS
        and tiling.count % (2 * local) == 0
        and tiling.count * tiling.channel_tiles >= 2 * local * _CPU_GROUPS_PER_CORE * gpu.cores
    ):
        local *= 2
    return local


def _placed(op: Conv2d, schedule: ConvSchedule, gpu: Gpu, precision: Precision = FLOAT32) -> list[ConvSchedule]:
    """`schedule` with its weights in every memory that they may lie in on `gpu`."""
    sources = [op] if op.shortcut is None else [op, op.shortcut]
    sparse = [source for source in sources if source.columns is not None]
    if schedule.gather == "lanes" and any(memory_of(source, "input0") != "buffer" for source in sparse):
        return []
    tables = sum(4 * len(list_entries(source, schedule.gather).offsets) for source in sparse)
    constant_bytes = gpu.constant_bytes if gpu.memory == "auto" else 0
    fast_tables = 0 < tables <= constant_bytes
    if fast_tables:
        schedule = replace(schedule, tables="constant")
    found = []
    fits = schedule.lanes == 4 and why_no_weight_image(op, schedule, gpu) is None
    if gpu.memory != "buffer" and fits and (gpu.kind == "adreno" or gpu.memory == "image"):
        found.append(replace(schedule, weights="image"))
    if gpu.memory != "image" or not found:
        found.append(schedule)
    channels = schedule.tile_channels * ceil_div(op.out_channels, schedule.tile_channels)
    size = precision.item_bytes * sum(weight_steps(op, schedule)) * channels
    if schedule.split == 1 and op.filter_sets == 1 and size + (tables if fast_tables else 0) <= constant_bytes:
        # All of a wave must read the same weights.
        found.append(replace(schedule, weights="constant", local=gpu.wave, local_channels=1))
    return found


def _adreno_conv(op: Conv2d, gpu: Gpu, precision: Precision) -> list[ConvSchedule]:
    """Tiles of 1 to 4 pixels and 1 to 4 vectors, and splits of the reduction for layers that are small."""
    flat = flatten_pixels(op)
    if is_depthwise(op):
        shapes = [(p, r) for p, r in ((2, 2), (4, 1), (2, 1), (1, 1)) if p <= flat.out_width and r <= flat.out_height]
        tiles = [_grouped(flat, _finish(op, pixels=pixels, rows=rows), gpu) for pixels, rows in shapes]
        return [schedule for tile in tiles for schedule in _placed(op, tile, gpu, precision)]
    found = []
    for gather in _gathers(op):
        steps = _steps(flat, gather)
        for pixels, rows, vectors in (*_ADRENO_TILES, *_whole_pixels(op)):
            if pixels > flat.out_width or rows > flat.out_height or vectors > blocks(op.out_channels):
                continue
            for split in (1, 2, 4, 8, 16):
                if split > steps:
                    continue
                tile = _finish(op, pixels=pixels, rows=rows, vectors=vectors, split=split, gather=gather)
                found += _placed(op, _grouped(flat, tile, gpu), gpu, precision)
    return found


def _grouped(op: Conv2d, tile: ConvSchedule, gpu: Gpu) -> ConvSchedule:
    """`tile` in groups that fill a wave with neighbouring tiles of the image first, then of the channels."""
    tiling, split = Tiling(op, tile), tile.split
    local = _power_of_two(min(tiling.count, gpu.max_work_group // split, gpu.wave))
    room = min(gpu.max_work_group // (local * split), gpu.wave // local)
    local_channels = _power_of_two(min(tiling.channel_tiles, max(1, room)))
    # Partial sums, of a work-item 4 KB at most, must fit into half of a group's local memory.
    partial_bytes = split * tile.pixels * tile.rows * tile.vectors * 16
    while split > 1 and local * local_channels * partial_bytes > gpu.local_bytes // 2:
        local, local_channels = (local, local_channels // 2) if local_channels > 1 else (local // 2, 1)
    return replace(tile, local=local, local_channels=local_channels)


def _whole_pixels(op: Conv2d) -> list[tuple[int, int, int]]:
    """Tiles with all channels of a pixel, for layers that have few: their weights may fit into constant memory."""
    vectors = blocks(op.out_channels)
    return [(pixels, 1, vectors) for pixels in (2, 1) if 3 <= vectors <= _MOST_VECTORS and vectors != 4]


def why_no_weight_image(op: Any, schedule: Any, gpu: Gpu) -> str | None:
    """Why the weights of a launch cannot lie in an image, or None if they can, or there are none."""
    if isinstance(op, Conv2d):
        width = max(weight_steps(op, schedule)) * schedule.vectors
        height = op.filter_sets * ceil_div(op.out_channels, schedule.tile_channels)
    elif isinstance(op, Dense):
        width, height = ceil_div(op.out_features, 4), 4 * blocks(op.in_features)
    else:
        return None
    if max(width, height) <= gpu.image_max:
        return None
    return f"{width} x {height} texels, {gpu.name} takes {gpu.image_max}"


def weight_steps(op: Conv2d, schedule: ConvSchedule) -> list[int]:
    """Weight vectors per accumulator of a pixel, for each of a launch's reductions.

    That is the length of a tile's line of weights, in reduction steps.
    """
    depthwise = is_depthwise(op)

    def steps(source: Conv2d) -> int:
        if source.columns is not None:
            return int(list_entries(source, schedule.gather).columns.size)
        taps = source.kernel[0] * source.kernel[1]
        if depthwise:
            return taps
        count = input_blocks(source, schedule)[1]
        return count * taps * (min(4, source.in_channels) if count == 1 else 4)

    return [steps(source) for source in ([op] if op.shortcut is None else [op, op.shortcut])]


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
    """On a CPU one work-item per tile; on a GPU groups of two waves, whose reduction has more parts for few outputs."""
    if gpu.kind == "cpu":
        lanes = 4 if gpu.memory == "image" else 16 if op.out_features > 8 else 8 if op.out_features > 4 else 4
        found = [DenseSchedule(lanes=lanes, tiles=1, split=1)]
    else:
        shapes = [(8, 32), (4, 32), (2, 32), (8, 8)]
        if ceil_div(op.out_features, 4) <= _FEW_TILES:
            shapes[-1:-1] = [(tiles, split) for tiles, split in ((2, 128), (1, 256)) if split <= blocks(op.in_features)]
        found = [DenseSchedule(lanes=4, tiles=tiles, split=split) for tiles, split in shapes]
        # `fuse` pools nothing that is too wide for the last of them.
        found = [schedule for schedule in found if local_bytes(op, schedule) <= gpu.local_bytes] or found[-1:]
    fits = found[0].lanes == 4 and why_no_weight_image(op, found[0], gpu) is None
    if gpu.memory == "image" and fits:
        return [replace(schedule, weights="image") for schedule in found]
    if gpu.kind == "cpu" or gpu.memory == "buffer" or not fits:
        return found
    return [replace(schedule, weights=memory) for schedule in found for memory in _WEIGHTS]
