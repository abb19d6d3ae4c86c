"""The two transforms of a Winograd convolution: image to tiles, and tiles to image.

F(m, 3) computes m x m outputs of a 3x3 convolution from n x n inputs, n = m + 2, with n * n products per pair of
channels where the direct form needs 9 * m * m:

    Y = A^T [ (G g G^T) * (B^T d B) ] A         g: filter, d: input tile, *: element by element

Element e = n * i + j of all tiles is an image of its own, of one pixel per tile: image `image * n * n + e` of a C4
tensor of n * n times the batch. The sum over input channels then is a 1x1 convolution in which each of the n * n images
has its own filters (`Conv2d.filter_sets`), so that convolutions have one kernel and one cost model, Winograd or not.

A work-item of a transform computes row i of one tile for a block of channels: it adds up rows of the tile as column i
of the left matrix says, then multiplies that one row by the right matrix. So it holds n sums and not n * n. On a CPU,
where registers are wide and what does not fit into them costs little, it computes all rows of up to four neighbouring
tiles, whose blocks are one vector of 16 lanes: each pixel is read once, and a cache line of elements is written at
once, not four times, which matters because the n * n elements of a tile lie a power of two apart and share a few lines
of the first-level cache. Transforms compute in float32 whatever the tensors are stored as.

Matrices: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016 (arXiv 1509.09308).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import tirx

from structadmm.errors import InvariantError
from tvm_build.kernels.activation import activate
from tvm_build.kernels.body import (
    Body,
    Expr,
    Grid,
    build_func,
    bytes_of,
    ceil_div,
    const,
    gathered,
    lane,
    quarter,
)
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.conv_tiling import inside
from tvm_build.kernels.stored import Memory, Parameter, Stored, c4, run
from tvm_build.ops import WinogradInput, WinogradOutput, blocks, memory_of
from tvm_build.precision import FLOAT32, Precision, as_type

Array = np.ndarray[Any, Any]

_VECTOR = "float32x4"
Matrix = tuple[tuple[float, ...], ...]
# B^T, G and A^T by m.
INPUT_MATRICES: dict[int, Matrix] = {
    2: ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
    4: (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
}
FILTER_MATRICES: dict[int, Matrix] = {
    2: ((1, 0, 0), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2), (0, 0, 1)),
    4: (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
}
OUTPUT_MATRICES: dict[int, Matrix] = {
    2: ((1, 1, 1, 0), (0, 1, -1, -1)),
    4: ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
}


def transform_filters(weight: Array, tile: int) -> Array:
    """[O, I, 3, 3] to [n * n * O, I, 1, 1], the filters of one element of the tile after those of another."""
    left = np.asarray(FILTER_MATRICES[tile], np.float64)
    product = np.einsum("ia,ocab,jb->ijoc", left, weight.astype(np.float64), left)
    return np.ascontiguousarray(product.reshape(-1, weight.shape[1], 1, 1).astype(np.float32))


def input_loads(tile: int) -> float:
    """Vectors that a work-item of the input transform reads, on average."""
    return _loads(INPUT_MATRICES[tile])


def output_loads(tile: int) -> float:
    """The same for the output transform."""
    return _loads(OUTPUT_MATRICES[tile])


def _loads(matrix: Matrix) -> float:
    """Rows of n vectors that a row of the matrix needs, on average."""
    return sum(factor != 0 for row in matrix for factor in row) / len(matrix) * len(matrix[0])


@dataclass(frozen=True)
class TransformSchedule:
    """How a transform is cut up.

    Attributes:
        local: work-items of a group.
        tiles: neighbouring tiles of a row per work-item, a divisor of the row's. Their channel blocks together are one
            vector of 4, 8 or 16 lanes, so more than one is for CPUs with wide registers, and for buffers.
        whole: a work-item computes all rows of its tiles, and reads each pixel once; else one row, which needs n
            registers and not n * n.
    """

    local: int = 64
    tiles: int = 1
    whole: bool = False


def build_winograd_input(op: WinogradInput, schedule: TransformSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """B^T d B for every tile: element (i, j) goes to pixel (ty, tx) of image `n * i + j`."""
    m, n = op.tile, op.tile + 2
    top, left = op.padding[:2]
    channel_blocks = blocks(op.channels)
    strips = op.tiles_x // schedule.tiles
    vector = f"float32x{4 * schedule.tiles}"

    def write(body: Body, buffers: dict[str, Stored], place: _TilePlace, rows: Sequence[int]) -> None:
        source = buffers["input"]
        y, x = body.let(place.ty * m - top), body.let(place.strip * (m * schedule.tiles) - left)

        def read_row(k: int) -> list[Expr]:
            """Row k of the tiles, a vector for each of its n columns; zeros outside of the image."""
            row_ok = inside(y + k, k - top, (op.tiles_y - 1) * m - top + k, op.in_height)
            line = body.line(source, (place.image * channel_blocks + place.block) * op.in_height + y + k, row_ok)
            # A whole row is left out by one branch, which needs a register that was zero before.
            registers = {} if row_ok is None or source.is_image else {p: body.register(_VECTOR) for p in pixels}
            values = {}
            with body.when(row_ok if registers else None):
                for p in pixels:
                    last = (strips - 1) * m * schedule.tiles - left + p
                    value = body.let(body.load(line, x + p, _VECTOR, inside(x + p, p - left, last, op.in_width)))
                    values[p] = value
                    if registers:
                        registers[p].set(value)
            values.update({p: body.let(register.value) for p, register in registers.items()})
            return [joined(body, [values[t * m + j] for t in range(schedule.tiles)]) for j in range(n)]

        # What tiles that lie side by side read, each pixel once.
        pixels = sorted({t * m + j for t in range(schedule.tiles) for j in range(n)})
        matrix = [INPUT_MATRICES[m][i] for i in rows]
        read = {k: read_row(k) for k in range(n) if any(row[k] != 0 for row in matrix)}
        sums = [multiply(body, matrix, {k: read[k][j] for k in read}, vector) for j in range(n)]
        for number, i in enumerate(rows):
            row = dict(enumerate(column[number] for column in sums))
            for j, total in enumerate(multiply(body, INPUT_MATRICES[m], row, vector)):
                line_number = (place.image * (n * n) + (n * i + j)) * channel_blocks + place.block
                line = body.line(buffers["output"], line_number * op.tiles_y + place.ty)
                body.store(line, place.strip, total)

    parameters = {
        "input": c4((op.batch, op.channels, op.in_height, op.in_width), precision.stored(4), memory_of(op, "input0")),
        "output": _elements(op, schedule, precision, memory_of(op, "output")),
    }
    items = op.batch * channel_blocks * op.tiles_y * op.tiles_x
    func = _transform("winograd_input", parameters, write, op, n, schedule)
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles={"input": "input0", "output": "output"},
        flops=items * n * n * 16,
        bytes=sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values()),
        schedule=schedule,
    )


def build_winograd_output(
    op: WinogradOutput, bias: Array, schedule: TransformSchedule, precision: Precision = FLOAT32
) -> BuiltKernel:
    """act(A^T M A + bias + residual), each tile of n * n elements back to m * m pixels."""
    m, n = op.tile, op.tile + 2
    channel_blocks = blocks(op.channels)
    strips = op.tiles_x // schedule.tiles
    vector = f"float32x{4 * schedule.tiles}"

    def write(body: Body, buffers: dict[str, Stored], place: _TilePlace, rows: Sequence[int]) -> None:
        matrix = [OUTPUT_MATRICES[m][i] for i in rows]
        sums = []
        for j in range(n):
            column = {}
            for k in range(n):
                if any(row[k] != 0 for row in matrix):
                    line_number = (place.image * (n * n) + (n * k + j)) * channel_blocks + place.block
                    line = body.line(buffers["input"], line_number * op.tiles_y + place.ty)
                    column[k] = body.let(body.load(line, place.strip, vector))
            sums.append(multiply(body, matrix, column, vector))
        offset = body.let(body.load(buffers["bias"], place.block, _VECTOR))
        for number, i in enumerate(rows):
            row = multiply(body, OUTPUT_MATRICES[m], dict(enumerate(column[number] for column in sums)), vector)
            y = body.let(place.ty * m + i)
            # The last tile of a column may hang over the image's edge.
            with body.when(inside(y, i, (op.tiles_y - 1) * m + i, op.out_height)):
                line_number = body.let((place.image * channel_blocks + place.block) * op.out_height + y)
                for p in range(m * schedule.tiles):
                    x = place.strip * (m * schedule.tiles) + p
                    with body.when(inside(x, p, (strips - 1) * m * schedule.tiles + p, op.out_width)):
                        total = quarter(row[p % m], vector, p // m) + offset
                        if op.has_residual:
                            total = total + body.load(body.line(buffers["residual"], line_number), x, _VECTOR)
                        result = body.let(activate(body, total, op.activation, _VECTOR))
                        body.store(body.line(buffers["output"], line_number), x, result)

    stored = precision.stored(4)
    shape = (op.batch, op.channels, op.out_height, op.out_width)
    padded = np.zeros(channel_blocks * 4, np.float32)
    padded[: op.channels] = bias
    parameters = {
        "input": _elements(op, schedule, precision, memory_of(op, "input0")),
        "bias": run(channel_blocks, _VECTOR),
        "output": c4(shape, stored, memory_of(op, "output")),
    }
    roles = {"input": "input0", "bias": "constant:bias", "output": "output"}
    if op.has_residual:
        parameters["residual"] = c4(shape, stored, memory_of(op, "residual"))
        roles["residual"] = "residual"
    items = op.batch * channel_blocks * op.tiles_y * op.tiles_x
    func = _transform("winograd_output", parameters, write, op, m, schedule)
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles=roles,
        constants={"bias": as_type(padded.reshape(-1, 4), "float32")},
        flops=items * n * m * 16,
        bytes=sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values()),
        schedule=schedule,
    )


def _elements(
    op: WinogradInput | WinogradOutput, schedule: TransformSchedule, precision: Precision, memory: Memory
) -> Parameter:
    """The tensor of all tiles' elements, `schedule.tiles` vectors of it at a time."""
    n = op.tile + 2
    tensor = c4((op.batch * n * n, op.channels, op.tiles_y, op.tiles_x), precision.stored(4), memory)
    if op.tiles_x % schedule.tiles or (schedule.tiles > 1 and memory != "buffer"):
        raise InvariantError(f"{schedule} does not fit rows of {op.tiles_x} tiles in the memory {memory}")
    return replace(tensor, width=op.tiles_x // schedule.tiles, dtype=precision.stored(4 * schedule.tiles))


class _TilePlace:
    """The tiles of one work-item: `index` counts strips of a row, rows, channel blocks and images."""

    def __init__(self, body: Body, op: WinogradInput | WinogradOutput, strips: int, index: Expr) -> None:
        line = body.let(tirx.floordiv(index, strips))
        plane = body.let(tirx.floordiv(line, op.tiles_y))
        self.strip = body.let(tirx.floormod(index, strips))
        self.ty = body.let(tirx.floormod(line, op.tiles_y))
        self.block = body.let(tirx.floormod(plane, blocks(op.channels)))
        self.image = body.let(tirx.floordiv(plane, blocks(op.channels)))


def _transform(
    name: str,
    parameters: dict[str, Any],
    write: Callable[[Body, dict[str, Stored], _TilePlace, Sequence[int]], None],
    op: WinogradInput | WinogradOutput,
    rows: int,
    schedule: TransformSchedule,
) -> Any:
    """A kernel over strips of tiles and, unless these are computed as a whole, rows of a tile.

    A group computes one row, so that the choice is the same for all of it.
    """
    strips = op.tiles_x // schedule.tiles
    items = op.batch * blocks(op.channels) * op.tiles_y * strips
    local = min(schedule.local, items)

    def body_of(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        index = body.let(group[0] * local + item[0])
        with body.when(index < items if items % local else None):
            place = _TilePlace(body, op, strips, index)
            if schedule.whole:
                write(body, buffers, place, range(rows))
                return
            for i in range(rows):
                with body.when(group[1] == i):
                    write(body, buffers, place, [i])

    grid = Grid((ceil_div(items, local), 1 if schedule.whole else rows), (local, 1))
    return build_func(name, parameters, grid, body_of)


def joined(body: Body, vectors: Sequence[Expr]) -> Expr:
    """Vectors of four side by side in one."""
    if len(vectors) == 1:
        return vectors[0]
    return body.let(gathered([lane(vector, i) for vector in vectors for i in range(4)]))


def multiply(body: Body, matrix: Sequence[Sequence[float]], values: Mapping[int, Expr], dtype: str) -> list[Expr]:
    """`matrix @ values`, where columns that `values` lacks are zero.

    Rows and columns of these matrices come in pairs that differ in signs: x + y and x - y share both parts.
    """
    columns = {k: [row[k] for row in matrix] for k in sorted(values) if any(row[k] != 0 for row in matrix)}
    terms: list[tuple[list[float], Expr]] = []
    while columns:
        k = min(columns)
        column = columns.pop(k)
        mirror = next((j for j, other in columns.items() if _differ_in_signs(column, other)), None)
        if mirror is None:
            terms.append((column, values[k]))
            continue
        other = columns.pop(mirror)
        for sign, value in ((1, values[k] + values[mirror]), (-1, values[k] - values[mirror])):
            shared = [a if a == sign * b else 0.0 for a, b in zip(column, other, strict=True)]
            terms.append((shared, body.hold(value, dtype)))
    rows = [[column[i] for column, _ in terms] for i in range(len(matrix))]
    vectors = [vector for _, vector in terms]
    found: dict[int, Expr] = {}
    for i, row in enumerate(rows):
        mirror = next((j for j in range(i + 1, len(rows)) if j not in found and _differ_in_signs(row, rows[j])), None)
        if i in found:
            continue
        if mirror is None:
            found[i] = body.hold(_sum(vectors, row, dtype), dtype)
            continue
        same = [a if a == b else 0.0 for a, b in zip(row, rows[mirror], strict=True)]
        even = body.hold(_sum(vectors, same, dtype), dtype)
        odd = body.hold(_sum(vectors, [a - b for a, b in zip(row, same, strict=True)], dtype), dtype)
        found[i], found[mirror] = body.hold(even + odd, dtype), body.hold(even - odd, dtype)
    return [found[i] for i in range(len(rows))]


def _differ_in_signs(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether both have the same numbers, and some but not all of them with another sign."""
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a != 0 or b != 0]
    return all(abs(a) == abs(b) for a, b in pairs) and len({a == b for a, b in pairs}) == 2


def _sum(vectors: Sequence[Expr], factors: Sequence[float], dtype: str) -> Expr:
    """The sum of factor times vector, without products where the factor is one."""
    total: Expr | None = None
    for vector, factor in zip(vectors, factors, strict=True):
        if factor == 0:
            continue
        term = vector if abs(factor) == 1 else vector * const(abs(factor), dtype)
        if total is None:
            total = term if factor > 0 else const(0, dtype) - term
        else:
            total = total + term if factor > 0 else total - term
    return total
