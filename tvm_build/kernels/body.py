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

Expr = Any
"""A TIR expression; TVM ships no type information."""


@dataclass(frozen=True)
class Register:
    """A variable of the kernel that may be assigned more than once."""

    cell: Any

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

    def shared(self, elements: int, dtype: str) -> Any:
        """Local memory of the work-group."""
        return T.alloc_buffer((elements,), dtype, scope="shared", layout=None)

    def let(self, value: Expr) -> Expr:
        """Bind `value` to a name, so that it is computed once."""
        return T.bind(value)

    def load(self, buffer: Any, index: Expr, dtype: str) -> Expr:
        """`buffer[index]` in the type `dtype`, which may be another than the buffer's."""
        return converted(buffer[index], str(buffer.dtype), dtype)

    def store(self, buffer: Any, index: Expr, value: Expr) -> None:
        """`buffer[index] = value`, converted to the buffer's type."""
        T.buffer_store(buffer, converted(value, str(value.ty.dtype), str(buffer.dtype)), [index])

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
    parameters: dict[str, tuple[int, str]],
    grid: Grid,
    write: Callable[[Body, dict[str, Any], tuple[Expr, ...], tuple[Expr, ...]], None],
) -> Any:
    """A kernel as a `tirx.PrimFunc`.

    Args:
        name: the function's name.
        parameters: (elements, dtype) of each `__global` pointer, by name.
        grid: how it is launched.
        write: writes the body; gets the parameters' buffers by name, the group's indices, and the work-item's indices
            within the group.
    """
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            buffers = {
                key: T.arg(key, T.buffer((elements,), dtype, layout=None))
                for key, (elements, dtype) in parameters.items()
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


def both(*conditions: Expr | None) -> Expr | None:
    """The conjunction; None stands for true."""
    real = [condition for condition in conditions if condition is not None]
    if not real:
        return None
    return real[0] if len(real) == 1 else tirx.all(*real)


def load_if(condition: Expr | None, value: Expr, dtype: str) -> Expr:
    """`condition ? value : 0` where `value` is evaluated only if the condition holds (None: always)."""
    return value if condition is None else tirx.if_then_else(condition, value, zero(dtype))


def ceil_div(a: int, b: int) -> int:
    """`a / b`, rounded up."""
    return -(-a // b)
