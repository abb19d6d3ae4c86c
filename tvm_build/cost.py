"""What a kernel should cost on a GPU it was never run on; every time from here is *predicted*.

The model is a roofline per launch. A kernel takes its launch overhead, a quarter of the sum of these four, and
three quarters of the longest of them:

- its arithmetic, with the work wasted in tiles that reach over the edge, at the share of the peak that convolutions
  reach (`Gpu.efficiency`);
- its loads and stores of 128 bits in buffers, which go through the last cache, each work-item's counted by itself.
  Work-items of a wave that read the same weight may share one transaction; nothing public says whether they do, so
  nothing is taken off for it. A load with a predicate, where a window reaches over the edge, counts as one and a half,
  which is what folding the padding into the loads cost in TVM's former Adreno schedules;
- its reads of images, which have a cache and a path of their own, and need no predicate, unless they are images of
  buffers. Weights in constant memory, which only schedules that fit into it have, cost nothing;
- the bytes that must come from memory at least once.

All but the last are stretched where the launch has too few waves to keep every core busy or needs so many registers
that few waves fit: `fill` is the share of the waves needed to hide latency that are there.

CPUs are different enough for an arithmetic of their own: vector instructions per work-item with the width's cost, the
latency of a multiply-add where there are fewer accumulators than it takes to hide it, and of a long sum's additions,
and a cost per work-group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from structadmm.errors import InvariantError
from tvm_build.gpu import Gpu
from tvm_build.kernels.body import ceil_div
from tvm_build.kernels.column_sparse import list_entries, together_in_half
from tvm_build.kernels.conv2d import flatten_pixels
from tvm_build.kernels.conv_tile import steps_in_half
from tvm_build.kernels.conv_tiling import ConvSchedule, Tiling
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.dense_reduction import input_blocks
from tvm_build.kernels.depthwise import is_depthwise
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.stored import Memory
from tvm_build.kernels.winograd import TransformSchedule, input_loads, output_loads
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
    memory_of,
)
from tvm_build.precision import FLOAT32, Precision

# Cycles per multiply-add instruction of 4, 8 and 16 floats, and per load, on a core with 512-bit registers; fitted.
_CPU_CYCLES = {4: 0.55, 8: 0.55, 16: 1.0}
_CPU_LOAD_CYCLES = 0.6
_CPU_SPREAD_CYCLES = 0.6
_CPU_LATENCY = 4.0
# Additions of one sum that a core has in sight while it waits: shorter sums overlap with those that follow.
_CPU_AHEAD = 256
_CPU_SPILL_CYCLES = 0.35
_CPU_REGISTERS = 26
_CPU_GROUP_US = 0.03
_CPU_GHZ = 3.4
_SPLIT_BARRIER_US = 2.0
_ADDRESS_REGISTERS = 3
_PREDICATED_LOAD = 1.5
# A conversion and an addition at the rate of float32, in multiply-adds of half.
_SHORT_SUM_MACS = 4.0
# Share of the shorter parts that does not hide behind the longest one.
_EXPOSED = 0.25


@dataclass(frozen=True)
class KernelCost:
    """One launch, counted and predicted.

    Attributes:
        flops: executed, including what tiles waste over the edges; a multiply-add is two.
        load_bytes: read from and written to buffers by all work-items, each counted by itself.
        image_bytes: read from images, in the same way.
        wide_share: share of both in accesses of at least four numbers: 128 bits, or 64 in half.
        local_bytes: written to and read from local memory.
        memory_bytes: what must come from or go to memory at least once.
        macs_per_load: multiply-adds of scalars per load of four numbers.
        registers: 128-bit registers of one work-item, estimated; wider ones of CPUs count as several.
        work_items: of the whole launch.
        waves: of the whole launch.
        fill: share of the waves needed to hide latency that are there, at most 1.
        predicted_us: the launch, its overhead included.
        bound_by: "launch", "arithmetic", "loads", "images" or "memory": the largest part.
    """

    flops: int
    load_bytes: int
    image_bytes: int
    wide_share: float
    local_bytes: int
    memory_bytes: int
    macs_per_load: float
    registers: int
    work_items: int
    waves: int
    fill: float
    predicted_us: float
    bound_by: str


@dataclass(frozen=True)
class _Work:
    """What one work-item does, and how many there are.

    `loads` are of vectors in buffers, and stores; `predicated` of them ask first. `texels` are reads of images, those
    of buffers included; `predicated_texels` of them ask first. What comes from constant memory is not counted.
    `folded` of the narrow loads have one use, no condition, and follow others of the same block of channels, so that
    they are in the first cache: a CPU's multiply-add reads them itself.
    `short_sums` are vectors of half, in half arithmetic, that are converted and added to float32 ones. `spreads` are
    scalars copied into all lanes. On a CPU, `inputs_held` registers live beside the accumulators, and `chained`
    additions wait for each other beside those to accumulators.
    """

    items: int
    groups: int
    vector_macs: float
    loads: float
    narrow_loads: float
    lanes: int
    accumulators: int
    spreads: float
    inputs_held: int
    tile_weight_bytes: int
    registers: int
    local_bytes: int
    memory_bytes: int
    texels: float = 0.0
    predicated: float = 0.0
    predicated_texels: float = 0.0
    item_bytes: int = 4
    half_arithmetic: bool = False
    folded: float = 0.0
    short_sums: float = 0.0
    chained: float = 0.0


def predict_us(op: Operator, schedule: Any, gpu: Gpu, precision: Precision = FLOAT32) -> float:
    """Predicted microseconds of one launch."""
    return estimate(op, schedule, gpu, precision).predicted_us


def estimate(op: Operator, schedule: Any, gpu: Gpu, precision: Precision = FLOAT32) -> KernelCost:
    """Count and predict one launch of `op` built with `schedule`."""
    match op:
        case Conv2d():
            work = _conv(flatten_pixels(op), schedule)
        case Dense():
            work = _dense(op, schedule)
        case WinogradInput() | WinogradOutput():
            work = _transform(op, schedule)
        case _:
            work = _streaming(op, schedule)
    return _cpu(work, gpu) if gpu.kind == "cpu" else _adreno(_stored_as(work, op, precision), gpu)


def estimate_counted(
    gpu: Gpu,
    *,
    global_size: tuple[int, ...],
    local_size: tuple[int, ...],
    flops: int,
    buffer_loads: float,
    image_loads: float,
    memory_bytes: int,
) -> KernelCost:
    """Predict a float32 kernel of an Adreno that is known from its source alone, whoever wrote it.

    Args:
        gpu: an Adreno.
        global_size: work-items along each axis.
        local_size: those of a group.
        flops: of the whole launch.
        buffer_loads: of one work-item, each of up to 128 bits.
        image_loads: likewise from images.
        memory_bytes: what must move at least once.
    """
    items, group_items = math.prod(global_size), math.prod(local_size)
    work = _Work(
        items=items,
        groups=items // group_items,
        vector_macs=flops / 8 / items,
        loads=buffer_loads,
        narrow_loads=0.0,
        lanes=4,
        accumulators=1,
        spreads=0.0,
        inputs_held=1,
        tile_weight_bytes=0,
        registers=1,
        local_bytes=0,
        memory_bytes=memory_bytes,
        texels=image_loads,
    )
    return _adreno(work, gpu)


def _stored_as(work: _Work, op: Operator, precision: Precision) -> _Work:
    """Work counted for float32, with numbers stored and computed with as `precision` says.

    Half registers pack two into one; what a work-item holds beside vectors (addresses, counters) stays.
    """
    if precision.storage == "float32":
        return work
    # The plain side of a conversion stays float32; of the other, each work-item has a vector.
    memory_bytes = work.memory_bytes - (8 * work.items if isinstance(op, Pack | Unpack) else work.memory_bytes // 2)
    work = replace(work, item_bytes=precision.item_bytes, memory_bytes=memory_bytes)
    if precision.arithmetic == "float32" or not isinstance(op, Conv2d | Elementwise):
        return work
    held = work.registers - _ADDRESS_REGISTERS
    if not isinstance(op, Conv2d):
        return replace(work, half_arithmetic=True, registers=ceil_div(held, 2) + _ADDRESS_REGISTERS)
    # The accumulators stay float32, and as many sums in half lie beside them.
    accumulators = work.accumulators * work.lanes // 4
    registers = accumulators + ceil_div(held, 2) + _ADDRESS_REGISTERS
    return replace(work, half_arithmetic=True, registers=registers)


def _products_in_half(op: Conv2d, schedule: ConvSchedule, depthwise: bool) -> int:
    """Products that are added up in half, if they are half, before they go into an accumulator."""
    if op.columns is not None:
        return together_in_half(schedule.gather) * (4 if schedule.gather == "blocks" else 1)
    row = op.kernel[1] * (1 if depthwise else min(4, op.in_channels))
    return row * steps_in_half(row)


def _conv(op: Conv2d, schedule: ConvSchedule) -> _Work:
    tiling = Tiling(op, schedule)
    grid = tiling.grid
    groups = grid.groups[0] * grid.groups[1]
    group_items = grid.local[0] * grid.local[1] * grid.local[2]
    accumulators = schedule.rows * schedule.pixels * schedule.vectors
    macs = short_sums = narrow = folded = spreads = 0.0
    # Reads of weights, inputs and the rest by where they lie.
    reads: dict[Memory, float] = {"buffer": 0.0, "view": 0.0, "image": 0.0, "constant": 0.0}
    predicated: dict[Memory, float] = {"buffer": 0.0, "view": 0.0, "image": 0.0}
    inputs_held = weight_bytes = input_bytes = 0
    depthwise = is_depthwise(op)
    for source in (op, op.shortcut):
        if source is None:
            continue
        kh, kw = source.kernel
        macs_before = macs
        place = memory_of(source, "input0")
        tiled = Tiling(source, schedule)
        edges = _edges(tiled) if place != "image" else 0.0
        pixels = [tiled.pixels_inside(kx) for kx in range(kw)]
        if source.columns is not None:
            entries = list_entries(source, schedule.gather)
            steps, width = entries.columns.shape
            rows = [len(tiled.rows_inside(ky if schedule.rows > 1 else None)) for ky in range(kh)]
            # Of each step, by its tap.
            products = np.diff(entries.tap_start) @ np.outer([len(inside) for inside in pixels], rows).ravel()
            macs += float(products) * width * schedule.vectors
            weight_reads = steps * width * schedule.vectors
            read = float(products)
            narrow += (read if schedule.gather == "lanes" else 0) + (steps / 4 if schedule.tables == "buffer" else 0)
            if schedule.gather == "lanes" and schedule.vectors == schedule.rows == 1:
                same_block = np.diff(entries.offsets // 4) == 0
                folded += read * (1 - edges) * float(np.mean(same_block)) if len(same_block) else 0.0
            input_reads = 0 if schedule.gather == "lanes" else read
            inputs_held = max(inputs_held, 2)
            weights = steps * width
        else:
            known = schedule.unroll_rows or kh == 1
            rows_read = sum(len(tiled.rows_inside(ky if known else None)) for ky in range(kh))
            products = rows_read * sum(len(inside) for inside in pixels)
            shared = len({p * source.stride[1] + kx * source.dilation[1] for kx in range(kw) for p in pixels[kx]})
            block_count = 1 if depthwise else input_blocks(source, schedule)[1]
            depth = 1 if depthwise else min(4, source.in_channels) if block_count == 1 else 4
            macs += block_count * depth * products * schedule.vectors
            weights = block_count * depth * kh * kw
            weight_reads = weights * schedule.vectors
            input_reads = block_count * rows_read * shared
            inputs_held = max(inputs_held, shared if depthwise else schedule.rows * shared)
        short_sums += (macs - macs_before) / _products_in_half(source, schedule, depthwise)
        # A scalar is spread by its load, a lane of a vector by an instruction of its own.
        if source.columns is None or schedule.gather == "blocks":
            spreads += (macs - macs_before) / schedule.vectors
        reads[schedule.weights] += weight_reads
        reads[place] += input_reads
        predicated[place] += input_reads * edges
        weight_bytes += source.filter_sets * weights * schedule.tile_channels * tiling.channel_tiles * 4
        input_bytes += source.batch * blocks(source.in_channels) * source.in_height * source.in_width * 16
    per_vector = schedule.lanes // 4
    out_bytes = op.batch * blocks(op.out_channels) * op.out_height * op.out_width * 16
    local_bytes = 0
    if schedule.split > 1:
        local_bytes = 2 * groups * group_items * accumulators * per_vector * 16
    outputs = accumulators * per_vector
    # The bias, the store and a residual.
    reads["buffer"] += 2 * outputs
    if op.has_residual:
        reads[memory_of(op, "residual")] += outputs
    return _Work(
        items=groups * group_items,
        groups=groups,
        vector_macs=macs / schedule.split,
        short_sums=short_sums / schedule.split,
        loads=reads["buffer"] / schedule.split,
        texels=(reads["image"] + reads["view"]) / schedule.split,
        predicated=predicated["buffer"] / schedule.split,
        predicated_texels=predicated["view"] / schedule.split,
        narrow_loads=narrow / schedule.split,
        folded=folded / schedule.split,
        lanes=schedule.lanes,
        accumulators=accumulators,
        spreads=spreads / schedule.split,
        inputs_held=inputs_held + schedule.vectors + 1,
        tile_weight_bytes=weight_bytes // tiling.channel_tiles,
        registers=per_vector * (accumulators + 4) + inputs_held + _ADDRESS_REGISTERS,
        local_bytes=local_bytes,
        memory_bytes=weight_bytes + input_bytes + out_bytes * (2 if op.has_residual else 1),
    )


def _edges(tiling: Tiling) -> float:
    """Share of a tile's input reads that must ask whether they are inside of the image."""
    op, schedule = tiling.op, tiling.schedule
    top, left, bottom, right = op.padding
    # A tile that takes in a whole side knows what lies beside the image.
    top, bottom = (top, bottom) if tiling.rows > 1 else (0, 0)
    left, right = (left, right) if tiling.columns > 1 else (0, 0)
    if schedule.rows > 1 and top + bottom > 0:
        return 1.0
    if op.columns is not None:
        # Each tap reads on its own: only those beside the centre reach over the edge, in the outer pixels.
        return min(1.0, (left + right) / (op.kernel[1] * schedule.pixels))
    shared = (schedule.pixels - 1) * op.stride[1] + (op.kernel[1] - 1) * op.dilation[1] + 1
    return min(1.0, (left + right) / shared)


