"""What the runner prints, as typed records. Its output crosses a trust border: everything is bounded and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from device.errors import DeviceError, RunnerError, RunnerStatus
from device.target import ShellResult

MAX_OUTPUT_BYTES = 256 << 20
_MAX_LINES = 1 << 20
_MAX_ERROR_CHARACTERS = 1200


class Event(BaseModel):
    """One JSON line. Fields that a newer runner adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DeviceInfo(Event):
    """An OpenCL device as its driver describes it. Zero or empty: the driver does not say."""

    index: str = Field(pattern=r"^\d+\.\d+$", max_length=15)
    platform: str
    platform_version: str
    name: str
    vendor: str
    driver: str
    version: str
    type: Literal["gpu", "cpu", "accelerator", "other"]
    compute_units: int
    clock_mhz: int
    max_work_group: int
    base_align_bytes: int
    global_bytes: int
    max_object_bytes: int
    local_bytes: int
    constant_bytes: int
    images: bool
    image_max_width: int
    image_max_height: int
    image_max_layers: int
    fp16: bool
    perf_hint: bool
    priority_hint: bool
    image_max_buffer: int = 0
    recordable_queues: bool = False
    extensions: str


class Session(DeviceInfo):
    """The device that a command used.

    Attributes:
        opencl_library: what was loaded.
        perf_hint_set: Qualcomm's performance hint was asked for.
        priority_hint_set: likewise its priority hint.
        recording_set: launches may be replayed from recordings.
    """

    opencl_library: str
    perf_hint_set: bool
    priority_hint_set: bool
    recording_set: bool = False


class BinaryCache(Event):
    """Where a bundle's programs came from, in numbers of programs."""

    used: bool
    hits: int
    misses: int
    damaged: int
    refused: int


class Preparation(Event):
    """What it took to make a bundle ready.

    Attributes:
        load_ms: reading, hashing and parsing.
        build_ms: programs and kernels, from source or from the cache.
        memory_bytes: of all memory objects.
        recordings: that the launches are replayed from; 0: they are launched one by one.
    """

    bundle: str
    target: str
    dtype: str
    load_ms: float
    build_ms: float
    memory_bytes: int
    recordings: int = 0
    binary_cache: BinaryCache


class OutputCheck(Event):
    """One output against the bundle's expected one, the worse of two runs.

    Attributes:
        not_finite: elements where one side or both are not a number.
    """

    name: str
    max_abs_error: float
    max_abs_expected: float
    not_finite: int
    tolerance: float
    passed: bool


class Check(Preparation):
    """Outcome of `check`."""

    outputs: tuple[OutputCheck, ...]
    passed: bool

    @property
    def max_abs_error(self) -> float:
        """Over all outputs."""
        return max(output.max_abs_error for output in self.outputs)


class Run(Preparation):
    """Outcome of `run`.

    Attributes:
        samples: how many inferences were run.
    """

    first_run_ms: float
    samples: int


class Statistics(Event):
    """Of a list of times; percentiles interpolate linearly, as numpy's do."""

    min: float
    median: float
    mean: float
    p10: float
    p90: float
    p99: float


class BundleTimes(Preparation):
    """Times of one bundle.

    Attributes:
        first_run_ms: the first inference after the build, before the warm-up.
        total_ms: of one inference: inputs written, launches, outputs read.
        launch_ms: of the launches alone and a finish, from rounds of their own; None if there were none.
        total_samples_ms: raw, in round order.
        start_samples_ms: when each sample began, from the first round's beginning.
        launch_samples_ms: raw, behind `launch_ms`.
    """

    index: int
    first_run_ms: float
    runs: int
    total_ms: Statistics
    launch_ms: Statistics | None = None
    total_samples_ms: tuple[float, ...]
    start_samples_ms: tuple[float, ...]
    launch_samples_ms: tuple[float, ...]


