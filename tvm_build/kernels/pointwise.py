"""Kernels that move each value once: elementwise operators, layout changes, concatenation and interleaving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
)
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.stored import Parameter, Stored, c4, run
from tvm_build.ops import ConcatChannels, Elementwise, Interleave, Pack, Unpack, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision


@dataclass(frozen=True)
class FlatSchedule:
    """One work-item per output vector, in groups of `local`."""

    local: int = 64


def flat_kernel(
    name: str,
    parameters: dict[str, Parameter],
    write: Any,
    *,
    items: int,
    schedule: FlatSchedule,
    flops: int = 0,
) -> BuiltKernel:
    """A kernel of `items` independent work-items; `write(body, buffers, index)` writes one of them.

    Parameters called "input" and "input0" are both the first input.
    """
    local = min(schedule.local, items)
    grid = Grid((ceil_div(items, local),), (local,))

    def guarded(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        index = body.let(group[0] * local + item[0])
        with body.when(index < items if items % local else None):
            write(body, buffers, index)

    size = sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values())
    func = build_func(name, parameters, grid, guarded)
    roles = {key: "input0" if key == "input" else key for key in parameters}
    return BuiltKernel(func=func, parameters=parameters, roles=roles, flops=flops, bytes=size, schedule=schedule)


def build_elementwise(op: Elementwise, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """`activation(a OP b)` on C4, one vector per work-item."""
    plane = op.height * op.width
    items = op.batch * blocks(op.channels) * plane
    stored, dtype = precision.stored(4), precision.computed(4)
    shape = (op.batch, op.channels, op.height, op.width)
    parameters = {"input0": c4(shape, stored, memory_of(op, "input0"))}
    if op.operator != "copy":
        other_shape = (op.batch, op.channels, 1, 1) if op.broadcast_pixels else shape
        parameters["input1"] = c4(other_shape, stored, memory_of(op, "input1"))

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        value = body.let(body.load(buffers["input0"], index, dtype))
        if op.operator != "copy":
            position = tirx.floordiv(index, plane) if op.broadcast_pixels else index
            other = body.let(body.load(buffers["input1"], position, dtype))
            value = {"add": value + other, "sub": value - other, "mul": value * other}[op.operator]
        body.store(buffers["output"], index, activate(body, value, op.activation, dtype))

    parameters["output"] = c4(shape, stored, memory_of(op, "output"))
    return flat_kernel("elementwise", parameters, write, items=items, schedule=schedule, flops=4 * items)


def build_pack(op: Pack, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """NCHW to C4: four strided scalar reads, one vector write."""
    plane = op.height * op.width
    channel_blocks = blocks(op.channels)
    items = op.batch * channel_blocks * plane

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        block_row = body.let(tirx.floordiv(index, plane))
        image = tirx.floordiv(block_row, channel_blocks)
        block = body.let(tirx.floormod(block_row, channel_blocks))
        first = body.let((image * op.channels + block * 4) * plane + tirx.floormod(index, plane))
        values = []
        for i in range(4):
            exists = block * 4 + i < op.channels if op.channels % 4 and i >= op.channels % 4 else None
            values.append(body.let(body.load(buffers["input"], first + i * plane, "float32", exists)))
        body.store(buffers["output"], index, gathered(values))

    shape = (op.batch, op.channels, op.height, op.width)
    packed = c4(shape, precision.stored(4), memory_of(op, "output"))
    parameters = {"input": run(op.batch * op.channels * plane, "float32"), "output": packed}
    return flat_kernel("pack", parameters, write, items=items, schedule=schedule)


def build_unpack(op: Unpack, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """C4 to NCHW: one vector read, four strided scalar writes."""
    plane = op.height * op.width
    channel_blocks = blocks(op.channels)
    items = op.batch * channel_blocks * plane

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        block_row = body.let(tirx.floordiv(index, plane))
        image = tirx.floordiv(block_row, channel_blocks)
        block = body.let(tirx.floormod(block_row, channel_blocks))
        first = body.let((image * op.channels + block * 4) * plane + tirx.floormod(index, plane))
        value = body.let(body.load(buffers["input"], index, "float32x4"))
        for i in range(4):
            exists = block * 4 + i < op.channels if op.channels % 4 and i >= op.channels % 4 else None
            with body.when(exists):
                body.store(buffers["output"], first + i * plane, lane(value, i))

    shape = (op.batch, op.channels, op.height, op.width)
    packed = c4(shape, precision.stored(4), memory_of(op, "input0"))
    parameters = {"input": packed, "output": run(op.batch * op.channels * plane, "float32")}
    return flat_kernel("unpack", parameters, write, items=items, schedule=schedule)


def build_concat(op: ConcatChannels, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """Concatenation along channels of C4 tensors.

    Output blocks that one input fills are a copy, or two neighbouring vectors shifted by the offset's remainder; a
    block in which inputs meet is put together lane by lane. Which of them a work-item has depends on its block alone.
    """
    plane = op.height * op.width
    # Nothing is computed, so nothing is converted.
    vector, scalar = precision.stored(4), precision.stored(1)
    total = sum(op.channels)
    out_blocks = blocks(total)
    items = op.batch * out_blocks * plane
    offsets = [sum(op.channels[:i]) for i in range(len(op.channels))]

    def source(channel: int) -> int:
        return max(i for i, offset in enumerate(offsets) if offset <= channel)

    # Runs of blocks written the same way: (first block, end, input that fills them or None where inputs meet).
    runs: list[tuple[int, int, int | None]] = []
    for block in range(out_blocks):
        inputs = {source(c) for c in range(block * 4, min(block * 4 + 4, total))}
        filled = inputs.pop() if len(inputs) == 1 else None
        if filled is not None and runs and runs[-1][2] == filled:
            runs[-1] = (runs[-1][0], block + 1, filled)
        else:
            runs.append((block, block + 1, filled))

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        block_row = body.let(tirx.floordiv(index, plane))
        image = body.let(tirx.floordiv(block_row, out_blocks))
        block = body.let(tirx.floormod(block_row, out_blocks))
        pixel = body.let(tirx.floormod(index, plane))

        def at(number: int, input_block: Expr, exists: Expr | None = None) -> Expr:
            vector_index = (image * blocks(op.channels[number]) + input_block) * plane + pixel
            return body.let(body.load(buffers[f"input{number}"], vector_index, vector, exists))

        for first, end, filled in runs:
            inside = both(block >= first if first else None, block < end if end < out_blocks else None)
            with body.when(inside):
                if filled is None:
                    values = []
                    for c in range(first * 4, first * 4 + 4):
                        number = source(min(c, total - 1))
                        local = c - offsets[number]
                        values.append(lane(at(number, local // 4), local % 4) if c < total else const(0, scalar))
                    body.store(buffers["output"], index, gathered(values))
                    continue
                shift = (-offsets[filled]) % 4
                start = body.let(block + (-offsets[filled]) // 4)
                low = at(filled, start)
                if shift == 0:
                    body.store(buffers["output"], index, low)
                    continue
                # The last block may need no second vector; its lanes are then beyond the last channel.
                limit = blocks(op.channels[filled])
                exists = start + 1 < limit if (end - 1) + (-offsets[filled]) // 4 + 1 >= limit else None
                high = at(filled, start + 1, exists)
                lanes = [lane(low, i) for i in range(shift, 4)] + [lane(high, i) for i in range(shift)]
                body.store(buffers["output"], index, gathered(lanes))

    parameters = {
        f"input{i}": c4((op.batch, c, op.height, op.width), vector, memory_of(op, f"input{i}"))
        for i, c in enumerate(op.channels)
    }
    parameters["output"] = c4((op.batch, total, op.height, op.width), vector, memory_of(op, "output"))
    return flat_kernel("concat", parameters, write, items=items, schedule=schedule)


def build_interleave(op: Interleave, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """Pixels of all phases between each other; a phase has whole blocks of channels, so vectors move as they are."""
    vector = precision.stored(4)
    out_blocks, plane = blocks(op.channels), op.out_height * op.out_width
    phases = op.stride[0] * op.stride[1]

    def write(body: Body, buffers: dict[str, Stored], index: Expr) -> None:
        block_row = body.let(tirx.floordiv(index, plane))
        image, block = tirx.floordiv(block_row, out_blocks), tirx.floormod(block_row, out_blocks)
        pixel = body.let(tirx.floormod(index, plane))
        y = body.let(tirx.floordiv(pixel, op.out_width) + op.crop[0])
        x = body.let(tirx.floormod(pixel, op.out_width) + op.crop[1])
        phase = tirx.floormod(y, op.stride[0]) * op.stride[1] + tirx.floormod(x, op.stride[1])
        source = body.let((image * phases + phase) * out_blocks + block)
        line = source * op.in_height + tirx.floordiv(y, op.stride[0])
        value = body.load(body.line(buffers["input"], line), tirx.floordiv(x, op.stride[1]), vector)
        body.store(buffers["output"], index, body.let(value))

    shape = (op.batch, phases * out_blocks * 4, op.in_height, op.in_width)
    out_shape = (op.batch, op.channels, op.out_height, op.out_width)
    parameters = {
        "input": c4(shape, vector, memory_of(op, "input0")),
        "output": c4(out_shape, vector, memory_of(op, "output")),
    }
    items = op.batch * out_blocks * plane
    return flat_kernel("interleave", parameters, write, items=items, schedule=schedule)