def _dense(op: Dense, schedule: DenseSchedule) -> _Work:
    in_blocks = blocks(op.in_features)
    feature_tiles = ceil_div(op.out_features, schedule.lanes)
    tiles = min(schedule.tiles, feature_tiles)
    groups = ceil_div(feature_tiles, tiles) * op.batch
    items = groups * tiles * schedule.split
    pooled = op.input_is_c4 and op.pooled_pixels > 1
    # One work-item averages a block of channels, in each group anew; if there are fewer of them, some have none.
    pooling = in_blocks * op.pooled_pixels / min(in_blocks, tiles * schedule.split) if pooled else 0.0
    steps = in_blocks / schedule.split
    as_texels = memory_of(op, "input0") != "buffer"
    return _Work(
        items=items,
        groups=groups,
        vector_macs=steps * 4,
        chained=pooling * min(1.0, op.pooled_pixels / _CPU_AHEAD),
        loads=(0 if schedule.weights == "image" else steps * 4) + (0 if as_texels else steps + pooling),
        texels=(steps * 4 if schedule.weights == "image" else 0) + (steps + pooling if as_texels else 0),
        narrow_loads=0.0,
        lanes=schedule.lanes,
        accumulators=1,
        spreads=steps * 4,
        inputs_held=1,
        tile_weight_bytes=0,
        registers=8,
        local_bytes=items * 32 + (groups * in_blocks * 16 * (1 + tiles) if pooled else 0),
        memory_bytes=4 * op.in_features * op.out_features + 16 * op.batch * in_blocks * op.pooled_pixels,
    )


