"""Short names over TVM's IRBuilder: the only file that knows its quirks.

A kernel is written top to bottom as the OpenCL it becomes: a Python `for` unrolls, `Body.loop` loops. What to stay away
from (wrong or invalid OpenCL in TVM 0.27): `Select` on vectors, `Shuffle` of several lanes of one vector, `Broadcast`
of an expression that was not bound to a name first (it is evaluated once per lane), private arrays of more than one
element (they spill on Adreno; every register here is an array of one, which compilers keep in a register).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import tvm.tirx.script.builder as T
from tvm import tirx
from tvm.script.ir_builder import IRBuilder

from tvm_build.kernels.stored import Line, Parameter, Stored, run

Expr = Any
"""A TIR expression; TVM ships no type information."""

MEMORY_ATTRIBUTE = "structadmm.memory"
"""Attribute of a kernel's function: "image", "view", or "constant" and a number of bytes, by a parameter's name."""

# What `emit.py` defines for kernels with images. The names are all that the TIR knows of them.
_READ_FLOAT, _READ_HALF = "texel", "texel_half"
_READ_FLOAT_AT, _READ_HALF_AT = "texel_at", "texel_half_at"
_WRITE_FLOAT, _WRITE_HALF = "set_texel", "set_texel_half"
# So far above the image that no offset added to it leads back.
_NO_LINE = -(1 << 20)


@dataclass(frozen=True)
class Register:
    """A variable of the kernel that may be assigned more than once."""

    cell: Any

    @property
    def dtype(self) -> str:
        """TVM's name of its type."""
        return str(self.cell.dtype)

    @property
    def value(self) -> Expr:
        """What it holds now."""
        return self.cell[0]

    def set(self, value: Expr) -> None:
        """Assign `value`."""
        T.buffer_store(self.cell, value, [0])


class Body:
    """One kernel under construction."""

    def register(self, dtype: str) -> Register:
        """A register that starts as zero."""
        cell = T.alloc_buffer((1,), dtype, scope="local", layout=None)
        register = Register(cell)
        register.set(zero(dtype))
        return register

    def shared(self, elements: int, dtype: str) -> Stored:
        """Local memory of the work-group."""
        return Stored(T.alloc_buffer((elements,), dtype, scope="shared", layout=None), run(elements, dtype))

    def let(self, value: Expr) -> Expr:
        """Bind `value` to a name, so that it is computed once."""
        return T.bind(value)

    def hold(self, value: Expr, dtype: str) -> Expr:
        """Put `value` into a register. TVM may write a `let` out at each use: of a wide vector, for each lane."""
        register = Register(T.alloc_buffer((1,), dtype, scope="local", layout=None))
        register.set(value)
        return self.let(register.value)

    def line(self, source: Stored, number: Expr, exists: Expr | None = None) -> Line:
        """The start of line `number`, computed once.

        Where `exists` does not hold, an image's line is one that reads as zero, and so do some lines further on; a
        pointer's is not affected.
        """
        if not source.is_image:
            return Line(source, self.let(number * source.parameter.width))
        return Line(source, 0, self.let(number if exists is None else tirx.Select(exists, number, _NO_LINE)))

    def ahead(self, line: Line, x: Expr, lines: Expr = 0) -> Line:
        """The place `x` vectors and some lines ahead, computed once."""
        if line.stored.is_image:
            y = line.y if _is_zero(lines) else self.let(line.y + lines)
            return Line(line.stored, self.let(line.start + x), y)
        steps = x if _is_zero(lines) else x + lines * line.stored.parameter.width
        return Line(line.stored, self.let(line.start + steps))

    def load(self, source: Stored | Line, index: Expr, dtype: str, ok: Expr | None = None) -> Expr:
        """A vector of `source` in the type `dtype`, which may be another than the one it is stored as.

        Args:
            source: a parameter, `index` then counting through all its lines, or a place in one.
            index: which vector.
            dtype: of the result.
            ok: where this does not hold, the result is zero. A place in a line of an image ignores it: what lies beside
                the line reads as zero, and what lies above or below is for `line` to exclude.
        """
        stored = source.stored if isinstance(source, Line) else source
        if stored.is_image:
            # An image of halves gives floats for the asking, and no conversion is written.
            read = _READ_HALF if dtype == "float16x4" else _READ_FLOAT
            texel = T.call_extern(dtype, read, stored.handle.data, *_texel(source, index))
            # Below a tensor's last line an image that it shares holds another one, or nothing yet.
            return texel if isinstance(source, Line) else load_if(ok, texel, dtype)
        if stored.is_view:
            read = _READ_HALF_AT if dtype == "float16x4" else _READ_FLOAT_AT
            return load_if(ok, T.call_extern(dtype, read, stored.handle.data, _element(source, index)), dtype)
        return load_if(ok, converted(stored.handle[_element(source, index)], stored.dtype, dtype), dtype)

    def store(self, target: Stored | Line, index: Expr, value: Expr) -> None:
        """Store `value`, converted to the type that `target` is stored as; `target` and `index` as for `load`."""
        stored = target.stored if isinstance(target, Line) else target
        have = str(value.ty.dtype)
        if stored.is_image:
            write = _WRITE_HALF if have == "float16x4" else _WRITE_FLOAT
            T.evaluate(T.call_extern("void", write, stored.handle.data, *_texel(target, index), value))
        else:
            T.buffer_store(stored.handle, converted(value, have, stored.dtype), [_element(target, index)])

    def barrier(self) -> None:
        """Wait for the work-group; what it wrote to local memory is then visible to all of it."""
        T.evaluate(tirx.call_intrin("int32", "tirx.tvm_storage_sync", "shared"))

    def loop(self, start: Expr, stop: Expr) -> Any:
        """`for (i = start; i < stop; ++i)`, as a context manager that gives i."""
        return T.serial(start, stop)

    @contextmanager
    def when(self, condition: Expr | None) -> Iterator[None]:
        """`if (condition) { ... }`; no branch if the condition is None (always true)."""
        if condition is None:
            yield
            return
        with T.If(condition), T.Then():
            yield


