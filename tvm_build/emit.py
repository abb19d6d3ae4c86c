"""One TIR kernel to OpenCL C, and how to launch it.

TVM's last device pass, `StmtSimplify`, is left out: it puts every shared index back into each of its uses, which makes
the source half as long again and no faster. Its code generator writes two things that need repair: a vector built from
lanes as `float4(a, b, c, d)`, which is C++, and a scalar spread over a vector as sixteen copies of its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from structadmm.errors import InvariantError

_TARGET = "qcom/adreno-opencl"
_AXES = ("x", "y", "z")
_LANES_CALL = re.compile(r"\b((?:float|half|int)(?:2|4|8|16))\(")
_VECTOR_CAST = re.compile(r"\(\((?:float|half|int|uint)(?:2|4|8|16)\)\(")


@dataclass(frozen=True)
class OpenClKernel:
    """One kernel's source and launch.

    Attributes:
        name: the `__kernel` function's name.
        source: OpenCL C that defines this kernel alone.
        arguments: the parameters' names as the TIR function spells them, in OpenCL order.
        global_size: work-items along each axis, at most three.
        local_size: work-items of a group along each axis, as many axes as `global_size`.
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]


def emit_opencl(func: Any) -> OpenClKernel:
    """Lower one kernel and generate its OpenCL C; the same function gives the same bytes.

    Args:
        func: a `tirx.PrimFunc` with a `global_symbol` whose body launches one grid of constant extents.

    Raises:
        InvariantError: the function splits into none or several device kernels, or has scalar parameters.
    """
    import tvm
    from tvm import tirx
    from tvm.tirx.build import codegen_build, split_host_device_mods

    name = str(func.attrs["global_symbol"])
    module = tirx.transform.BindTarget(_target())(tvm.IRModule({name: func}))
    module = tirx.get_tir_pipeline("s_tir")[0](module)
    _, devices = split_host_device_mods(module)
    kernels = [(target, device) for target, device in devices.items() if len(device.functions) == 1]
    if len(kernels) != 1 or len(devices) != 1:
        raise InvariantError(
            f"{name} must lower to one OpenCL kernel, got {[len(d.functions) for d in devices.values()]}"
        )
    target, device = kernels[0]
    device = tvm.ir.transform.Sequential([tirx.transform.LowerWarpMemory(), tirx.transform.LowerIntrin()])(device)
    (lowered,) = device.functions.values()
    global_size, local_size = _launch(lowered)
    parameters = [str(parameter.name) for parameter in lowered.params]
    if not all(parameter.endswith("_ptr") for parameter in parameters):
        raise InvariantError(f"{name} must take memory objects only, got the parameters {parameters}")
    source = str(codegen_build(device, target).inspect_source())
    return OpenClKernel(
        name=str(lowered.attrs["global_symbol"]),
        source=_repair(source),
        arguments=tuple(parameter.removesuffix("_ptr") for parameter in parameters),
        global_size=global_size,
        local_size=local_size,
    )


@lru_cache(maxsize=1)
def _target() -> Any:
    import tvm

    return tvm.target.Target(_TARGET, "llvm")


def _launch(func: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Global and local size, read off the function's `thread_extent` annotations."""
    from tvm import tirx

    extents: dict[str, int] = {}
    statement = func.body
    # Declarations precede the launch; each axis is annotated inside the one before it.
    while isinstance(statement, tirx.SeqStmt | tirx.AttrStmt):
        if isinstance(statement, tirx.SeqStmt):
            statement = statement.seq[-1]
            continue
        if str(statement.attr_key) == "thread_extent":
            extents[str(statement.node.thread_tag)] = int(statement.value)
        statement = statement.body
    axes = max((_AXES.index(tag[-1]) + 1 for tag in extents), default=0)
    if axes == 0:
        raise InvariantError(f"{func.attrs['global_symbol']} must launch a grid, but it binds no thread axis")
    local = tuple(extents.get(f"threadIdx.{axis}", 1) for axis in _AXES[:axes])
    groups = tuple(extents.get(f"blockIdx.{axis}", 1) for axis in _AXES[:axes])
    return tuple(g * n for g, n in zip(groups, local, strict=True)), local


def _repair(source: str) -> str:
    """Make TVM's OpenCL C valid (lane constructors) and short (spread scalars, forward declarations)."""
    lines = [line for line in source.splitlines() if not (line.startswith("__kernel") and line.endswith(";"))]
    return "\n".join(_spread_once(_LANES_CALL.sub(r"(\1)(", line)) for line in lines).strip() + "\n"


def _spread_once(line: str) -> str:
    """Write `((float4)(e, e, e, e))` as `((float4)(e))`."""
    start = 0
    while match := _VECTOR_CAST.search(line, start):
        depth, item, items, position = 1, match.end(), [], match.end()
        while depth:
            char = line[position]
            depth += (char == "(") - (char == ")")
            if (char == "," and depth == 1) or depth == 0:
                items.append(line[item:position].strip())
                item = position + 1
            position += 1
        if len(items) > 1 and len(set(items)) == 1:
            line = f"{line[: match.end()]}{items[0]}{line[position - 1 :]}"
        start = match.end()
    return line
