"""The launch plan: memory objects, programs and launches, exactly what `plan.txt` holds."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from typing import Literal

from structadmm.errors import InvariantError
from tvm_build.precision import PRECISIONS

DTYPE_BYTES = {"float32": 4, "float16": 2, "int32": 4}
IMAGE_FORMATS = {"rgba_float": 16, "rgba_half": 8}
NAME = re.compile(r"[A-Za-z0-9_.:/+-]{1,255}")
CONSTANT_ALIGNMENT = 128
MAX_ARGUMENTS = 128  # of a launch: device/runner/plan.h
# What CL_DEVICE_MEM_BASE_ADDR_ALIGN may ask of a part's offset: 128 bytes (long16, OpenCL's largest type) on an Adreno
# and on the CPU runtimes, 512 on NVIDIA's GPUs, the most of any driver known.
PART_ALIGNMENT = 512

ImageFormat = Literal["rgba_float", "rgba_half"]


@dataclass(frozen=True)
class Buffer:
    """Read-write memory of `size` bytes."""

    size: int


@dataclass(frozen=True)
class Part:
    """The bytes [offset, offset + size) of the buffer with the number `buffer`, which comes before it."""

    buffer: int
    offset: int
    size: int


@dataclass(frozen=True)
class Constant:
    """Read-only memory: `size` bytes of weights.bin from `offset`."""

    size: int
    offset: int


@dataclass(frozen=True)
class Image2d:
    """Read-write image."""

    width: int
    height: int
    format: ImageFormat

    @property
    def size(self) -> int:
        """Bytes of the texels."""
        return self.width * self.height * IMAGE_FORMATS[self.format]


@dataclass(frozen=True)
class Image2dArray:
    """Read-write array of images."""

    width: int
    height: int
    depth: int
    format: ImageFormat

    @property
    def size(self) -> int:
        """Bytes of the texels."""
        return self.width * self.height * self.depth * IMAGE_FORMATS[self.format]


@dataclass(frozen=True)
class ConstantImage2d:
    """Read-only image, its texels in weights.bin from `offset`."""

    width: int
    height: int
    format: ImageFormat
    offset: int

    @property
    def size(self) -> int:
        """Bytes of the texels."""
        return self.width * self.height * IMAGE_FORMATS[self.format]


@dataclass(frozen=True)
class Image1dBuffer:
    """The first `width` texels of the buffer, part or constant with the number `buffer`, to be read as an image."""

    buffer: int
    width: int
    format: ImageFormat

    @property
    def size(self) -> int:
        """Bytes of the texels, which are those of `buffer`."""
        return self.width * IMAGE_FORMATS[self.format]


Memory = Buffer | Part | Constant | Image2d | Image2dArray | ConstantImage2d | Image1dBuffer


@dataclass(frozen=True)
class Endpoint:
    """A network input or output in memory object `memory`."""

    memory: int
    dtype: str
    shape: tuple[int, ...]
    name: str

    @property
    def size(self) -> int:
        """Bytes of the dense array."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class SampleInput:
    """The file that holds a sample for input `index`."""

    index: int
    file: str


@dataclass(frozen=True)
class SampleOutput:
    """The file with the expected output `index`, and the largest |difference| that passes."""

    index: int
    file: str
    tolerance: float


@dataclass(frozen=True)
class Program:
    """kernels.cl[offset, offset + size), built with `options`."""

    offset: int
    size: int
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class MemoryArgument:
    """A memory object."""

    memory: int


@dataclass(frozen=True)
class IntArgument:
    """A signed 32-bit number."""

    value: int


@dataclass(frozen=True)
class FloatArgument:
    """A float32 number."""

    value: float


Argument = MemoryArgument | IntArgument | FloatArgument