@dataclass(frozen=True)
class Grid:
    """Work-groups along x, y, z, and the work-items of one along the same axes."""

    groups: tuple[int, ...]
    local: tuple[int, ...]


def build_func(
    name: str,
    parameters: dict[str, Parameter],
    grid: Grid,
    write: Callable[[Body, dict[str, Stored], tuple[Expr, ...], tuple[Expr, ...]], None],
) -> Any:
    """A kernel as a `tirx.PrimFunc`.

    Args:
        name: the function's name.
        parameters: of the kernel, by name. Those that are no plain buffers are told in the function's attribute
            `MEMORY_ATTRIBUTE`, for TIR sees pointers alone.
        grid: how it is launched.
        write: writes the body; gets the parameters by name, the group's indices, and the work-item's indices
            within the group.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "global_symbol": name, MEMORY_ATTRIBUTE: _placed(parameters)})
            buffers = {
                key: Stored(T.arg(key, T.buffer((parameter.elements,), parameter.dtype, layout=None)), parameter)
                for key, parameter in parameters.items()
            }
            with ExitStack() as axes:
                group = tuple(
                    axes.enter_context(T.launch_thread(f"blockIdx.{axis}", n))
                    for axis, n in zip("xyz", grid.groups, strict=False)
                )
                item = tuple(
                    axes.enter_context(T.launch_thread(f"threadIdx.{axis}", n))
                    for axis, n in zip("xyz", grid.local, strict=False)
                )
                write(Body(), buffers, group, item)
        return builder.get()


def _placed(parameters: dict[str, Parameter]) -> dict[str, str]:
    placed = {}
    for name, parameter in parameters.items():
        if parameter.memory == "constant":
            placed[name] = f"constant {parameter.elements * bytes_of(parameter.dtype)}"
        elif parameter.memory in ("image", "view"):
            placed[name] = parameter.memory
    return placed


def _element(source: Stored | Line, index: Expr) -> Expr:
    return source.start + index if isinstance(source, Line) else index


def _texel(source: Stored | Line, index: Expr) -> tuple[Expr, Expr]:
    if isinstance(source, Line):
        return source.start + index, source.y
    width = source.parameter.width
    return tirx.floormod(index, width), tirx.floordiv(index, width)


def _is_zero(value: Expr) -> bool:
    return isinstance(value, int) and value == 0


def lanes_of(dtype: str) -> int:
    """Lanes of a TVM type name: 4 for "float32x4"."""
    return int(dtype.partition("x")[2] or 1)


def bytes_of(dtype: str) -> int:
    """Bytes of a scalar or vector type."""
    return lanes_of(dtype) * (2 if dtype.startswith("float16") else 4)


def converted(value: Expr, have: str, want: str) -> Expr:
    """`value`, whose type is `have`, in the type `want`."""
    return value if have == want else tirx.Cast(want, value)


def const(value: float, dtype: str) -> Expr:
    """A literal, in all lanes if `dtype` is a vector."""
    scalar = dtype.split("x", maxsplit=1)[0]
    literal = tirx.IntImm(scalar, int(value)) if "int" in scalar else tirx.FloatImm(scalar, float(value))
    return tirx.Broadcast(literal, lanes_of(dtype)) if lanes_of(dtype) > 1 else literal


def zero(dtype: str) -> Expr:
    """Zero of a scalar or vector type."""
    return const(0, dtype)


def lane(vector: Expr, index: int) -> Expr:
    """One lane of a vector, as a scalar."""
    return tirx.Shuffle([vector], [index])


def spread(scalar: Expr, lanes: int) -> Expr:
    """A scalar in every lane. `scalar` must be a name or a lane of one."""
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def gathered(scalars: list[Expr]) -> Expr:
    """The vector with these lanes."""
    return tirx.Shuffle(scalars, list(range(len(scalars))))


def quarter(vector: Expr, dtype: str, index: int) -> Expr:
    """Lanes `4 * index` to `4 * index + 3` of `vector`, whose type is `dtype`."""
    if lanes_of(dtype) == 4:
        return vector
    return gathered([lane(vector, 4 * index + i) for i in range(4)])


def quarters_of(vectors: list[Expr], dtype: str, index: int) -> Expr:
    """`quarter` of each of `vectors`, one behind the other in one vector."""
    if len(vectors) == 1:
        return quarter(vectors[0], dtype, index)
    return gathered([lane(vector, 4 * index + i) for vector in vectors for i in range(4)])


def both(*conditions: Expr | None) -> Expr | None:
    """The conjunction; None stands for true."""
    real = [condition for condition in conditions if condition is not None]
    if not real:
        return None
    return real[0] if len(real) == 1 else tirx.all(*real)


def load_if(condition: Expr | None, value: Expr, dtype: str) -> Expr:
    """`condition ? value : 0` where `value` is evaluated only if the condition holds (None: always)."""
    return value if condition is None else tirx.if_then_else(condition, value, zero(dtype))


def choose(condition: Expr, value: Expr, other: Expr) -> Expr:
    """`condition ? value : other` of integers; both are evaluated."""
    return tirx.Select(condition, *(const(v, "int32") if isinstance(v, int) else v for v in (value, other)))


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)