def _streaming(op: Operator, schedule: Any) -> _Work:
    """Kernels that read each value once, or a window of them, and compute next to nothing."""
    # Bytes beside those of the C4 tensor whose vectors the work-items stand for.
    other_bytes: int
    match op:
        case Pool2d():
            outputs = op.batch * blocks(op.channels) * op.out_height * op.out_width
            reads = op.kernel[0] * op.kernel[1]
            other_bytes = 16 * op.batch * blocks(op.channels) * op.in_height * op.in_width
        case GlobalAverage():
            outputs = op.batch * blocks(op.channels)
            reads = op.height * op.width
            other_bytes = 16 * outputs * reads
        case ConcatChannels():
            plane = op.batch * op.height * op.width
            outputs = plane * blocks(sum(op.channels))
            reads = 1 if all(c % 4 == 0 for c in op.channels[:-1]) else 2
            other_bytes = 16 * plane * sum(blocks(c) for c in op.channels)
        case Interleave():
            outputs = op.batch * blocks(op.channels) * op.out_height * op.out_width
            reads = 1
            phases = op.stride[0] * op.stride[1]
            other_bytes = 16 * op.batch * phases * blocks(op.channels) * op.in_height * op.in_width
        case Elementwise():
            outputs = op.batch * blocks(op.channels) * op.height * op.width
            reads = 1 if op.operator == "copy" else 2
            second = outputs // (op.height * op.width) if op.broadcast_pixels else outputs
            other_bytes = 16 * (outputs if op.operator == "copy" else outputs + second)
        case Pack() | Unpack():
            outputs = op.batch * blocks(op.channels) * op.height * op.width
            reads = 4
            other_bytes = 4 * op.batch * op.channels * op.height * op.width
        case _:
            raise InvariantError(f"there is no cost model for {op}")
    split = min(schedule.split, reads) if isinstance(schedule, MeanSchedule) else 1
    local = split if isinstance(schedule, MeanSchedule) else schedule.local
    items = outputs * split
    narrow = reads if isinstance(op, Pack | Unpack) else 0
    in_images = (reads - narrow if narrow == 0 else int(isinstance(op, Unpack))) * _share_of_images(op)
    return _Work(
        items=items,
        groups=ceil_div(items, local),
        vector_macs=reads / split,
        loads=(reads - narrow - in_images) / split + 1,
        texels=in_images / split,
        narrow_loads=narrow,
        lanes=4,
        accumulators=1,
        spreads=0.0,
        inputs_held=1,
        tile_weight_bytes=0,
        registers=6,
        local_bytes=items * 32 if split > 1 else 0,
        memory_bytes=16 * outputs + other_bytes,
    )


