"""This machine as a target: which of its OpenCL devices `local` means, and how processes see it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from device.errors import DeviceError, TargetTimeoutError
from device.host_facts import host_facts
from device.opencl_drivers import OpenClDriver, find_drivers
from device.runner_build import build_runner
from device.runner_events import MAX_OUTPUT_BYTES, DeviceInfo, read_output
from device.target import ShellResult, StateFile
from structadmm.errors import UserError
from structadmm.files import atomic_path, cache_dir

CHOICE_VARIABLE = "STRUCTADMM_OPENCL"
_INFO_TIMEOUT_S = 120.0
_MAX_ERROR_BYTES = 1 << 20


@dataclass(frozen=True)
class LocalDevice:
    """An OpenCL device of this machine and the driver it is reached through."""

    driver: OpenClDriver
    info: DeviceInfo

    @property
    def name(self) -> str:
        """What `--device` calls it."""
        return f"local:{self.driver.name}"


@dataclass(frozen=True)
class LocalDevices:
    """All OpenCL devices of this machine, in the order in which `local` prefers them, and the drivers that failed.

    Attributes:
        failures: driver name -> why it shows no device, one line.
    """

    devices: tuple[LocalDevice, ...]
    failures: Mapping[str, str]


def find_local_devices() -> LocalDevices:
    """Ask every driver of this machine for its devices, each in a process of its own: a driver may crash.

    Raises:
        UserError: the runner cannot be built.
    """
    runner = build_runner()
    devices, failures = [], {}
    for driver in find_drivers():
        try:
            result = _run([str(runner), "info"], driver.environment, _INFO_TIMEOUT_S)
            infos = read_output(result).all("device", DeviceInfo)
        except DeviceError as error:
            failures[driver.name] = str(error)
            continue
        devices += [LocalDevice(driver, info) for info in infos if driver.platform.lower() in info.platform.lower()]
    return LocalDevices(tuple(sorted(devices, key=_preference)), failures)


def _preference(device: LocalDevice) -> int:
    """A real GPU, else Intel's CPU runtime, else PoCL, else anything; equals stay in the order of the drivers."""
    if device.info.type == "gpu":
        return 0
    if device.driver.name == "intel":
        return 1
    return 2 if device.info.platform == "Portable Computing Language" else 3


def choose_local_device(part: str, found: LocalDevices) -> LocalDevice:
    """The first device, in order of preference, whose driver, platform, vendor or name contains `part`.

    Args:
        part: in any case; empty takes what STRUCTADMM_OPENCL says, and without it the first device.
        found: where to choose from.

    Raises:
        UserError: no device matches.
    """
    wanted = part or os.environ.get(CHOICE_VARIABLE, "")
    for device in found.devices:
        info = device.info
        if any(wanted.lower() in text.lower() for text in (device.driver.name, info.platform, info.vendor, info.name)):
            return device
    failures = "".join(f"; {name}: {why}" for name, why in found.failures.items())
    if not found.devices:
        raise UserError(f"no OpenCL device on this machine{failures}: `pip install intel-opencl-rt`, or install PoCL")
    names = ", ".join(f"{device.name} ({device.info.name})" for device in found.devices)
    raise UserError(f"no local OpenCL device matches {wanted!r}: expected part of one of {names}{failures}")


class LocalTarget:
    """This machine's OpenCL. Nothing is copied: bundles are used where they lie.

    Args:
        part: which device, see `choose_local_device`.
    """

    kind: Literal["host"] = "host"
    abi = "host"
    no_opencl_remedy = ""

    def __init__(self, part: str = "") -> None:
        self.device = choose_local_device(part, find_local_devices())
        self._workdir: str | None = None

    @property
    def name(self) -> str:
        """`local:DRIVER`."""
        return self.device.name

    @property
    def runner_options(self) -> Sequence[str]:
        """The device's index among those its driver shows."""
        return ("--device", self.device.info.index)

    @property
    def program_cache(self) -> str:
        """In the user's cache: the runner keys binaries by device and driver version."""
        return str(cache_dir() / "programs")

    def workdir(self) -> str:
        """A temporary directory, made when it is first asked for."""
        if self._workdir is None:
            self._workdir = tempfile.mkdtemp(prefix="structadmm-")
        return self._workdir

    def push(self, source: Path, name: str) -> str:
        """Where `source` already lies; `name` is not needed here."""
        del name
        if not source.exists():
            raise UserError(f"{source} does not exist: give the path of an existing file or bundle")
        return str(source.resolve())

    def discard(self, path: str) -> None:
        """Nothing: what was pushed lies where it always did."""

    def pull(self, path: str, destination: Path) -> None:
        """Copy `path` to `destination`."""
        with atomic_path(destination) as temporary:
            shutil.copyfile(path, temporary)

    def shell(self, argv: Sequence[str], *, timeout_s: float, retry: bool = False) -> ShellResult:
        """Run `argv` with the environment of this target's driver; there is no connection to `retry`.

        Raises:
            TargetTimeoutError: still running after `timeout_s`; it and its children have been killed.
            DeviceError: it printed more than `MAX_OUTPUT_BYTES`.
        """
        del retry
        return _run(argv, self.device.driver.environment, timeout_s)

    def facts(self) -> dict[str, Any]:
        """CPU, clocks, temperatures, load and kernel of this machine."""
        return host_facts()

    def state_files(self) -> Sequence[StateFile]:
        """None: a computer has a clock for each core and does not say which of them an OpenCL runtime uses."""
        return ()

    @contextmanager
    def fixed_performance_mode(self) -> Iterator[bool]:
        """A computer has none that an ordinary user may set."""
        yield False

    def close(self) -> None:
        """Remove the temporary directory."""
        if self._workdir is not None:
            shutil.rmtree(self._workdir)
            self._workdir = None


def _run(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> ShellResult:
    # Outputs go to files, so that a program that prints without end costs disk until its time-out and no memory.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        try:
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(
                f"cannot start {argv[0]} ({error.strerror}): check that it exists and may be run"
            ) from None
        try:
            status = process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise TargetTimeoutError(
                f"{Path(argv[0]).name} was still running after {timeout_s:g} s and was killed: raise the time-out"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if stdout.seek(0, os.SEEK_END) > MAX_OUTPUT_BYTES:
            raise DeviceError(f"{Path(argv[0]).name} printed more than {MAX_OUTPUT_BYTES} bytes: use fewer runs")
        stdout.seek(0)
        stderr.seek(0)
        return ShellResult(status, stdout.read(), stderr.read(_MAX_ERROR_BYTES))
