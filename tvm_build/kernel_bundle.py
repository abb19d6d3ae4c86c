"""Single kernels, each on data of its own, as one bundle: to compare their results and to time them.

Every case is one launch, and a second one where its output is an image, which a bundle cannot give out. Inputs lie
among the constants and the output is an output of the bundle, so the cases do not depend on each other, and `profile`
times them side by side on any device that runs bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tvm_build.assemble import BUILD_OPTIONS, ConstantData, image_of_buffer, image_row, texel_format
from tvm_build.bundle import Bundle, write_bundle
from tvm_build.emit import emit_opencl
from tvm_build.gpu import Gpu
from tvm_build.kernels import build_kernel
from tvm_build.kernels.built import BuiltKernel
from tvm_build.kernels.stored import Parameter
from tvm_build.launch_plan import (
    Buffer,
    Endpoint,
    Image2d,
    Launch,
    LaunchPlan,
    Memory,
    MemoryArgument,
    Program,
    SampleInput,
    SampleOutput,
)
from tvm_build.ops import (
    ConcatChannels,
    Conv2d,
    Dense,
    Elementwise,
    GlobalAverage,
    Interleave,
    Operator,
    Pack,
    Pool2d,
    Unpack,
    WinogradInput,
    WinogradOutput,
    blocks,
)
from tvm_build.precision import FLOAT32, Precision

Array = np.ndarray[Any, Any]

# The format wants expected outputs. They are the caller's business here, so `check` only tells finite from not finite.
_ANY_FINITE = 1e38


@dataclass(frozen=True)
class KernelCase:
    """One kernel and its data.

    Attributes:
        name: the launch's layer name.
        op: what it computes.
        constants: as `build_kernel` takes them.
        inputs: role ("input0", "input1", ..., "residual") -> float32 array in the kernel's layout; converted to the
            type that the kernel reads.
        schedule: None for the default one.
    """

    name: str
    op: Operator
    inputs: Mapping[str, Array]
    constants: Mapping[str, Array] = field(default_factory=dict)
    schedule: Any = None


def output_shape(op: Operator) -> tuple[int, ...]:
    """Shape of what a kernel writes, the lanes of C4 last."""
    match op:
        case Conv2d():
            return op.batch, blocks(op.out_channels), op.out_height, op.out_width, 4
        case Pool2d() | Interleave():
            return op.batch, blocks(op.channels), op.out_height, op.out_width, 4
        case Dense():
            return op.batch, op.out_features
        case GlobalAverage():
            return op.batch, blocks(op.channels), 1, 1, 4
        case Elementwise() | Pack():
            return op.batch, blocks(op.channels), op.height, op.width, 4
        case Unpack():
            return op.batch, op.channels, op.height, op.width
        case WinogradInput():
            return op.batch * (op.tile + 2) ** 2, blocks(op.channels), op.tiles_y, op.tiles_x, 4
        case WinogradOutput():
            return op.batch, blocks(op.channels), op.out_height, op.out_width, 4
        case ConcatChannels():
            return op.batch, blocks(sum(op.channels)), op.height, op.width, 4


def write_kernel_bundle(path: Path, cases: Sequence[KernelCase], gpu: Gpu, precision: Precision = FLOAT32) -> Bundle:
    """Write `cases` into the bundle `path`; output K is the K-th case's.

    Each kernel is a program of its own, for the names of kernels repeat.
    """
    start = np.zeros(4, np.float32)
    memory: list[Memory] = [Buffer(start.nbytes)]
    weights = ConstantData()
    source = bytearray()
    outputs: list[Endpoint] = []
    programs: list[Program] = []
    launches: list[Launch] = []

    def constant(array: Array, parameter: Parameter) -> MemoryArgument:
        memory.append(weights.add(np.ascontiguousarray(array).tobytes(), image_row(parameter)))
        if parameter.memory == "view":
            memory.append(image_of_buffer(len(memory) - 1, array.nbytes, texel_format(parameter)))
        return MemoryArgument(len(memory) - 1)

    def launch(built: BuiltKernel, layer: str, memory_of: Callable[[str], MemoryArgument]) -> None:
        kernel = emit_opencl(built.func)
        text = kernel.source.encode()
        programs.append(Program(len(source), len(text), BUILD_OPTIONS))
        source.extend(text)
        launches.append(
            Launch(
                program=len(programs) - 1,
                kernel=kernel.name,
                global_size=kernel.global_size,
                local_size=kernel.local_size,
                flops=built.flops,
                bytes=built.bytes,
                layer=layer,
                arguments=tuple(memory_of(name) for name in kernel.arguments),
            )
        )

    for case in cases:
        built = build_kernel(case.op, case.constants, gpu, case.schedule, precision)
        shape = output_shape(case.op)
        dtype = built.scalars["output"]
        memory.append(Buffer(int(np.prod(shape)) * np.dtype(dtype).itemsize))
        result = written = MemoryArgument(len(memory) - 1)
        outputs.append(Endpoint(result.memory, dtype, shape, f"output{len(outputs)}"))
        row = image_row(built.parameters["output"])
        if row is not None:
            memory.append(Image2d(row.width, built.parameters["output"].lines, row.format))
            written = MemoryArgument(len(memory) - 1)

        def argument(
            name: str, built: BuiltKernel = built, case: KernelCase = case, written: MemoryArgument = written
        ) -> MemoryArgument:
            kind, _, key = built.roles[name].partition(":")
            if kind == "output":
                return written
            array = built.constants[key] if kind == "constant" else case.inputs[kind].astype(built.scalars[name])
            return constant(array, built.parameters[name])

        launch(built, case.name, argument)
        if row is not None:
            # Outputs are buffers.
            n, b, h, w, _ = shape
            copy = build_kernel(Elementwise("copy", n, 4 * b, h, w, images=("input0",)), {}, gpu, None, precision)
            ends = {"input0": written, "output": result}
            launch(copy, f"{case.name}:copy", lambda name, ends=ends: ends[name])  # type: ignore[misc]
    plan = LaunchPlan(
        target=gpu.name,
        dtype=precision.name,
        memory=tuple(memory),
        # The format wants an input; nothing reads it.
        inputs=(Endpoint(0, "float32", start.shape, "unused"),),
        outputs=tuple(outputs),
        sample_inputs=(SampleInput(0, "input_0.npy"),),
        sample_outputs=tuple(SampleOutput(k, f"output_{k}.npy", _ANY_FINITE) for k in range(len(outputs))),
        programs=tuple(programs),
        launches=tuple(launches),
    )
    return write_bundle(
        path,
        plan=plan,
        kernels=bytes(source),
        weights=bytes(weights.data),
        manifest={"schema": 1, "name": "kernels", "target": gpu.name},
        inputs=[start],
        outputs=[np.zeros(endpoint.shape, np.float32) for endpoint in outputs],
    )
