"""Candidates of a tuning session on an emulated phone: what is the phone's fault, and what is left on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device import adb_usb
from device.adb_address import AdbAddress
from device.adb_connection import TcpTransport
from device.adb_target import AdbTarget
from device.candidates import LocalMeasurer, Trial, candidate_runner, facts_of_target, try_candidate
from device.errors import TargetOfflineError, TargetRefusedError
from device.opencl_drivers import find_drivers
from device.rpc.bridge import Bridge, DeviceLostError, OpenDevice
from device.runner_client import Runner
from structadmm.progress import SilentReporter
from tests.emulated_phone import EmulatedPhone
from tests.rpc.conftest import write_candidate

DRIVER = find_drivers()[0]
TRIAL = Trial(runs=2, warmup_runs=1)
STORE = "/data/local/tmp/structadmm/store"


@pytest.fixture
def opencl_phone(tmp_path: Path, key: Path) -> Iterator[EmulatedPhone]:
    environment = {**DRIVER.environment, "PATH": os.environ["PATH"]}
    with EmulatedPhone(tmp_path / "phone", environment=environment) as phone:
        phone.authorisation.allow(key.with_name("adbkey.pub").read_bytes())
        yield phone


def stored(phone: EmulatedPhone) -> list[str]:
    return sorted(path.name for path in phone.files.host_path(STORE).glob("*/*"))


def test_candidates_do_not_fill_the_phone(
    opencl_phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    measurer = LocalMeasurer(connect(opencl_phone), TRIAL)
    bundles = [write_candidate(tmp_path, number) for number in range(2)]
    bundles += [write_candidate(tmp_path, bad=bad) for bad in ("wrong", "crash", "build")]
    outcomes = [outcome.status for _, outcome in measurer.measure(bundles)]
    assert outcomes == ["ok", "ok", "wrong", "crashed", "build_failed"]
    assert stored(opencl_phone) == ["runner"]
    Runner(measurer.target).check(bundles[0])
    assert len(stored(opencl_phone)) == 2  # what is no candidate stays for the next time


def test_a_full_phone_ends_the_session_and_is_no_candidates_fault(
    opencl_phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    measurer = LocalMeasurer(connect(opencl_phone), TRIAL)
    outcomes = measurer.measure([write_candidate(tmp_path, number) for number in range(3)])
    assert next(outcomes)[1].status == "ok"
    opencl_phone.faults.disk_free_bytes = 3 << 20
    with pytest.raises(TargetRefusedError, match=r"has 3 MiB free for .*: free some space on the phone"):
        next(outcomes)
    opencl_phone.faults.disk_free_bytes = None
    opencl_phone.faults.disk_full_after_bytes = 10
    with pytest.raises(TargetRefusedError, match=r"refused the file: .*No space left on device"):
        next(measurer.measure([write_candidate(tmp_path, 7)]))
    assert next(measurer.measure([write_candidate(tmp_path, 8)]))[1].status == "ok"


@pytest.fixture
def cable(opencl_phone: EmulatedPhone, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """USB to the emulated phone: `plugged` says whether the phone is found there."""
    state: dict[str, Any] = {"plugged": True, "looked": 0}
    monkeypatch.setattr(adb_usb, "_adb_interfaces", lambda: [])
    find = adb_usb.open_usb_transport

    def open_usb_transport(serial: str | None) -> Any:
        state["looked"] += 1
        return TcpTransport("127.0.0.1", opencl_phone.port) if state["plugged"] else find(serial)

    monkeypatch.setattr(adb_usb, "open_usb_transport", open_usb_transport)
    return state


@pytest.fixture
def on_usb(key: Path, cable: dict[str, Any]) -> Iterator[AdbTarget]:
    del cable
    with AdbTarget(AdbAddress(serial="X1"), key=key, connect_timeout_s=2.0, io_timeout_s=2.0) as target:
        yield target


def unplug(phone: EmulatedPhone, cable: dict[str, Any]) -> None:
    cable.update(plugged=False, looked=0)
    phone.signal_programs(signal.SIGKILL)
    phone.unplug()


def test_a_phone_that_was_never_there_is_not_waited_for(on_usb: AdbTarget, cable: dict[str, Any]) -> None:
    cable["plugged"] = False
    with pytest.raises(TargetOfflineError, match="no phone with serial X1 on USB, found: none: plug it in"):
        on_usb.shell(["true"], timeout_s=5.0)
    assert cable["looked"] == 1


def test_a_phone_that_is_unplugged_is_lost_and_comes_back(
    opencl_phone: EmulatedPhone, on_usb: AdbTarget, cable: dict[str, Any], tmp_path: Path
) -> None:
    runner = candidate_runner(on_usb)
    device = OpenDevice(on_usb, facts_of_target(runner))
    bridge = Bridge.__new__(Bridge)
    bridge._check_health(device)
    unplug(opencl_phone, cable)
    with pytest.raises(DeviceLostError, match="no phone with serial X1 on USB"):
        bridge._check_health(device)
    assert cable["looked"] > 1
    outcome = try_candidate(runner, write_candidate(tmp_path), TRIAL, "device")
    assert outcome.status == "lost"
    assert "no phone with serial X1" in outcome.message
    with pytest.raises(DeviceLostError, match="no phone with serial X1"):
        bridge._session_runner(device)
    cable["plugged"] = True
    assert try_candidate(runner, write_candidate(tmp_path), TRIAL, "device").status == "ok"


def test_a_phone_that_is_unplugged_in_its_fixed_performance_mode(
    opencl_phone: EmulatedPhone, on_usb: AdbTarget, cable: dict[str, Any]
) -> None:
    said: list[str] = []

    class Listener(SilentReporter):
        def say(self, line: str) -> None:
            said.append(line)

    on_usb._reporter = Listener()
    with pytest.raises(KeyError), on_usb.fixed_performance_mode() as agreed:
        assert agreed
        unplug(opencl_phone, cable)
        raise KeyError
    assert "stays in its fixed performance mode" in said[-1]
