"""The two transforms of a Winograd convolution: image to tiles, and tiles to image.

F(m, 3) computes m x m outputs of a 3x3 convolution from n x n inputs, n = m + 2, with n * n products per pair of
channels where the direct form needs 9 * m * m:

    Y = A^T [ (G g G^T) * (B^T d B) ] A         g: filter, d: input tile, *: element by element

Element e = n * i + j of all tiles is an image of its own, of one pixel per tile: image `image * n * n + e` of a C4
tensor of n * n times the batch. The sum over input channels then is a 1x1 convolution in which each of the n * n images
has its own filters (`Conv2d.filter_sets`), so that convolutions have one kernel and one cost model, Winograd or not.

A work-item of a transform computes row i of one tile for a block of channels: it adds up rows of the tile as column i
of the left matrix says, then multiplies that one row by the right matrix. So it holds n sums and not n * n. Transforms
compute in float32 whatever the tensors are stored as.

Matrices: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016 (arXiv 1509.09308).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from tvm_build.kernels.activation import activate
from tvm_build.kernels.body import Body, Expr, Grid, both, build_func, bytes_of, ceil_div, const
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.conv_tiling import inside
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.stored import Stored, c4, run
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


def build_winograd_input(op: WinogradInput, schedule: FlatSchedule, precision: Precision = FLOAT32) -> BuiltKernel:
    """B^T d B for every tile: element (i, j) goes to pixel (ty, tx) of image `n * i + j`."""
    m, n = op.tile, op.tile + 2
    top, left = op.padding[:2]
    channel_blocks = blocks(op.channels)

    def write(body: Body, buffers: dict[str, Stored], place: _TilePlace, i: int) -> None:
        source = buffers["input"]
        y, x = body.let(place.ty * m - top), body.let(place.tx * m - left)
        sums: list[Expr | None] = [None] * n
        for k, factor in enumerate(INPUT_MATRICES[m][i]):
            if factor == 0:
                continue
            row_ok = inside(y + k, k - top, (op.tiles_y - 1) * m - top + k, op.in_height)
            line = body.line(source, (place.image * channel_blocks + place.block) * op.in_height + y + k, row_ok)
            for j in range(n):
                column_ok = inside(x + j, j - left, (op.tiles_x - 1) * m - left + j, op.in_width)
                value = body.let(body.load(line, x + j, _VECTOR, both(row_ok, column_ok)))
                sums[j] = _add(sums[j], value, factor)
        row = [body.let(total) for total in sums]
        for j in range(n):
            total = _combine(row, INPUT_MATRICES[m][j])
            line_number = (place.image * (n * n) + (n * i + j)) * channel_blocks + place.block
            line = body.line(buffers["output"], line_number * op.tiles_y + place.ty)
            body.store(line, place.tx, body.let(total))

    stored = precision.stored(4)
    tiles = (op.batch * n * n, op.channels, op.tiles_y, op.tiles_x)
    parameters = {
        "input": c4((op.batch, op.channels, op.in_height, op.in_width), stored, memory_of(op, "input0")),
        "output": c4(tiles, stored, memory_of(op, "output")),
    }
    items = op.batch * channel_blocks * op.tiles_y * op.tiles_x
    func = _transform("winograd_input", parameters, write, op, (items, n), schedule)
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles={"input": "input0", "output": "output"},
        flops=items * n * n * 16,
        bytes=sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values()),
        schedule=schedule,
    )


def build_winograd_output(
    op: WinogradOutput, bias: Array, schedule: FlatSchedule, precision: Precision = FLOAT32
) -> BuiltKernel:
    """act(A^T M A + bias + residual), each tile of n * n elements back to m * m pixels."""
    m, n = op.tile, op.tile + 2
    channel_blocks = blocks(op.channels)

    def write(body: Body, buffers: dict[str, Stored], place: _TilePlace, i: int) -> None:
        sums: list[Expr | None] = [None] * n
        for k, factor in enumerate(OUTPUT_MATRICES[m][i]):
            if factor == 0:
                continue
            for j in range(n):
                line_number = (place.image * (n * n) + (n * k + j)) * channel_blocks + place.block
                line = body.line(buffers["input"], line_number * op.tiles_y + place.ty)
                sums[j] = _add(sums[j], body.let(body.load(line, place.tx, _VECTOR)), factor)
        row = [body.let(total) for total in sums]
        y = body.let(place.ty * m + i)
        # The last tile of a column may hang over the image's edge.
        with body.when(inside(y, i, (op.tiles_y - 1) * m + i, op.out_height)):
            number = body.let((place.image * channel_blocks + place.block) * op.out_height + y)
            offset = body.let(body.load(buffers["bias"], place.block, _VECTOR))
            for j in range(m):
                x = place.tx * m + j
                with body.when(inside(x, j, (op.tiles_x - 1) * m + j, op.out_width)):
                    total = _combine(row, OUTPUT_MATRICES[m][j]) + offset
                    if op.has_residual:
                        total = total + body.load(body.line(buffers["residual"], number), x, _VECTOR)
                    result = body.let(activate(body, total, op.activation, _VECTOR))
                    body.store(body.line(buffers["output"], number), x, result)

    stored = precision.stored(4)
    shape = (op.batch, op.channels, op.out_height, op.out_width)
    tiles = (op.batch * n * n, op.channels, op.tiles_y, op.tiles_x)
    padded = np.zeros(channel_blocks * 4, np.float32)
    padded[: op.channels] = bias
    parameters = {
        "input": c4(tiles, stored, memory_of(op, "input0")),
        "bias": run(channel_blocks, _VECTOR),
        "output": c4(shape, stored, memory_of(op, "output")),
    }
    roles = {"input": "input0", "bias": "constant:bias", "output": "output"}
    if op.has_residual:
        parameters["residual"] = c4(shape, stored, memory_of(op, "residual"))
        roles["residual"] = "residual"
    items = op.batch * channel_blocks * op.tiles_y * op.tiles_x
    func = _transform("winograd_output", parameters, write, op, (items, m), schedule)
    return BuiltKernel(
        func=func,
        parameters=parameters,
        roles=roles,
        constants={"bias": as_type(padded.reshape(-1, 4), "float32")},
        flops=items * n * m * 16,
        bytes=sum(parameter.elements * bytes_of(parameter.dtype) for parameter in parameters.values()),
        schedule=schedule,
    )


class _TilePlace:
    """The tile of one work-item: `index` counts tiles of a row, of a column, channel blocks and images."""

    def __init__(self, body: Body, op: WinogradInput | WinogradOutput, index: Expr) -> None:
        line = body.let(tirx.floordiv(index, op.tiles_x))
        plane = body.let(tirx.floordiv(line, op.tiles_y))
        self.tx = body.let(tirx.floormod(index, op.tiles_x))
        self.ty = body.let(tirx.floormod(line, op.tiles_y))
        self.block = body.let(tirx.floormod(plane, blocks(op.channels)))
        self.image = body.let(tirx.floordiv(plane, blocks(op.channels)))


def _transform(
    name: str,
    parameters: dict[str, Any],
    write: Any,
    op: WinogradInput | WinogradOutput,
    grid: tuple[int, int],
    schedule: FlatSchedule,
) -> Any:
    """A kernel over (tiles, rows of a tile); a group computes one row, so that the choice is the same for all of it."""
    items, rows = grid
    local = min(schedule.local, items)

    def body_of(body: Body, buffers: dict[str, Stored], group: tuple[Expr, ...], item: tuple[Expr, ...]) -> None:
        index = body.let(group[0] * local + item[0])
        with body.when(index < items if items % local else None):
            place = _TilePlace(body, op, index)
            for i in range(rows):
                with body.when(group[1] == i):
                    write(body, buffers, place, i)

    return build_func(name, parameters, Grid((ceil_div(items, local), rows), (local, 1)), body_of)


def _add(total: Expr | None, value: Expr, factor: float) -> Expr:
    """`total + factor * value`, without a product where the factor is one."""
    term = value if abs(factor) == 1 else value * const(abs(factor), _VECTOR)
    if total is None:
        return term if factor > 0 else const(0, _VECTOR) - term
    return total + term if factor > 0 else total - term


def _combine(row: list[Expr], factors: tuple[float, ...]) -> Expr:
    total: Expr | None = None
    for value, factor in zip(row, factors, strict=True):
        if factor != 0:
            total = _add(total, value, factor)
    return total