class Rounds(Event):
    """Which bundle was timed when: one permutation of the bundles' indices for each round.

    Attributes:
        start_ns: when the first round began, on the monotonic clock of the machine that ran them.
    """

    seed: int
    start_ns: int
    order: tuple[tuple[int, ...], ...]


class Watched(Event):
    """Numbers read from files of the target between the timed rounds.

    Attributes:
        rests: pauses because the device was hot.
        cooling_ms: how long they took in all.
        at_ms: when each reading was taken, on the clock of `start_samples_ms`.
        values: [files][readings]; None: not readable then.
    """

    rests: int
    cooling_ms: float
    at_ms: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]


class LaunchTime(Event):
    """One launch by the device's own clock. Rates are None where that clock did not tick."""

    index: int
    layer: str
    kernel: str
    median_ms: float
    min_ms: float
    p90_ms: float
    flops: int
    bytes: int
    gflops_per_s: float | None
    gbytes_per_s: float | None


class ProfileSummary(Preparation):
    """Of a whole profile. `launch_sum_ms` leaves out the gaps between launches."""

    runs: int
    launches: int
    launch_sum_ms: Statistics


AnyEvent = TypeVar("AnyEvent", bound=Event)


class Output:
    """The events of one runner command that ended well."""

    def __init__(self, events: Sequence[dict[str, Any]]) -> None:
        self._events = events

    def all(self, event: str, model: type[AnyEvent]) -> list[AnyEvent]:
        """Every `event` line, in order.

        Raises:
            DeviceError: one is not what this version expects.
        """
        try:
            return [model.model_validate(line) for line in self._events if line.get("event") == event]
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DeviceError(
                f"the runner's {event!r} line has a bad {place!r} ({first['msg']}): rebuild the runner"
            ) from None

    def one(self, event: str, model: type[AnyEvent]) -> AnyEvent:
        """The only `event` line.

        Raises:
            DeviceError: there is none, there are several, or it is not what this version expects.
        """
        found = self.all(event, model)
        if len(found) != 1:
            raise DeviceError(f"expected one {event!r} line of the runner, got {len(found)}: run it again")
        return found[0]


def read_output(result: ShellResult) -> Output:
    """The events of a finished runner.

    Raises:
        RunnerError: the runner ended with an exit status of its own.
        DeviceError: it crashed, or printed what is not JSON lines.
    """
    if result.status != 0:
        raise _failure(result)
    return Output(_parse(result.stdout))


def _failure(result: ShellResult) -> DeviceError:
    message = _one_line(result.stderr).removeprefix("runner: ")
    try:
        status = RunnerStatus(result.status)
    except ValueError:
        how = f"signal {-result.status}" if result.status < 0 else f"exit status {result.status}"
        return DeviceError(f"the runner crashed ({how}): {message or 'it said nothing'}: try another device or driver")
    return RunnerError(message or f"the runner failed with status {status.name}", status, _build_log(result.stdout))


def _one_line(stderr: bytes) -> str:
    """The runner's own line. Drivers may have printed others before it; sanitizers print theirs after it."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("runner: ")]
    text = (own or lines or [""])[-1][:_MAX_ERROR_CHARACTERS]
    return "".join(character if character.isprintable() else "?" for character in text)


def _build_log(stdout: bytes) -> str:
    try:
        events = _parse(stdout)
    except DeviceError:
        return ""  # the failure itself is being reported; its log is an extra
    return next((str(line.get("log", "")) for line in events if line.get("event") == "build_log"), "")


def _parse(stdout: bytes) -> list[dict[str, Any]]:
    if len(stdout) > MAX_OUTPUT_BYTES:
        raise DeviceError(f"the runner printed more than {MAX_OUTPUT_BYTES} bytes: use fewer runs")
    lines = stdout.split(b"\n")
    if len(lines) > _MAX_LINES:
        raise DeviceError(f"the runner printed more than {_MAX_LINES} lines: rebuild the runner")
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise DeviceError(f"line {number} of the runner's output is not a JSON object: {line[:60]!r}: run it again")
        events.append(value)
    return events
