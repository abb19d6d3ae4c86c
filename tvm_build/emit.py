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
from tvm_build.kernels.body import MEMORY_ATTRIBUTE

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
        alone: whether it should be a program of its own: kernels that read constant memory were seen to slow each other
            down within one program on an Adreno 620.
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]
    alone: bool = False


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
    placed = {str(key): str(value) for key, value in dict(func.attrs.get(MEMORY_ATTRIBUTE, {})).items()}
    return OpenClKernel(
        name=str(lowered.attrs["global_symbol"]),
        source=_with_memory(_with_group(_repair(source), local_size), placed),
        arguments=tuple(parameter.removesuffix("_ptr") for parameter in parameters),
        global_size=global_size,
        local_size=local_size,
        alone=any(memory.startswith("constant") for memory in placed.values()),
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


def _with_group(source: str, local_size: tuple[int, ...]) -> str:
    """Say how large the groups are: a compiler that does not know may leave registers for smaller ones only."""
    x, y, z = (*local_size, 1, 1)[:3]
    required, found = re.subn(
        r"^__kernel void ", f"__kernel __attribute__((reqd_work_group_size({x}, {y}, {z}))) void ", source, flags=re.M
    )
    if found != 1:
        raise InvariantError(f"expected one kernel, got {found}")
    return required


def _with_memory(source: str, placed: dict[str, str]) -> str:
    """Turn pointers into images and `__constant` pointers: TVM knows global memory alone.

    Args:
        source: one kernel in which images and views are pointers that only `texel` and its like are called with.
        placed: what `MEMORY_ATTRIBUTE` says of the parameters.
    """
    if not placed:
        return source
    head, body = source.split("{", 1)
    # A preprocessor line may hold a brace, the kernel's head does not.
    if "__kernel" not in head:
        raise InvariantError("expected a kernel whose first brace opens its body")
    for name, memory in placed.items():
        if f" {name}_ptr" not in head:
            continue  # a convolution whose taps all read padding reads neither image nor weights
        pointer = re.compile(rf"__global (\w+)\* restrict {name}_ptr\b")
        if memory == "view":
            head, found = pointer.subn(f"__read_only image1d_buffer_t {name}_ptr", head)
        elif memory == "image":
            written = re.search(rf"\bset_texel(_half)?\({name}_ptr,", body) is not None
            head, found = pointer.subn(f"__{'write' if written else 'read'}_only image2d_t {name}_ptr", head)
        else:
            # Qualcomm's compiler keeps near the arithmetic what it knows to be small; others skip the attribute.
            limit = f"__attribute__((max_constant_size({memory.split()[1]})))"
            head, found = pointer.subn(rf"__constant \1* restrict {name}_ptr {limit}", head)
        if found != 1:
            raise InvariantError(f"expected one pointer {name}_ptr, got {found}")
    prelude = _TEXELS if "image" in placed.values() else ""
    prelude += _HALF_TEXELS if "texel_half(" in body else ""
    prelude += _VIEW_TEXELS if "texel_at(" in body else ""
    prelude += _HALF_VIEW_TEXELS if "texel_half_at(" in body else ""
    return prelude + head + "{" + body


# Guarded, for a program has many kernels. Coordinates outside of the image give zeros.
_TEXELS = """\
#ifndef texel
__constant sampler_t zero_outside = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
#define texel(image, x, y) read_imagef(image, zero_outside, (int2)(x, y))
#define set_texel(image, x, y, value) write_imagef(image, (int2)(x, y), value)
#endif
"""
_HALF_TEXELS = """\
#ifndef texel_half
#define texel_half(image, x, y) read_imageh(image, zero_outside, (int2)(x, y))
#define set_texel_half(image, x, y, value) write_imageh(image, (int2)(x, y), value)
#endif
"""
# An image of a buffer has no sampler: what lies outside of it must not be read.
_VIEW_TEXELS = """\
#ifndef texel_at
#define texel_at(image, x) read_imagef(image, x)
#endif
"""
_HALF_VIEW_TEXELS = """\
#ifndef texel_half_at
#define texel_half_at(image, x) read_imageh(image, x)
#endif
"""


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
