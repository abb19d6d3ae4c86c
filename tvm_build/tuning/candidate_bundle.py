"""One candidate kernel as a bundle that proves it: right result, nothing written elsewhere, and a time.

The output lies between two guards, as wide as itself within limits. A first launch fills all three with a NaN of a
pattern of its own; the candidate, whose output pointer is moved past the first guard, runs; a last launch copies the
output to where `check` compares it with float64's result and counts the guard's words that have changed, which must be
none. What the candidate did not write is still NaN and fails the comparison, too. Stores beyond the guards, megabytes
away from the output, are the driver's to notice. An output in an image needs no guards: OpenCL drops stores beyond it.

In a network, the rest of an inference lies between two runs of a layer: its weights come from memory unless the whole
network's fit into a cache, and its inputs were just written. So a launch reads as many bytes as that before every run,
and another one the candidate's inputs.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from structadmm.errors import InvariantError
from tvm_build.assemble import BUILD_OPTIONS, ConstantData, image_of_buffer, image_row, texel_format
from tvm_build.bundle import write_bundle
from tvm_build.emit import OpenClKernel
from tvm_build.kernels.body import bytes_of
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.stored import Parameter, run
from tvm_build.launch_plan import (
    Buffer,
    Endpoint,
    Image2d,
    IntArgument,
    Launch,
    LaunchPlan,
    Memory,
    MemoryArgument,
    Program,
    SampleInput,
    SampleOutput,
)
from tvm_build.precision import Precision
from tvm_build.reference import RELATIVE_TOLERANCE
from tvm_build.tuning.expected import Array, TaskData
from tvm_build.tuning.measurer import TIMED_LAYER

MIN_GUARD_BYTES = 64 * 1024
MAX_GUARD_BYTES = 1024 * 1024
MAX_REST_BYTES = 64 * 1024 * 1024
_PAGE = 4096
# A NaN in float32, and in float16 both halves are.
_PATTERN = 0x7FC1FE5A
_COUNTERS = 64
_GROUP = 64
# Vectors of 128 bits that a work-group reads.
_CHUNK = 4096


def write_candidate_bundle(
    path: Path,
    built: BuiltKernel,
    kernel: OpenClKernel,
    data: TaskData,
    target: str,
    precision: Precision,
    *,
    network_bytes: int = 0,
) -> None:
    """Write the bundle `path` for one candidate.

    Args:
        path: must end in `.clbundle`.
        built: the kernel and its packed constants.
        kernel: its OpenCL C.
        data: inputs and the expected result.
        target: the GPU it was built for.
        precision: of the kernel.
        network_bytes: weights of the whole network; what of them is not the candidate's is replaced by other reads.
    """
    memory: list[Memory] = [Buffer(16)]
    weights = ConstantData()

    def add(item: Memory) -> MemoryArgument:
        memory.append(item)
        return MemoryArgument(len(memory) - 1)

    def constant(array: Array, parameter: Parameter) -> MemoryArgument:
        lies = add(weights.add(np.ascontiguousarray(array).tobytes(), image_row(parameter)))
        if parameter.memory != "view":
            return lies
        return add(image_of_buffer(lies.memory, array.nbytes, texel_format(parameter)))

    (output,) = (name for name, role in built.roles.items() if role == "output")
    result = add(Buffer(data.expected.size * 4))
    strays = add(Buffer(_COUNTERS * 4))
    row = image_row(built.parameters[output])
    if row is not None:
        written = add(Image2d(row.width, built.parameters[output].lines, row.format))
        source, proof = kernel.source, _image_proof(row.width, data)
        before: list[Launch] = []
        after = [_proof_launch("proof_result", data.expected.size, written, result)]
    else:
        dtype = built.scalars[output]
        output_bytes = data.expected.size * np.dtype(dtype).itemsize
        guard = guard_bytes(output_bytes)
        # The proof works on whole 32-bit words; an odd number of halves ends inside one.
        words = -(-output_bytes // 4)
        written = add(Buffer(2 * guard + 4 * words))
        source, proof = guarded(kernel, output, guard), _guard_proof(dtype, guard, words, data)
        before = [_proof_launch("proof_fill", 2 * guard // 4 + words, written)]
        after = [
            _proof_launch("proof_result", data.expected.size, written, result),
            _proof_launch("proof_strays", _COUNTERS, written, strays),
        ]
    arguments = []
    inputs: list[tuple[MemoryArgument, Parameter]] = []
    for name in kernel.arguments:
        kind, _, key = built.roles[name].partition(":")
        if kind == "output":
            arguments.append(written)
            continue
        array = built.constants[key] if kind == "constant" else data.inputs[kind].astype(built.scalars[name])
        arguments.append(constant(array, built.parameters[name]))
        if kind != "constant":
            inputs.append((arguments[-1], built.parameters[name]))
    rest_bytes = min(network_bytes, MAX_REST_BYTES) - sum(array.nbytes for array in built.constants.values())
    if rest_bytes > 0:
        rest = run(-(-rest_bytes // 16), "float32x4")
        # What is smaller than one read is left out: it comes along with whatever lies beside it.
        read = [(add(Buffer(rest.elements * 16)), rest), *(each for each in inputs if _vectors(each[1]) > 0)]
        places = {parameter.memory for _, parameter in inputs}
        proof += _READ + (_READ_IMAGE if "image" in places else "") + (_READ_VIEW if "view" in places else "")
        sink = add(Buffer(4 * max(_read_items(parameter) for _, parameter in read)))
        first, *last = (_read_launch(argument, parameter, sink) for argument, parameter in read)
        # What is written and read right before is where a network's activations are.
        before = [first, *before, *last]
    candidate = Launch(
        0, kernel.name, kernel.global_size, kernel.local_size, built.flops, built.bytes, TIMED_LAYER, tuple(arguments)
    )

    expected = data.expected.astype(np.float32)
    tolerance = RELATIVE_TOLERANCE[precision.name] * max(float(np.abs(expected).max()), 1e-3)
    plan = LaunchPlan(
        target=target,
        dtype=precision.name,
        memory=tuple(memory),
        # The format wants an input; nothing reads it.
        inputs=(Endpoint(0, "float32", (4,), "unused"),),
        outputs=(
            Endpoint(result.memory, "float32", data.expected.shape, "result"),
            *((Endpoint(strays.memory, "float32", (_COUNTERS,), "written_outside"),) if row is None else ()),
        ),
        sample_inputs=(SampleInput(0, "input_0.npy"),),
        sample_outputs=(
            SampleOutput(0, "output_0.npy", float(f"{tolerance:.3g}")),
            *((SampleOutput(1, "output_1.npy", 0.0),) if row is None else ()),
        ),
        # The proof is the same for all candidates of a layer: a runner with a cache builds it once.
        programs=(
            Program(0, len(source.encode()), BUILD_OPTIONS),
            Program(len(source.encode()), len(proof.encode()), BUILD_OPTIONS),
        ),
        launches=(*before, candidate, *after),
    )
    write_bundle(
        path,
        plan=plan,
        kernels=(source + proof).encode(),
        weights=bytes(weights.data),
        manifest={"schema": 1, "name": path.stem, "target": target, "dtype": precision.name},
        inputs=[np.zeros(4, np.float32)],
        outputs=[expected, np.zeros(_COUNTERS, np.float32)] if row is None else [expected],
    )


def _proof_launch(name: str, items: int, *given: MemoryArgument) -> Launch:
    return Launch(1, name, (-(-items // _GROUP) * _GROUP,), (_GROUP,), 0, 0, "proof", given)


def _vectors(parameter: Parameter) -> int:
    """How many reads of 128 bits, or of texels, there are in a parameter."""
    as_texels = parameter.memory in ("image", "view")
    return parameter.elements if as_texels else parameter.elements * bytes_of(parameter.dtype) // 16


def _read_items(parameter: Parameter) -> int:
    """Work-items of a launch that reads all of a parameter."""
    return -(-_vectors(parameter) // _CHUNK) * _GROUP


def _read_launch(data: MemoryArgument, parameter: Parameter, sink: MemoryArgument) -> Launch:
    size = [IntArgument(_vectors(parameter))]
    name = "proof_read"
    if parameter.memory == "image":
        name, size = "proof_read_image", [*size, IntArgument(parameter.width)]
    elif parameter.memory == "view":
        name = "proof_read_view"
    return Launch(1, name, (_read_items(parameter),), (_GROUP,), 0, 0, "proof", (data, sink, *size))


# Kernels that read a buffer, an image, or a buffer as an image; what they write is for nothing but to be no dead code.
_READ = f"""
__kernel void proof_read(__global const uint4 *data, __global uint *sink, int vectors) {{
  int first = (int)get_group_id(0) * {_CHUNK}, stop = min(first + {_CHUNK}, vectors);
  uint4 sum = (uint4)(0);
  for (int i = first + (int)get_local_id(0); i < stop; i += {_GROUP}) sum += data[i];
  sink[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}}
"""
_READ_IMAGE = f"""
__constant sampler_t proof_reader = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
__kernel void proof_read_image(__read_only image2d_t data, __global uint *sink, int texels, int width) {{
  int first = (int)get_group_id(0) * {_CHUNK}, stop = min(first + {_CHUNK}, texels);
  uint4 sum = (uint4)(0);
  for (int i = first + (int)get_local_id(0); i < stop; i += {_GROUP}) {{
    sum += as_uint4(read_imagef(data, proof_reader, (int2)(i % width, i / width)));
  }}
  sink[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}}
"""
_READ_VIEW = f"""
__kernel void proof_read_view(__read_only image1d_buffer_t data, __global uint *sink, int texels) {{
  int first = (int)get_group_id(0) * {_CHUNK}, stop = min(first + {_CHUNK}, texels);
  uint4 sum = (uint4)(0);
  for (int i = first + (int)get_local_id(0); i < stop; i += {_GROUP}) sum += as_uint4(read_imagef(data, i));
  sink[get_global_id(0)] = sum.x + sum.y + sum.z + sum.w;
}}
"""


def guard_bytes(output_bytes: int) -> int:
    """Size of each guard: as wide as the output, within limits, in whole pages."""
    return min(max(-(-output_bytes // _PAGE) * _PAGE, MIN_GUARD_BYTES), MAX_GUARD_BYTES)


def guarded(kernel: OpenClKernel, output: str, guard: int) -> str:
    """The kernel's source with its output pointer moved past the first guard.

    Raises:
        InvariantError: the source has no such parameter, or `guard` is no multiple of its elements.
    """
    found = list(
        re.finditer(rf"__global (\w+?)(\d*)\s*\*\s*(?:restrict\s+)?{re.escape(output)}_ptr\s*[,)]", kernel.source)
    )
    if len(found) != 1:
        raise InvariantError(f"{kernel.name} must have one parameter {output}_ptr, got {len(found)}")
    scalar_bytes = {"float": 4, "half": 2}.get(found[0][1])
    if scalar_bytes is None:
        raise InvariantError(f"{kernel.name} writes {found[0][1]}, expected float or half")
    step = scalar_bytes * int(found[0][2] or 1)
    if guard % step:
        raise InvariantError(f"a guard of {guard} bytes is no multiple of {step}")
    body = kernel.source.index("{", found[0].end()) + 1
    return f"{kernel.source[:body]}\n  {output}_ptr += {guard // step};{kernel.source[body:]}"


def _value(data: TaskData) -> str:
    """Element `i` of the result, `value`, with the lanes of C4 that no channel has zeroed."""
    if data.channels is None:
        return "value"
    # Those lanes may hold any finite number: times zero, what is not finite stays NaN.
    _, channel_blocks, height, width, lanes = data.expected.shape
    channel = f"(i / {height * width * lanes} % {channel_blocks}) * {lanes} + i % {lanes}"
    return f"{channel} < {data.channels} ? value : value * 0.0f"


def _image_proof(width: int, data: TaskData) -> str:
    return f"""
__constant sampler_t proof_sampler = CLK_NORMALIZED_COORDS_FALSE | CLK_ADDRESS_CLAMP | CLK_FILTER_NEAREST;
__kernel void proof_result(__read_only image2d_t image, __global float *result) {{
  int i = (int)get_global_id(0);
  if (i >= {data.expected.size}) return;
  float4 texel_read = read_imagef(image, proof_sampler, (int2)(i / 4 % {width}, i / 4 / {width}));
  float value = i % 4 == 0 ? texel_read.x : i % 4 == 1 ? texel_read.y : i % 4 == 2 ? texel_read.z : texel_read.w;
  result[i] = {_value(data)};
}}
"""


def _guard_proof(dtype: str, guard: int, words: int, data: TaskData) -> str:
    load = (
        "vload_half(i, (__global const half *)(arena + FRONT))" if dtype == "float16" else "as_float(arena[FRONT + i])"
    )
    return f"""
#define FRONT {guard // 4}
__kernel void proof_fill(__global uint *arena) {{
  int i = (int)get_global_id(0);
  if (i < {2 * guard // 4 + words}) arena[i] = 0x{_PATTERN:x}u;
}}
__kernel void proof_result(__global const uint *arena, __global float *result) {{
  int i = (int)get_global_id(0);
  if (i >= {data.expected.size}) return;
  float value = {load};
  result[i] = {_value(data)};
}}
__kernel void proof_strays(__global const uint *arena, __global float *strays) {{
  int first = (int)get_global_id(0), changed = 0;
  if (first >= {_COUNTERS}) return;
  for (int i = first; i < FRONT; i += {_COUNTERS}) {{
    changed += arena[i] != 0x{_PATTERN:x}u;
    changed += arena[FRONT + {words} + i] != 0x{_PATTERN:x}u;
  }}
  strays[first] = (float)changed;
}}
"""