def _transform(op: WinogradInput | WinogradOutput, schedule: TransformSchedule) -> _Work:
    """A work-item has one row of its tiles, or all: it reads rows of n vectors, adds them up, and stores rows."""
    n = op.tile + 2
    tiles = op.batch * blocks(op.channels) * op.tiles_y * op.tiles_x
    if isinstance(op, WinogradInput):
        rows, reads, stores, pixels = n, input_loads(op.tile), n, op.in_height * op.in_width
        predicated = reads if any(op.padding) else 0.0
    else:
        rows, reads, stores, pixels = op.tile, output_loads(op.tile), op.tile, op.out_height * op.out_width
        predicated = 0.0
    # Multiplied by few numbers other than one; the second matrix is as dense as the first.
    macs = reads + reads * stores / n
    accumulators = n
    if schedule.whole:
        rows, reads, stores, macs, predicated = 1, n * n, rows * stores, rows * macs, n * n if predicated else 0.0
        accumulators = n * n
    # Reads of the image are of single vectors; those of elements, and all arithmetic, of as many as the tiles have.
    across = schedule.tiles
    residual = stores if isinstance(op, WinogradOutput) and op.has_residual else 0
    place = memory_of(op, "input0")
    texels = (0 if place == "buffer" else reads) + (0 if memory_of(op, "residual") == "buffer" else residual)
    narrow, wide = (reads, stores) if isinstance(op, WinogradInput) else (stores + residual, reads)
    image_vectors = op.batch * blocks(op.channels) * pixels
    return _Work(
        items=tiles // across * rows,
        groups=ceil_div(tiles // across, schedule.local) * rows,
        vector_macs=macs,
        loads=narrow + wide / across - texels,
        texels=texels,
        narrow_loads=0.0,
        predicated=predicated if place == "buffer" else 0.0,
        predicated_texels=predicated if place == "view" else 0.0,
        lanes=4 * across,
        accumulators=accumulators,
        spreads=0.0,
        inputs_held=1,
        tile_weight_bytes=0,
        registers=accumulators * across + 2 + _ADDRESS_REGISTERS,
        local_bytes=0,
        memory_bytes=16 * (n * n * tiles + image_vectors * (2 if residual else 1)),
    )


def _share_of_images(op: Operator) -> float:
    """Share of an operator's inputs that it reads as images."""
    match op:
        case ConcatChannels():
            inputs = len(op.channels)
        case Elementwise():
            inputs = 1 if op.operator == "copy" else 2
        case _:
            inputs = 1
    return sum(role.startswith("input") for role in (*op.images, *op.views)) / inputs


def _adreno(work: _Work, gpu: Gpu) -> KernelCost:
    waves = work.groups * ceil_div(work.items // work.groups, gpu.wave)
    resident = min(1.0, gpu.vec4_registers / work.registers)
    fill = min(1.0, waves / (gpu.cores * gpu.latency_waves), resident)
    # Lanes of a group's last wave that have nothing to do cost as much as the others.
    padded = waves * gpu.wave
    short_sums = work.short_sums if work.half_arithmetic else 0.0
    flops = 2 * (work.vector_macs + _SHORT_SUM_MACS * short_sums) * work.lanes * padded
    # A narrow load takes the slot of a wide one.
    vector_bytes = 4 * work.item_bytes
    loads = (work.loads + work.predicated * (_PREDICATED_LOAD - 1)) * (work.lanes // 4) + work.narrow_loads
    load_bytes = loads * vector_bytes * padded + work.local_bytes
    texels = work.texels + work.predicated_texels * (_PREDICATED_LOAD - 1)
    peak = gpu.gflops_fp16 if work.half_arithmetic else gpu.gflops_fp32
    parts = {
        "arithmetic": flops / (peak * gpu.efficiency * 1e3) / fill,
        "loads": load_bytes / (gpu.l2_gb_s * 1e3) / fill,
        "images": texels * vector_bytes * padded / (gpu.texture_gb_s * 1e3) / fill,
        "memory": work.memory_bytes / (gpu.dram_gb_s * 1e3),
    }
    barrier = _SPLIT_BARRIER_US if work.local_bytes else 0.0
    return _cost(work, gpu, waves=waves, fill=fill, parts=parts, barrier_us=barrier)


def _cpu(work: _Work, gpu: Gpu) -> KernelCost:
    multiply = work.vector_macs * _CPU_CYCLES[work.lanes]
    latency = (work.vector_macs / work.accumulators + work.chained) * _CPU_LATENCY
    # A scalar of the input is spread over a register once for all vectors of its pixel.
    loads = (work.loads + work.narrow_loads - work.folded) * _CPU_LOAD_CYCLES + work.spreads * _CPU_SPREAD_CYCLES
    spilled = max(0, work.accumulators + work.inputs_held - _CPU_REGISTERS)
    spills = spilled * work.vector_macs / work.accumulators * _CPU_SPILL_CYCLES
    rounds = ceil_div(work.groups, gpu.cores)
    cycles = (max(multiply, latency, loads) + _EXPOSED * min(multiply, loads) + spills + 10) * work.items / work.groups
    # A tile's weights are read again for each tile of the image, and that is not hidden where they fill a core's cache.
    streamed = work.tile_weight_bytes * work.groups if work.tile_weight_bytes > gpu.l2_bytes // 8 else 0
    parts = {
        "arithmetic": rounds * (cycles / (_CPU_GHZ * 1e3) + _CPU_GROUP_US) + streamed / (gpu.l2_gb_s * 1e3),
        "loads": work.local_bytes / (gpu.l2_gb_s * 1e3),
        "images": work.texels * 16 * work.items / (gpu.texture_gb_s * 1e3),
        "memory": work.memory_bytes / (gpu.dram_gb_s * 1e3) if work.memory_bytes > gpu.l2_bytes else 0.0,
    }
    return _cost(work, gpu, waves=work.items, fill=1.0, parts=parts, barrier_us=0.0)


def _cost(work: _Work, gpu: Gpu, *, waves: int, fill: float, parts: dict[str, float], barrier_us: float) -> KernelCost:
    longest = max(parts, key=lambda name: parts[name])
    longest_us = parts[longest]
    vectors = work.loads * (work.lanes // 4)
    texels = work.texels * (work.lanes // 4)
    loads = vectors + texels + work.narrow_loads
    return KernelCost(
        flops=int(2 * work.vector_macs * work.lanes * work.items),
        load_bytes=int((vectors * 4 + work.narrow_loads) * work.item_bytes * work.items),
        image_bytes=int(texels * 4 * work.item_bytes * work.items),
        wide_share=(vectors + texels) * 4 / ((vectors + texels) * 4 + work.narrow_loads) if loads else 1.0,
        local_bytes=work.local_bytes,
        memory_bytes=work.memory_bytes,
        macs_per_load=work.vector_macs * work.lanes / loads if loads else 0.0,
        registers=work.registers,
        work_items=work.items,
        waves=waves,
        fill=fill,
        predicted_us=gpu.launch_us + longest_us + _EXPOSED * (sum(parts.values()) - longest_us) + barrier_us,
        bound_by=longest if longest_us + barrier_us > gpu.launch_us else "launch",
    )
