"""The runner as a process, plain and with sanitizers, on each OpenCL driver that the set-up installs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from device.opencl_drivers import OpenClDriver, find_drivers
from device.runner_build import build_runner
from tests.emulated_android import Emulated, aarch64_linux, android, missing_requirement
from tests.hand_made_bundle import scale_add_files, write_files

DRIVERS = {driver.name: driver for driver in find_drivers()}


@dataclass(frozen=True)
class Outcome:
    status: int
    events: list[dict[str, Any]]
    stderr: str

    def one(self, event: str) -> dict[str, Any]:
        [found] = [line for line in self.events if line["event"] == event]
        return found


@dataclass(frozen=True)
class RunnerProcess:
    executable: Path
    environment: Mapping[str, str]
    emulator: tuple[str, ...] = ()

    @property
    def command(self) -> tuple[str, ...]:
        return (*self.emulator, str(self.executable))

    def __call__(self, *arguments: object, **variables: str) -> Outcome:
        result = subprocess.run(
            [*self.command, *map(str, arguments)],
            capture_output=True,
            env={**os.environ, **self.environment, **variables},
            timeout=300,
            check=False,
        )
        events = [json.loads(line) for line in result.stdout.splitlines()]
        return Outcome(result.returncode, events, result.stderr.decode())


# Drivers are third-party code that keeps memory until the process ends; everything else is still checked in them.
_SANITIZER_OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


def _cases() -> list[Any]:
    cases = [pytest.param((True, "intel"), id="intel-sanitized")]
    if "pocl" in DRIVERS:
        cases.append(pytest.param((False, "pocl"), id="pocl"))
    return cases


@pytest.fixture(params=_cases())
def runner(request: pytest.FixtureRequest) -> RunnerProcess:
    """The runner on one driver, with sanitizers or as it is; Intel's must be there, since the set-up installs it."""
    sanitizers, name = request.param
    driver: OpenClDriver = DRIVERS[name]
    options = _SANITIZER_OPTIONS if sanitizers else {}
    # Intel's loader shows the system's drivers too; its own comes first.
    return RunnerProcess(build_runner(sanitizers=sanitizers), {**driver.environment, **options})


@pytest.fixture(scope="session")
def emulated_android(tmp_path_factory: pytest.TempPathFactory) -> Emulated | None:
    return None if missing_requirement() else android(tmp_path_factory.mktemp("android") / "root")


@pytest.fixture(params=["sanitized", "aarch64-linux", "arm64-v8a"])
def blind_runner(request: pytest.FixtureRequest, emulated_android: Emulated | None) -> RunnerProcess:
    """The runner without any OpenCL: whatever it says, it says before OpenCL is loaded. Leaks are findings."""
    blind = {"STRUCTADMM_OPENCL_LIBRARY": "/nonexistent"}
    if request.param == "sanitized":
        return RunnerProcess(build_runner(sanitizers=True), blind)
    if emulated_android is None:
        pytest.skip(missing_requirement())
    emulated = emulated_android if request.param == "arm64-v8a" else aarch64_linux()
    return RunnerProcess(build_runner(request.param), blind, emulated.command)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "net.clbundle", scale_add_files())


WriteBundle = Callable[[Mapping[str, bytes]], Path]


@pytest.fixture
def write_bundle(tmp_path: Path) -> WriteBundle:
    return lambda files: write_files(tmp_path / "changed.clbundle", files)