@dataclass(frozen=True)
class Launch:
    """One kernel launch. A `local_size` of zeros leaves the choice to the driver."""

    program: int
    kernel: str
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]
    flops: int
    bytes: int
    layer: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class LaunchPlan:
    """A whole network. Indices into `memory` and `programs` are their IDs."""

    target: str
    dtype: str
    memory: tuple[Memory, ...]
    inputs: tuple[Endpoint, ...]
    outputs: tuple[Endpoint, ...]
    sample_inputs: tuple[SampleInput, ...]
    sample_outputs: tuple[SampleOutput, ...]
    programs: tuple[Program, ...]
    launches: tuple[Launch, ...]

    def check(self) -> None:
        """Raise InvariantError unless every index, size and name keeps the rules of docs/bundle-format.md."""
        _require(self.dtype in PRECISIONS, f"dtype {self.dtype}")
        _require(bool(NAME.fullmatch(self.target)), f"target name {self.target!r}")
        _require(bool(self.inputs and self.outputs and self.launches), "a plan needs inputs, outputs and launches")
        for number, memory in enumerate(self.memory):
            _check_memory(number, memory)
            if isinstance(memory, Part):
                self._check_part(number, memory)
            elif isinstance(memory, Image1dBuffer):
                self._check_view(number, memory)
        for endpoint in (*self.inputs, *self.outputs):
            self._check_endpoint(endpoint)
        for samples, endpoints in ((self.sample_inputs, self.inputs), (self.sample_outputs, self.outputs)):
            for sample in samples:
                _require(0 <= sample.index < len(endpoints), f"sample {sample.file} belongs to no input or output")
                _require(bool(NAME.fullmatch(sample.file)) and "/" not in sample.file, f"sample file {sample.file!r}")
            _require(len({sample.index for sample in samples}) == len(samples), "two samples for one input or output")
        for sample in self.sample_outputs:
            _require(math.isfinite(sample.tolerance) and sample.tolerance >= 0, f"tolerance {sample.tolerance}")
        for number, program in enumerate(self.programs):
            _require(program.offset >= 0 and program.size > 0, f"program {number} is empty")
            _require(all(re.fullmatch(r"[!-~]+", option) for option in program.options), f"options of program {number}")
        for number, launch in enumerate(self.launches):
            self._check_launch(number, launch)

    def _check_part(self, number: int, part: Part) -> None:
        about = f"memory object {number}"
        _require(0 <= part.buffer < number, f"{about}: part of memory object {part.buffer}")
        buffer = self.memory[part.buffer]
        _require(isinstance(buffer, Buffer), f"{about}: part of memory object {part.buffer}, which is no buffer")
        assert isinstance(buffer, Buffer)
        _require(part.offset >= 0 and part.offset % PART_ALIGNMENT == 0, f"{about}: offset {part.offset}")
        _require(part.offset + part.size <= buffer.size, f"{about}: ends beyond memory object {part.buffer}")

    def _check_view(self, number: int, view: Image1dBuffer) -> None:
        about = f"memory object {number}"
        _require(0 <= view.buffer < number, f"{about}: image of memory object {view.buffer}")
        source = self.memory[view.buffer]
        plain = isinstance(source, Buffer | Part | Constant)
        _require(plain, f"{about}: image of memory object {view.buffer}, which is no buffer")
        _require(view.size <= source.size, f"{about}: more texels than memory object {view.buffer} has")

    def share_bytes(self, one: int, other: int) -> bool:
        """Whether two different memory objects have a byte in common."""
        (owner, start, end), (owner2, start2, end2) = self._extent(one), self._extent(other)
        return owner == owner2 and start < end2 and start2 < end

    def _extent(self, number: int) -> tuple[int, int, int]:
        """The object that is allocated, and the bytes of it [start, end)."""
        memory = self.memory[number]
        if isinstance(memory, Image1dBuffer):
            owner, start, _ = self._extent(memory.buffer)
            return owner, start, start + memory.size
        if isinstance(memory, Part):
            return memory.buffer, memory.offset, memory.offset + memory.size
        return number, 0, memory.size

    def _check_endpoint(self, endpoint: Endpoint) -> None:
        about = f"input or output {endpoint.name!r}"
        _require(bool(NAME.fullmatch(endpoint.name)), f"{about}: name")
        _require(endpoint.dtype in DTYPE_BYTES, f"{about}: dtype {endpoint.dtype}")
        _require(all(dim > 0 for dim in endpoint.shape), f"{about}: shape {endpoint.shape}")
        _require(0 <= endpoint.memory < len(self.memory), f"{about}: memory object {endpoint.memory}")
        memory = self.memory[endpoint.memory]
        fits = isinstance(memory, Buffer | Part) and memory.size >= endpoint.size
        _require(fits, f"{about}: its memory is too small")

    def _check_launch(self, number: int, launch: Launch) -> None:
        about = f"launch {number} ({launch.layer})"
        _require(0 <= launch.program < len(self.programs), f"{about}: program {launch.program}")
        _require(bool(NAME.fullmatch(launch.kernel)), f"{about}: kernel name {launch.kernel!r}")
        _require(bool(NAME.fullmatch(launch.layer)), f"{about}: layer name {launch.layer!r}")
        sizes, locals_ = launch.global_size, launch.local_size
        _require(1 <= len(sizes) <= 3 and len(sizes) == len(locals_), f"{about}: {len(sizes)} dimensions")
        _require(all(size > 0 for size in sizes) and all(size >= 0 for size in locals_), f"{about}: sizes")
        if any(locals_):
            divides = all(n > 0 and size % n == 0 for size, n in zip(sizes, locals_, strict=True))
            _require(divides, f"{about}: global size {sizes} is no multiple of local size {locals_}")
        _require(launch.flops >= 0 and launch.bytes >= 0, f"{about}: negative cost")
        _require(len(launch.arguments) <= MAX_ARGUMENTS, f"{about}: {len(launch.arguments)} arguments")
        for argument in launch.arguments:
            if isinstance(argument, MemoryArgument):
                _require(0 <= argument.memory < len(self.memory), f"{about}: memory object {argument.memory}")
            elif isinstance(argument, IntArgument):
                _require(-(2**31) <= argument.value < 2**31, f"{about}: integer {argument.value}")
            else:
                _require(math.isfinite(argument.value), f"{about}: number {argument.value}")
        given = sorted({argument.memory for argument in launch.arguments if isinstance(argument, MemoryArgument)})
        for one, other in itertools.combinations(given, 2):
            _require(not self.share_bytes(one, other), f"{about}: m{one} and m{other} share bytes")


def _check_memory(number: int, memory: Memory) -> None:
    about = f"memory object {number}"
    if isinstance(memory, Buffer | Part | Constant):
        _require(memory.size > 0, f"{about} is empty")
    elif isinstance(memory, Image1dBuffer):
        _require(memory.width > 0 and memory.format in IMAGE_FORMATS, f"{about}: image")
    else:
        _require(memory.width > 0 and memory.height > 0 and memory.format in IMAGE_FORMATS, f"{about}: image")
    if isinstance(memory, Image2dArray):
        _require(memory.depth > 0, f"{about}: image")
    if isinstance(memory, Constant | ConstantImage2d):
        _require(memory.offset >= 0 and memory.offset % CONSTANT_ALIGNMENT == 0, f"{about}: offset {memory.offset}")


def _require(condition: bool, about: str) -> None:
    if not condition:
        raise InvariantError(f"launch plan: {about} breaks the rules of docs/bundle-format.md")


def valid_name(text: str) -> str:
    """`text` with every character that a plan's names cannot hold replaced by "_", and at most 255 of them."""
    return re.sub(r"[^A-Za-z0-9_.:/+-]", "_", text)[:255] or "_"
