"""A phone that grows warm while programs run and lowers its clock: clock files, thermal files, and time that shows it.

The temperature follows Newton's law of cooling with a source that is proportional to the square of the clock while a
pushed program runs. A governor steps the clock down above a limit and up below another. Programs are not slowed down:
their monotonic clock is stretched by (highest clock / present clock), see `slow_clock.c`, so what they measure is what
this computer needs times a factor that the phone knows exactly. Times that a driver takes from the processor's own
counter are not stretched.
"""

from __future__ import annotations

import mmap
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device.runner_build import find_compilers
from tests.emulated_phone.files import PhoneFiles

_STATE = struct.Struct("<IIqqd")
_TICK_S = 0.05
_GPU = "class/kgsl/kgsl-3d0"


@dataclass(frozen=True)
class ThermalModel:
    """How a phone warms up and what it does about it. The defaults throttle after about ten seconds of work."""

    clocks_mhz: tuple[float, ...] = (585.0, 499.2, 427.0, 345.0, 257.0)
    ambient_c: float = 31.0
    heating_c_per_s: float = 4.0
    cooling_time_s: float = 30.0
    limit_c: float = 62.0
    recover_c: float = 55.0
    step_s: float = 0.5


@dataclass(frozen=True)
class ThermalState:
    """Temperature, index into `clocks_mhz`, and seconds since the last step of the clock."""

    temperature_c: float
    level: int = 0
    since_step_s: float = 0.0


def advance(model: ThermalModel, state: ThermalState, seconds: float, *, busy: bool) -> ThermalState:
    """The state a little later; `seconds` is short against all times of the model."""
    share = model.clocks_mhz[state.level] / model.clocks_mhz[0]
    source = model.heating_c_per_s * share**2 if busy else 0.0
    cooling = (state.temperature_c - model.ambient_c) / model.cooling_time_s
    temperature = state.temperature_c + seconds * (source - cooling)
    since = state.since_step_s + seconds
    if since >= model.step_s:
        if temperature > model.limit_c and state.level < len(model.clocks_mhz) - 1:
            return ThermalState(temperature, state.level + 1)
        if temperature < model.recover_c and state.level > 0:
            return ThermalState(temperature, state.level - 1)
    return ThermalState(temperature, state.level, since)


@dataclass(frozen=True)
class ClockStep:
    """A change of the clock: when it was, on this computer's monotonic clock and on the phone's, and the new clock."""

    host_ns: int
    phone_ns: int
    mhz: float


class Thermals:
    """Runs a model for a phone, in its own thread between `start` and `stop`.

    Args:
        model: how it behaves.
        files: where the clock and thermal files lie.
        is_busy: whether a pushed program runs now.

    Attributes:
        history: every change of the clock, from the one before anything ran.
    """

    def __init__(self, model: ThermalModel, files: PhoneFiles, is_busy: Callable[[], bool]) -> None:
        self.model = model
        self.state = ThermalState(model.ambient_c)
        self._files = files
        self._is_busy = is_busy
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._clock_file = files.root / "system/etc/emulated_clock"
        now = time.monotonic_ns()
        self.history = [ClockStep(now, now, model.clocks_mhz[0])]
        self._clock_file.write_bytes(_STATE.pack(0, 0, now, now, 1.0))
        with self._clock_file.open("r+b") as stream:
            self._clock = mmap.mmap(stream.fileno(), _STATE.size)
        self._library = _build_library(files.root / "system/lib")

    def environment(self) -> dict[str, str]:
        """What a program needs to live by the phone's clock."""
        return {"LD_PRELOAD": str(self._library), "EMULATED_CLOCK": str(self._clock_file)}

    def start(self) -> None:
        """Begin to warm up."""
        self._publish()
        self._thread.start()

    def stop(self) -> None:
        """Freeze the present state."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(_TICK_S):
            now = time.monotonic()
            busy = self._is_busy()
            before = self.state.level
            self.state = advance(self.model, self.state, now - last, busy=busy)
            last = now
            if self.state.level != before:
                self._set_clock(self.model.clocks_mhz[self.state.level])
            self._publish(busy=busy)

    def host_ns(self, phone_ns: float) -> float:
        """When it was on this computer's monotonic clock at a time of the phone's: what programs measure, undone."""
        step = next((step for step in reversed(self.history) if step.phone_ns <= phone_ns), self.history[0])
        return step.host_ns + (phone_ns - step.phone_ns) * step.mhz / self.model.clocks_mhz[0]

    def _set_clock(self, mhz: float) -> None:
        """Change the speed of the phone's time without a jump."""
        sequence, _, host_ns, phone_ns, old_rate = _STATE.unpack(self._clock[:])
        now = time.monotonic_ns()
        step = ClockStep(now, phone_ns + int((now - host_ns) * old_rate), mhz)
        self._clock[0:4] = struct.pack("<I", sequence + 1)
        self._clock[8:] = struct.pack("<qqd", step.host_ns, step.phone_ns, self.model.clocks_mhz[0] / mhz)
        self._clock[0:4] = struct.pack("<I", sequence + 2)
        self.history.append(step)

    def _publish(self, *, busy: bool = False) -> None:
        clock = f"{self.model.clocks_mhz[self.state.level] * 1e6:.0f}"
        temperature = f"{self.state.temperature_c * 1000:.0f}"
        values = {
            f"{_GPU}/gpuclk": clock,
            f"{_GPU}/devfreq/cur_freq": clock,
            f"{_GPU}/gpu_busy_percentage": "100 %" if busy else "0 %",
            f"{_GPU}/temp": temperature,
            "class/thermal/thermal_zone0/temp": temperature,
        }
        for name, value in values.items():
            self._files.write_sysfs(name, value)


def _build_library(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / "slow_clock.so"
    if not library.exists():
        compiler = next(find_compilers())
        source = Path(__file__).with_name("slow_clock.c")
        command = [*compiler.command, "-std=c11", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
    return library
