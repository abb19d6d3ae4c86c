"""Lowered network to launch plan, kernels.cl and weights.bin."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from structadmm.errors import UserError
from tvm_build.kernels.stored import Parameter
from tvm_build.launch_plan import (
    CONSTANT_ALIGNMENT,
    IMAGE_FORMATS,
    MAX_ARGUMENTS,
    Buffer,
    Constant,
    ConstantImage2d,
    Endpoint,
    Image1dBuffer,
    Image2d,
    ImageFormat,
    Launch,
    LaunchPlan,
    Memory,
    MemoryArgument,
    Part,
    Program,
    valid_name,
)
from tvm_build.lowered import External, KernelLaunch, LoweredNetwork
from tvm_build.memory_check import check_memory
from tvm_build.memory_plan import ImageRow, MemoryPlan, largest_live_bytes, lives, plan_memory
from tvm_build.network import Array

# What the mobile engines pass. Not -cl-fast-relaxed-math: it lets a driver assume that no value is NaN or infinite, and
# `runner check` finds unwritten memory by just these.
BUILD_OPTIONS = ("-cl-mad-enable",)


@dataclass(frozen=True)
class Assembly:
    """The parts of a bundle that follow from the lowered network alone.

    Attributes:
        plan: without samples.
        kernels: kernels.cl.
        weights: weights.bin.
        activation_bytes: of all buffers and images.
        live_bytes: the largest total of tensors alive at one launch; no plan needs less.
    """

    plan: LaunchPlan
    kernels: bytes
    weights: bytes
    activation_bytes: int
    live_bytes: int


def assemble(lowered: LoweredNetwork, target: str, dtype: str) -> Assembly:
    """Give every tensor and constant its memory object, and join the kernels into programs.

    Raises:
        UserError: a launch has more tensors than one can.
        InvariantError: two live tensors share memory, or the plan breaks a rule of the format.
    """
    for launch in lowered.launches:
        if len(launch.arguments) > MAX_ARGUMENTS:
            raise UserError(
                f"{launch.layer} has {len(launch.arguments)} tensors, a launch takes {MAX_ARGUMENTS}: join some of "
                "them before it"
            )
    accesses, inputs, outputs = _touched(lowered)
    alive = lives(lowered.sizes, accesses, inputs, outputs, lowered.images)
    memory_plan = plan_memory(alive)
    memory, identity = activation_memory(memory_plan, lowered.sizes)
    constants = {name for launch in lowered.launches for name in launch.arguments if name in lowered.constants}
    weights = ConstantData()
    by_content: dict[tuple[bytes, ImageRow | None], int] = {}
    for name, array in lowered.constants.items():
        if name not in constants:
            continue
        data = _little_endian(array)
        row = lowered.images.get(name)
        key = hashlib.sha256(data).digest(), row
        if key not in by_content:
            by_content[key] = len(memory)
            memory.append(weights.add(data, row))
        identity[name] = by_content[key]
    kernels, programs, program_of = _programs(lowered)
    viewed: dict[Image1dBuffer, int] = {}
    read_as_image: set[tuple[str, int]] = set()

    def argument(name: str, launch: KernelLaunch) -> MemoryArgument:
        number = identity[name]
        if name not in launch.views:
            return MemoryArgument(number)
        view = image_of_buffer(number, lowered.sizes[name], launch.views[name])
        if view not in viewed:
            viewed[view] = len(memory)
            memory.append(view)
        read_as_image.add((name, viewed[view]))
        return MemoryArgument(viewed[view])

    launches = tuple(
        Launch(
            program=program_of[launch.kernel.name],
            kernel=launch.kernel.name,
            global_size=launch.kernel.global_size,
            local_size=launch.kernel.local_size,
            flops=launch.flops,
            bytes=launch.bytes,
            layer=valid_name(launch.layer),
            arguments=tuple(argument(name, launch) for name in launch.arguments),
        )
        for launch in lowered.launches
    )
    plan = LaunchPlan(
        target=target,
        dtype=dtype,
        memory=tuple(memory),
        inputs=tuple(_endpoint(external, identity) for external in lowered.inputs),
        outputs=tuple(_endpoint(external, identity) for external in lowered.outputs),
        sample_inputs=(),
        sample_outputs=(),
        programs=programs,
        launches=launches,
    )
    plan.check()
    check_memory(plan.memory, identity, lowered.sizes, accesses, inputs, outputs, lowered.images, read_as_image)
    return Assembly(plan, kernels, bytes(weights.data), memory_plan.total_bytes, largest_live_bytes(alive))


def memory_ratio(lowered: LoweredNetwork) -> float:
    """Planned activation memory over the most that is alive at one launch."""
    alive = lives(lowered.sizes, *_touched(lowered), lowered.images)
    return plan_memory(alive).total_bytes / largest_live_bytes(alive)


def _touched(lowered: LoweredNetwork) -> tuple[list[list[str]], list[str], list[str]]:
    """The tensors of each launch, and those that come in and go out."""
    accesses = [[name for name in launch.arguments if name in lowered.sizes] for launch in lowered.launches]
    return accesses, [end.tensor for end in lowered.inputs], [end.tensor for end in lowered.outputs]


def activation_memory(plan: MemoryPlan, sizes: Mapping[str, int]) -> tuple[list[Memory], dict[str, int]]:
    """Memory objects for activations, and the number of each tensor's: an object as a whole, or a part of it."""
    memory: list[Memory] = []
    for number, size in enumerate(plan.objects):
        row = plan.rows.get(number)
        memory.append(Buffer(size) if row is None else Image2d(row.width, size // row.size, row.format))
    cut = {place.object for place in plan.places.values() if place.offset > 0}
    identity: dict[str, int] = {}
    numbers: dict[Part, int] = {}
    for name, place in plan.places.items():
        if place.object not in cut:
            identity[name] = place.object
            continue
        part = Part(place.object, place.offset, sizes[name])
        if part not in numbers:
            numbers[part] = len(memory)
            memory.append(part)
        identity[name] = numbers[part]
    return memory, identity


class ConstantData:
    """The contents of weights.bin, as arrays are added to it."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, data: bytes, row: ImageRow | None) -> Memory:
        """Append `data` where it may begin; returns its memory: a buffer, or an image with such rows."""
        self.data.extend(bytes(-len(self.data) % CONSTANT_ALIGNMENT))
        offset, size = len(self.data), len(data)
        self.data.extend(data)
        if row is None:
            return Constant(size, offset)
        return ConstantImage2d(row.width, size // row.size, row.format, offset)


def image_of_buffer(number: int, size: int, texels: ImageFormat) -> Image1dBuffer:
    """The first `size` bytes of the memory object `number`, to be read as an image."""
    return Image1dBuffer(number, size // IMAGE_FORMATS[texels], texels)


def texel_format(parameter: Parameter) -> ImageFormat:
    """What a texel of a parameter is that is read as an image."""
    return "rgba_half" if parameter.scalar == "float16" else "rgba_float"


def image_row(parameter: Parameter) -> ImageRow | None:
    """What a row of a kernel's parameter is, if that is an image."""
    if parameter.memory != "image":
        return None
    return ImageRow(parameter.width, texel_format(parameter))


def _little_endian(array: Array) -> bytes:
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _endpoint(external: External, identity: dict[str, int]) -> Endpoint:
    # The format has no arrays of rank 0: a single number is an array of one.
    return Endpoint(identity[external.tensor], external.dtype, external.shape or (1,), valid_name(external.name))


def _programs(lowered: LoweredNetwork) -> tuple[bytes, tuple[Program, ...], dict[str, int]]:
    """kernels.cl, its programs, and the program of each kernel: one for all but those that want to be alone."""
    kernels = {launch.kernel.name: launch.kernel for launch in lowered.launches}
    together = [kernel for kernel in kernels.values() if not kernel.alone]
    groups = ([together] if together else []) + [[kernel] for kernel in kernels.values() if kernel.alone]
    source = bytearray()
    programs = []
    for group in groups:
        text = "\n".join(kernel.source for kernel in group).encode("ascii")
        programs.append(Program(len(source), len(text), BUILD_OPTIONS))
        source += text
    program_of = {kernel.name: number for number, group in enumerate(groups) for kernel in group}
    return bytes(source), tuple(programs), program_of


def with_samples(plan: LaunchPlan, tolerances: tuple[float, ...]) -> LaunchPlan:
    """`plan` with a sample for every input and output, in the files that `tvm_build.bundle` writes."""
    from tvm_build.launch_plan import SampleInput, SampleOutput

    return replace(
        plan,
        sample_inputs=tuple(SampleInput(k, f"input_{k}.npy") for k in range(len(plan.inputs))),
        sample_outputs=tuple(SampleOutput(k, f"output_{k}.npy", t) for k, t in enumerate(tolerances)),
    )
