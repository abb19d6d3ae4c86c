"""TVM's texture kernels made to run: what is wrong with their OpenCL in TVM 0.27, and the least that puts it right.

Three things, each in the source that TVM emits, so that its schedules stay as they are:

- Images are arrays of images. Bundles have none, so the images of an array lie below each other in one.
- They are read through a sampler only where `__OPENCL_VERSION__` is exactly 2.0 or 3.0. Without one, reads outside of
  an image are undefined; all reads get it.
- A store to a texel is never vectorised: the loop over its four lanes becomes a scalar one that writes each lane's
  number into all four, so that the last one stays. The lanes are collected first, and written once.
"""

from __future__ import annotations

import math
import re
from typing import Any

from structadmm.errors import InvariantError, UserError
from tvm_build.memory_plan import ImageRow

_PREAMBLE = re.compile(r"#ifdef __OPENCL_VERSION__\n.*?#endif\n#endif\n", re.DOTALL)
_PARAMETER = re.compile(r"__(?:read|write)_only image2d_array_t (\w+)")
_STORE = re.compile(r"write_imagef\((\w+), (\(int4\)\(.*\)), as_float4\((\w+)\)\);")
_LANES = re.compile(r"^( *)for \(int (\w+_s) = 0; \2 < 4; \+\+\2\) \{$")


def texture_target(image_max: int) -> Any:
    """TVM's Adreno target with textures of up to `image_max` texels a side."""
    import tvm

    tag = tvm.target.Target("qcom/adreno-opencl-texture")
    settings = {**tag.export(), "texture_spatial_limit": image_max}
    settings.pop("tag", None)
    return tvm.target.Target(settings, host="llvm")


def texture_of(buffer: Any) -> tuple[ImageRow, int] | None:
    """The row of the image that a buffer of a scheduled function is, and how many follow in one image of its array.

    None if it lies in a buffer. Shapes end with the four lanes of a texel.
    """
    scope = str(buffer.scope() if callable(buffer.scope) else buffer.scope)
    if not scope.startswith("global.texture"):
        return None
    shape = [int(dim) for dim in buffer.shape]
    if str(buffer.dtype) != "float32" or shape[-1] != 4:
        raise UserError(f"expected textures of four floats, TVM made one of {buffer.dtype} {shape}: build with buffers")
    if scope == "global.texture-weight":
        width, rows = math.prod(shape[1:-1]), shape[0]
    elif scope == "global.texture-nhwc":
        width, rows = math.prod(shape[2:-1]), shape[1]
    else:
        width, rows = shape[-2], shape[-3]
    return ImageRow(width, "rgba_float"), rows


def repaired(source: str, rows: dict[str, int]) -> str:
    """OpenCL C of one kernel, put right.

    Args:
        source: as TVM emits it.
        rows: by the name of a parameter, rows of one image of its array.
    """
    images = _PARAMETER.findall(source)
    if not images:
        return source
    body = _PREAMBLE.sub("", source).replace("image2d_array_t", "image2d_t")
    defined = [f"#define rows_{name}(at) ((int2)((at).x, (at).z * {rows[name]} + (at).y))" for name in images] + [
        "#define READ_IMAGEF(image, sampler, at) read_imagef(image, sampler, rows_##image(at))"
    ]
    undefined = [f"#undef rows_{name}" for name in images] + ["#undef READ_IMAGEF"]
    return "\n".join([*defined, *_written_once(body.strip().splitlines()), *undefined]) + "\n"


def written_images(source: str) -> list[str]:
    """Parameters of a kernel that are images it writes."""
    return re.findall(r"__write_only image2d(?:_array)?_t (\w+)", source)


def _written_once(lines: list[str]) -> list[str]:
    """Loops over the lanes of a texel collect them, and write when they have the last one."""
    found: list[str] = []
    # Indentation and variable of the loop over lanes that a line is in, and where it begins.
    loop: tuple[str, str, int] | None = None
    texels = 0
    for line in lines:
        start = _LANES.match(line)
        if start:
            loop = (start[1], start[2], len(found))
        elif loop is not None and line == f"{loop[0]}}}":
            loop = None
        at = _STORE.search(line)
        if at is None:
            found.append(line)
            continue
        image, place, value = at.groups()
        if loop is None:
            found.append(line.replace(at[0], f"write_imagef({image}, rows_{image}({place}), {value});"))
            continue
        indent, lane, begin = loop
        if re.search(rf"\b{lane}\b", place):
            raise InvariantError(f"expected four lanes of one texel, TVM wrote them to several: {line.strip()}")
        found.insert(begin, f"{indent}float texel_{texels}[4];")
        loop = (indent, lane, begin + 1)
        found.append(line.replace(at[0], f"texel_{texels}[{lane}] = ({value}).s0;"))
        write = f"write_imagef({image}, rows_{image}({place}), vload4(0, texel_{texels}));"
        found.append(f"{indent}  if ({lane} == 3) {write}")
        texels += 1
    return found
