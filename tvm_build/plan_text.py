"""`plan.txt`: a launch plan as lines of text. docs/bundle-format.md is the authority."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from structadmm.errors import InvariantError, UserError
from tvm_build.launch_plan import (
    IMAGE_FORMATS,
    Argument,
    Buffer,
    Constant,
    ConstantImage2d,
    Endpoint,
    FloatArgument,
    Image1dBuffer,
    Image2d,
    Image2dArray,
    IntArgument,
    Launch,
    LaunchPlan,
    Memory,
    MemoryArgument,
    Part,
    Program,
    SampleInput,
    SampleOutput,
)

FORMAT_VERSION = 3
MAX_LINE_BYTES = 4096
# Numbers that follow the ID of a memory object.
_NUMBERS = {
    "buffer": 1,
    "part": 3,
    "constant": 2,
    "image2d": 2,
    "image2d_array": 3,
    "constant_image2d": 3,
    "image1d_buffer": 2,
}
# Lines that the first version did not have.
_SINCE = {"part": 2, "image1d_buffer": 3}


def write_plan(plan: LaunchPlan) -> str:
    """The text of `plan`.

    Raises:
        InvariantError: the plan breaks a rule of the format.
    """
    plan.check()
    lines = [f"structadmm-plan {FORMAT_VERSION}", f"target {plan.target}", f"dtype {plan.dtype}"]
    lines += [_memory_line(number, memory) for number, memory in enumerate(plan.memory)]
    for keyword, endpoints in (("input", plan.inputs), ("output", plan.outputs)):
        for endpoint in endpoints:
            dims = [len(endpoint.shape), *endpoint.shape]
            lines.append(_join(keyword, endpoint.memory, endpoint.dtype, *dims, endpoint.name))
    lines += [_join("sample input", sample.index, sample.file) for sample in plan.sample_inputs]
    lines += [
        _join("sample output", sample.index, sample.file, _number(sample.tolerance)) for sample in plan.sample_outputs
    ]
    lines += [
        _join("program", number, program.offset, program.size, *program.options)
        for number, program in enumerate(plan.programs)
    ]
    lines += [_launch_line(launch) for launch in plan.launches]
    lines.append("end")
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise InvariantError(
                f"a plan line has {len(line)} bytes, at most {MAX_LINE_BYTES} are allowed: {line[:80]}..."
            )
    return "\n".join(lines) + "\n"


def _join(*fields: object) -> str:
    return " ".join(str(field) for field in fields)


def _number(value: float) -> str:
    """The shortest decimal that reads back as the same double."""
    return repr(float(value))


def _memory_line(number: int, memory: Memory) -> str:
    match memory:
        case Buffer():
            return _join("buffer", number, memory.size)
        case Part():
            return _join("part", number, memory.buffer, memory.offset, memory.size)
        case Constant():
            return _join("constant", number, memory.size, memory.offset)
        case Image2d():
            return _join("image2d", number, memory.width, memory.height, memory.format)
        case Image2dArray():
            return _join("image2d_array", number, memory.width, memory.height, memory.depth, memory.format)
        case ConstantImage2d():
            return _join("constant_image2d", number, memory.width, memory.height, memory.format, memory.offset)
        case Image1dBuffer():
            return _join("image1d_buffer", number, memory.buffer, memory.width, memory.format)


def _launch_line(launch: Launch) -> str:
    sizes = [len(launch.global_size), *launch.global_size, *launch.local_size]
    arguments = [_argument_text(argument) for argument in launch.arguments]
    cost = [launch.flops, launch.bytes, launch.layer]
    return _join("launch", launch.program, launch.kernel, *sizes, *cost, len(arguments), *arguments)


def _argument_text(argument: Argument) -> str:
    match argument:
        case MemoryArgument():
            return f"m{argument.memory}"
        case IntArgument():
            return f"i{argument.value}"
        case FloatArgument():
            return f"f{_number(argument.value)}"


def read_plan(text: str) -> LaunchPlan:
    """Parse and check `plan.txt`.

    Raises:
        UserError: it is of a newer version, or not a plan; the message names the line.
    """
    return _Reader(text).run()


class _Reader:
    """Reads line after line; sections may come in their order only."""

    _SECTIONS = (
        "target",
        "dtype",
        "memory",
        "input",
        "output",
        "sample input",
        "sample output",
        "program",
        "launch",
        "end",
    )

    def __init__(self, text: str) -> None:
        if not text.endswith("\n"):
            raise UserError("plan.txt is cut off: its last line has no end: build the bundle again")
        numbered = enumerate(text.split("\n")[:-1], start=1)
        self.lines = [(number, line) for number, line in numbered if line and not line.startswith("#")]
        self.version = FORMAT_VERSION
        self.number = 0
        self.fields: list[str] = []
        self.section = 0
        self.single: dict[str, str] = {}
        self.memory: list[Memory] = []
        self.endpoints: dict[str, list[Endpoint]] = {"input": [], "output": []}
        self.sample_inputs: list[SampleInput] = []
        self.sample_outputs: list[SampleOutput] = []
        self.programs: list[Program] = []
        self.launches: list[Launch] = []

    def run(self) -> LaunchPlan:
        self._header()
        ended = False
        for number, line in self.lines[1:]:
            self.number = number
            if ended:
                raise self._error("nothing may follow `end`")
            if len(line) > MAX_LINE_BYTES or not re.fullmatch(r"[!-~]+( [!-~]+)*", line):
                raise self._error("fields must be printable ASCII, separated by single spaces")
            self.fields = line.split(" ")
            ended = self._line()
        if not ended:
            raise UserError("plan.txt is cut off: its last line must be `end`: build the bundle again")
        plan = LaunchPlan(
            target=self.single.get("target", ""),
            dtype=self.single.get("dtype", ""),
            memory=tuple(self.memory),
            inputs=tuple(self.endpoints["input"]),
            outputs=tuple(self.endpoints["output"]),
            sample_inputs=tuple(self.sample_inputs),
            sample_outputs=tuple(self.sample_outputs),
            programs=tuple(self.programs),
            launches=tuple(self.launches),
        )
        try:
            plan.check()
        except InvariantError as error:
            raise UserError(f"plan.txt: {error}: build the bundle again") from None
        return plan

    def _header(self) -> None:
        first = self.lines[0][1] if self.lines else ""
        match = re.fullmatch(r"structadmm-plan ([0-9]{1,9})", first)
        if match is None:
            raise UserError(
                f"plan.txt: expected `structadmm-plan VERSION` first, got {first[:40]!r}: this is no bundle"
            )
        version = int(match[1])
        if version > FORMAT_VERSION:
            raise UserError(
                f"the bundle has format version {version}, this program reads up to {FORMAT_VERSION}: update structadmm"
            )
        if version < 1:
            raise UserError(f"plan.txt: there is no format version {version}: build the bundle again")
        self.version = version

    def _line(self) -> bool:
        keyword = self.fields[0]
        if keyword == "sample":
            keyword = " ".join(self.fields[:2])
        readers: dict[str, tuple[str, Callable[[], None]]] = {
            "target": ("target", self._single),
            "dtype": ("dtype", self._single),
            "buffer": ("memory", self._memory),
            "part": ("memory", self._memory),
            "constant": ("memory", self._memory),
            "image2d": ("memory", self._memory),
            "image2d_array": ("memory", self._memory),
            "constant_image2d": ("memory", self._memory),
            "image1d_buffer": ("memory", self._memory),
            "input": ("input", self._endpoint),
            "output": ("output", self._endpoint),
            "sample input": ("sample input", self._sample),
            "sample output": ("sample output", self._sample),
            "program": ("program", self._program),
            "launch": ("launch", self._launch),
            "end": ("end", lambda: self._count(1)),
        }
        if keyword not in readers:
            raise self._error(f"unknown line {keyword[:40]!r}")
        if self.version < _SINCE.get(keyword, 1):
            raise self._error(f"`{keyword}` came with format version {_SINCE[keyword]}, the plan's is {self.version}")
        name, read = readers[keyword]
        section = self._SECTIONS.index(name)
        if section < self.section:
            raise self._error(f"`{keyword}` comes too late")
        self.section = section
        read()
        return keyword == "end"

    def _single(self) -> None:
        self._count(2)
        if self.fields[0] in self.single:
            raise self._error(f"a second `{self.fields[0]}`")
        self.single[self.fields[0]] = self.fields[1]

    def _memory(self) -> None:
        keyword, rest = self.fields[0], self.fields[1:]
        form: Sequence[str] = rest
        if keyword in ("image2d", "image2d_array", "constant_image2d", "image1d_buffer"):
            position = 4 if keyword == "image2d_array" else 3
            if len(rest) <= position or rest[position] not in IMAGE_FORMATS:
                raise self._error(f"expected a format among {', '.join(IMAGE_FORMATS)}")
            form = [*rest[:position], *rest[position + 1 :]]
        numbers = [self._integer(field) for field in form]
        if not numbers or numbers[0] != len(self.memory):
            raise self._error(f"expected memory ID {len(self.memory)}")
        values = numbers[1:]
        if len(values) != _NUMBERS[keyword]:
            raise self._error(f"expected {_NUMBERS[keyword]} numbers after the ID, got {len(values)}")
        image_format = next((field for field in rest if field in IMAGE_FORMATS), "rgba_float")
        memory: Memory
        if keyword == "buffer":
            memory = Buffer(values[0])
        elif keyword == "part":
            memory = Part(values[0], values[1], values[2])
        elif keyword == "constant":
            memory = Constant(values[0], values[1])
        elif keyword == "image2d":
            memory = Image2d(values[0], values[1], image_format)  # type: ignore[arg-type]
        elif keyword == "image2d_array":
            memory = Image2dArray(values[0], values[1], values[2], image_format)  # type: ignore[arg-type]
        elif keyword == "image1d_buffer":
            memory = Image1dBuffer(values[0], values[1], image_format)  # type: ignore[arg-type]
        else:
            memory = ConstantImage2d(values[0], values[1], image_format, values[2])  # type: ignore[arg-type]
        self.memory.append(memory)

    def _endpoint(self) -> None:
        if len(self.fields) < 4:
            raise self._error("expected ID DTYPE RANK DIM... NAME")
        rank = self._integer(self.fields[3])
        self._count(5 + rank)
        dims = tuple(self._integer(field) for field in self.fields[4 : 4 + rank])
        endpoint = Endpoint(self._integer(self.fields[1]), self.fields[2], dims, self.fields[-1])
        self.endpoints[self.fields[0]].append(endpoint)

    def _sample(self) -> None:
        if self.fields[1] == "input":
            self._count(4)
            self.sample_inputs.append(SampleInput(self._integer(self.fields[2]), self.fields[3]))
        else:
            self._count(5)
            tolerance = self._real(self.fields[4])
            self.sample_outputs.append(SampleOutput(self._integer(self.fields[2]), self.fields[3], tolerance))

    def _program(self) -> None:
        if len(self.fields) < 4 or self._integer(self.fields[1]) != len(self.programs):
            raise self._error(f"expected program {len(self.programs)} OFFSET SIZE OPTIONS...")
        offset, size = self._integer(self.fields[2]), self._integer(self.fields[3])
        self.programs.append(Program(offset, size, tuple(self.fields[4:])))

    def _launch(self) -> None:
        if len(self.fields) < 4:
            raise self._error("expected PROGRAM KERNEL DIMS G... L... FLOPS BYTES LAYER ARGC ARG...")
        dims = self._integer(self.fields[3])
        rest = self.fields[4:]
        if not 1 <= dims <= 3 or len(rest) < 2 * dims + 4:
            raise self._error("expected 1 to 3 dimensions and what follows them")
        sizes = [self._integer(field) for field in rest[: 2 * dims]]
        flops, traffic = self._integer(rest[2 * dims]), self._integer(rest[2 * dims + 1])
        layer, count = rest[2 * dims + 2], self._integer(rest[2 * dims + 3])
        arguments = rest[2 * dims + 4 :]
        if len(arguments) != count:
            raise self._error(f"expected {count} arguments, got {len(arguments)}")
        self.launches.append(
            Launch(
                program=self._integer(self.fields[1]),
                kernel=self.fields[2],
                global_size=tuple(sizes[:dims]),
                local_size=tuple(sizes[dims:]),
                flops=flops,
                bytes=traffic,
                layer=layer,
                arguments=tuple(self._argument(argument) for argument in arguments),
            )
        )

    def _argument(self, text: str) -> Argument:
        kind, value = text[:1], text[1:]
        if kind == "m":
            return MemoryArgument(self._integer(value))
        if kind == "i" and re.fullmatch(r"-?[0-9]{1,10}", value):
            return IntArgument(int(value))
        if kind == "f":
            return FloatArgument(self._real(value))
        raise self._error(f"expected an argument mID, iVALUE or fVALUE, got {text[:40]!r}")

    def _count(self, expected: int) -> None:
        if len(self.fields) != expected:
            raise self._error(f"expected {expected} fields, got {len(self.fields)}")

    def _integer(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise self._error(f"expected an unsigned number, got {text[:40]!r}")
        return int(text)

    def _real(self, text: str) -> float:
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", text) or not math.isfinite(float(text)):
            raise self._error(f"expected a number, got {text[:40]!r}")
        return float(text)

    def _error(self, what: str) -> UserError:
        return UserError(f"plan.txt line {self.number}: {what}: build the bundle again")
