"""A tracker and servers as users start them, in processes of their own and on whatever ports are free."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from device.adb_keys import load_signer
from device.local_target import LocalDevice, find_local_devices
from device.rpc.address import Address, parse_address
from device.rpc.fleet import FleetServer, query_fleet
from tests.emulated_phone import EmulatedPhone
from tests.hand_made_bundle import Program, bundle_files, scale_add_files, write_files

PATIENCE_S = 180.0
"""For things that take a second or two: only a test that has failed waits for so long."""


def wait_for(what: Callable[[], object], description: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {description}"
        time.sleep(0.05)


@contextlib.contextmanager
def tracker_process(*options: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """One `structadmm rpc tracker`, by default on a port of its own, and where it listens."""
    argv = [sys.executable, "-m", "structadmm", "rpc", "tracker", *(options or ("--port", "0"))]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with process.stdout:
        yield process, parse_address(process.stdout.readline().removeprefix("RPC tracker at ").strip())
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def tracker() -> Iterator[Address]:
    with tracker_process() as (_, address):
        yield address


_KEYS = itertools.count()


@pytest.fixture
def key() -> str:
    """No two tests share devices."""
    return f"key-{os.getpid()}-{next(_KEYS)}"


class ServeCommand:
    """One `structadmm rpc serve`."""

    def __init__(self, tracker: Address, key: str, device: str, log: Path, *options: str) -> None:
        self.tracker = tracker
        self.key = key
        self._argv = [sys.executable, "-m", "structadmm", "rpc", "serve", "--tracker", str(tracker), "--key", key]
        self._argv += ["--device", device, *options]
        self._device = device
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as stream:
            self.process = subprocess.Popen(self._argv, stderr=stream)
        wait_for(lambda: self.listed() or self.process.poll() is not None, f"{self._device} to be registered")
        assert self.process.poll() is None, self.log()

    def listed(self) -> list[FleetServer]:
        """As the tracker tells of it."""
        return [server for server in query_fleet(self.tracker).of_key(self.key) if server.device == self._device]

    def is_free(self) -> bool:
        fleet = query_fleet(self.tracker)
        return [server.busy for server in fleet.of_key(self.key)] == [False] and fleet.free[self.key] == 1

    def log(self) -> str:
        return self._log.read_text()

    def bridge(self) -> psutil.Process:
        [child] = psutil.Process(self.process.pid).children()
        return child

    def end(self) -> None:
        """As by Ctrl-C."""
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=30)
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def gpu() -> LocalDevice:
    """What all servers here serve: PoCL where it is installed, which compiles in a third of the others' time."""
    devices = find_local_devices().devices
    return next((device for device in devices if device.driver.name == "pocl"), devices[0])


@pytest.fixture(scope="session")
def one_server(tracker: Address, gpu: LocalDevice, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeCommand]:
    command = ServeCommand(tracker, f"shared-{os.getpid()}", gpu.name, tmp_path_factory.mktemp("shared") / "serve.log")
    yield command
    command.end()


@pytest.fixture
def shared(one_server: ServeCommand) -> ServeCommand:
    """A server for tests that leave it as it was; free, also where the last test's client hung up a moment ago."""
    wait_for(one_server.is_free, "the shared server to be free")
    return one_server


@pytest.fixture
def serve(tracker: Address, key: str, gpu: LocalDevice, tmp_path: Path) -> Iterator[Callable[..., ServeCommand]]:
    """Starts servers and waits until they are registered."""
    commands: list[ServeCommand] = []

    def start(device: str = gpu.name, *options: str) -> ServeCommand:
        commands.append(ServeCommand(tracker, key, device, tmp_path / f"serve-{len(commands)}.log", *options))
        return commands[-1]

    yield start
    for command in commands:
        command.end()


@pytest.fixture
def make_phone(
    gpu: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], EmulatedPhone]]:
    """Switches on a phone with that GPU; the same phone again where one was switched off."""
    load_signer(tmp_path / "adbkey")
    monkeypatch.setenv("STRUCTADMM_ADBKEY", str(tmp_path / "adbkey"))
    with contextlib.ExitStack() as stack:

        def start(port: int = 0) -> EmulatedPhone:
            environment = {**gpu.driver.environment, "PATH": os.environ["PATH"]}
            phone = EmulatedPhone(tmp_path / "phone", port=port, environment=environment)
            phone.authorisation.allow((tmp_path / "adbkey.pub").read_bytes())
            return stack.enter_context(phone)

        yield start


BAD_KERNELS = {
    "crash": "*(volatile __global int *)0 = i;",
    "hang": "for (volatile int k = 0; k < 2; k = 0) y[i] = k;",
    "nan": "y[i] = NAN;",
    "wrong": "y[i] = x[i] + 1.0f;",
    "build": "y[i] = no_such_function(x[i]);",
}


def write_candidate(directory: Path, number: int = 0, bad: str = "") -> Path:
    """A bundle as a tuner would send it, right or bad in one way; every number is another program."""
    if not bad:
        files = scale_add_files(64, shift=number)
        files["plan.txt"] = files["plan.txt"].replace(b"layer/one", b"candidate").replace(b"layer/two", b"candidate")
        return write_files(directory / f"{number}.clbundle", files)
    x = np.ones((1, 64), np.float32)
    parameters = "__global const float *x, __global float *y"
    return write_files(
        directory / f"{bad}.clbundle",
        bundle_files(
            ["buffer 0 256", "buffer 1 256", "input 0 float32 2 1 64 x", "output 1 float32 2 1 64 y"],
            [Program(f"__kernel void bad({parameters}) {{ int i = get_global_id(0); {BAD_KERNELS[bad]} }}")],
            [x],
            [x],
            launches=["launch 0 bad 1 64 0 64 512 candidate 2 m0 m1"],
        ),
    )
