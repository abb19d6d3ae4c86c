"""Fully connected layer, and the global average before it in the same launch.

At batch 1 this is bound by reading the weights once, so weights are packed in the order in which they are read, and the
reduction is split over the work-items of a group until enough of them are in flight. With a pooled input the group
first averages the image into local memory; groups are then made few and wide, for each of them repeats that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from tvm_build.kernels.activation import activate
from tvm_build.kernels.body import (
    Body,
    Expr,
    Grid,
    both,
    build_func,
    bytes_of,
    ceil_div,
    const,
    gathered,
    lane,
    quarter,
    spread,
)
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.pool import sum_pixels
from tvm_build.kernels.stored import Memory, Parameter, Stored, run
from tvm_build.ops import Dense, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision

Array = np.ndarray[Any, Any]

# Parts of a sum that one work-item adds up, one after the other.
_MOST_PARTS = 32


@dataclass(frozen=True)
class DenseSchedule:
    """How a dense layer is tiled.

    Attributes:
        lanes: output features per work-item: 4, or 8 and 16 for CPUs with wide registers.
        tiles: tiles of `lanes` features per work-group.
        split: work-items that share one tile's reduction.
        weights: where the weights lie. Images hold vectors of four lanes.
    """

    lanes: int = 4
    tiles: int = 8
    split: int = 8
    weights: Memory = "buffer"


def local_bytes(op: Dense, schedule: DenseSchedule) -> int:
    """Local memory of a work-group: the means of a pooled input, and the parts of the sums."""
    pooled = blocks(op.in_features) * 16 if op.input_is_c4 and op.pooled_pixels > 1 else 0
    return pooled + schedule.tiles * schedule.split * schedule.lanes * 4


def build_dense(
    op: Dense, weight: Array, bias: Array, schedule: DenseSchedule, precision: Precision = FLOAT32
) -> BuiltKernel:
    """The kernel for `activation(x @ w.T + bias)`, x plain, C4, or C4 averaged over its pixels.

    Only a C4 input and the weight are stored in half: plain tensors are float32. The arithmetic is float32 always.
    """
    lanes, split = schedule.lanes, schedule.split
    in_blocks = blocks(op.in_features)
    feature_tiles = ceil_div(op.out_features, lanes)
    tiles = min(schedule.tiles, feature_tiles)
    chunk = ceil_div(in_blocks, split)
    vector = f"float32x{lanes}"
    quarters = lanes // 4
    pooled = op.input_is_c4 and op.pooled_pixels > 1
    whole_blocks = op.input_is_c4 or op.in_features % 4 == 0
    whole_output = op.out_features % 4 == 0
    grid = Grid((ceil_div(feature_tiles, tiles), op.batch), (tiles, split))

    padded = np.zeros((feature_tiles * lanes, in_blocks * 4), np.float32)
    padded[: op.out_features, : op.in_features] = weight
    # [in block, 4, tile, lane]: work-items of neighbouring tiles read neighbouring vectors.
    by_block = padded.reshape(feature_tiles, lanes, in_blocks, 4).transpose(2, 3, 0, 1)
    packed = np.ascontiguousarray(precision.pack(by_block))
    bias_packed = np.zeros(feature_tiles * lanes, np.float32)
    bias_packed[: op.out_features] = bias

    def write(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        image, part = group[1], item[1]
        tile = body.let(group[0] * tiles + item[0])
        ragged = feature_tiles % tiles != 0
        source_tile = body.let(tirx.Min(tile, const(feature_tiles - 1, "int32"))) if ragged else tile
        if pooled:
            means = body.shared(in_blocks, "float32x4")
            worker = body.let(part * tiles + item[0])
            with body.loop(0, ceil_div(in_blocks, tiles * split)) as turn:
                block = body.let(turn * (tiles * split) + worker)
                with body.when(block < in_blocks if in_blocks % (tiles * split) else None):
                    first = (image * in_blocks + block) * op.pooled_pixels
                    total = sum_pixels(body, buffers["input"], (first, op.pooled_pixels), (0, 1))
                    body.store(means, block, total.value * const(1 / op.pooled_pixels, "float32x4"))
            body.barrier()

        def input_block(block: Expr) -> Expr:
            if pooled:
                return means[block]
            if whole_blocks:
                return body.load(buffers["input"], image * in_blocks + block, "float32x4")
            first = image * op.in_features + block * 4
            scalars = []
            for i in range(4):
                exists = block * 4 + i < op.in_features if i >= op.in_features % 4 else None
                scalars.append(body.let(body.load(buffers["input"], first + i, "float32", exists)))
            return gathered(scalars)

        accumulator = body.register(vector)
        start = part * chunk
        stop = tirx.Min(part * chunk + chunk, const(in_blocks, "int32")) if split > 1 else in_blocks
        with body.loop(start if split > 1 else 0, stop) as block:
            x = body.let(input_block(block))
            total = accumulator.value
            for i in range(4):
                w = body.load(body.line(buffers["weight"], block * 4 + i), source_tile, vector)
                total = total + spread(lane(x, i), lanes) * w
            accumulator.set(total)

        exists = tile < feature_tiles if ragged else None
        parts = split
        if split > 1:
            partial = body.shared(split * tiles, vector)
            own = body.let(part * tiles + item[0])
            body.store(partial, own, accumulator.value)
            body.barrier()
            while parts > _MOST_PARTS:
                half = ceil_div(parts, 2)
                with body.when(part < parts - half):
                    body.store(partial, own, partial[own] + partial[own + half * tiles])
                body.barrier()
                parts = half
            exists = both(exists, part == 0)
        with body.when(exists):
            total = accumulator.value
            if split > 1:
                total = partial[item[0]]
                for other in range(1, parts):
                    total = total + partial[other * tiles + item[0]]
            total = body.let(total + buffers["bias"][tile])
            for q in range(quarters):
                value = body.let(activate(body, quarter(total, vector, q), op.activation, "float32x4"))
                feature = body.let(tile * lanes + q * 4)
                if whole_output:
                    last = op.out_features % lanes != 0
                    with body.when(feature < op.out_features if last else None):
                        body.store(buffers["output"], image * (op.out_features // 4) + tirx.floordiv(feature, 4), value)
                else:
                    for i in range(4):
                        with body.when(feature + i < op.out_features):
                            body.store(buffers["output"], image * op.out_features + feature + i, lane(value, i))

    vectors = op.batch * in_blocks * (op.pooled_pixels if op.input_is_c4 else 1)
    if op.input_is_c4:
        source = Parameter(vectors // op.input_width, op.input_width, precision.stored(4), memory_of(op, "input0"))
    else:
        source = run(vectors, "float32x4") if whole_blocks else run(op.batch * op.in_features, "float32")
    outputs = op.batch * op.out_features
    parameters = {
        "input": source,
        "weight": Parameter(in_blocks * 4, feature_tiles, precision.stored(lanes), schedule.weights),
        "bias": run(feature_tiles, vector),
        "output": run(outputs // 4, "float32x4") if whole_output else run(outputs, "float32"),
    }
    func = build_func("dense", parameters, grid, write)
    macs = op.batch * op.in_features * op.out_features
    input_bytes = source.elements * bytes_of(source.dtype)
    pooling = op.batch * op.in_features * op.pooled_pixels if pooled else 0
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles={"input": "input0", "weight": "constant:weight", "bias": "constant:bias", "output": "output"},
        constants={"weight": packed, "bias": bias_packed.reshape(-1, lanes)},
        flops=2 * macs + pooling,
        bytes=input_bytes + 4 * op.batch * op.out_features + packed.nbytes + bias_packed.nbytes,
        schedule=schedule,
    )
