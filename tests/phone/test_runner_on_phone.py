"""The real runner, built for this computer, behind adb on an emulated phone, on a real OpenCL device."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from device.adb_target import AdbTarget
from device.errors import DeviceError, RunnerStatus, TargetOfflineError, TargetTimeoutError
from device.local_target import LocalTarget
from device.opencl_drivers import OpenClDriver, find_drivers
from device.runner_client import Runner
from tests.emulated_phone import EmulatedPhone
from tests.hand_made_bundle import scale_add_files, write_files

DRIVERS = {driver.name: driver for driver in find_drivers()}


@pytest.fixture(params=[name for name in ("intel", "pocl") if name in DRIVERS])
def driver(request: pytest.FixtureRequest) -> OpenClDriver:
    return DRIVERS[request.param]


@pytest.fixture
def opencl_phone(tmp_path: Path, key: Path, driver: OpenClDriver) -> Iterator[EmulatedPhone]:
    environment = {**driver.environment, "PATH": os.environ["PATH"]}
    with EmulatedPhone(tmp_path / "phone", environment=environment) as phone:
        phone.authorisation.allow(key.with_name("adbkey.pub").read_bytes())
        yield phone


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_files(tmp_path / "net.clbundle", scale_add_files())


def test_the_whole_line_runs_through_adb_and_agrees_with_this_computer(
    opencl_phone: EmulatedPhone, connect: Callable[..., AdbTarget], bundle: Path, driver: OpenClDriver
) -> None:
    runner = Runner(connect(opencl_phone))
    here = Runner(LocalTarget(driver.name))
    assert runner.info()[0] == here.info()[0]
    there_check, here_check = runner.check(bundle), here.check(bundle)
    assert there_check.outputs == here_check.outputs
    sample = np.load(bundle / "input_0.npy") * 3 + 1
    there, local = runner.run(bundle, [sample]), here.run(bundle, [sample])
    np.testing.assert_array_equal(there.outputs[0], local.outputs[0])  # the same program on the same device
    timed = runner.bench([bundle, bundle], runs=4, warmup_runs=1, warmup_ms=0, launch_runs=1)
    assert [len(times.total_samples_ms) for times in timed.bundles] == [4, 4]


@pytest.mark.parametrize("driver", ["intel"], indirect=True)
def test_a_bundle_damaged_on_the_phone_is_refused_by_the_runner_and_mended_by_the_next_push(
    opencl_phone: EmulatedPhone, connect: Callable[..., AdbTarget], bundle: Path
) -> None:
    target = connect(opencl_phone)
    runner = Runner(target)
    runner.check(bundle)
    store = opencl_phone.files.host_path("/data/local/tmp/structadmm/store")
    kernels, executable = next(store.rglob("kernels.cl")), next(store.rglob("runner"))
    kernels.write_bytes(kernels.read_bytes()[:-1] + b"#")
    command = [_on_phone(executable, opencl_phone), "check", _on_phone(kernels.parent, opencl_phone)]
    assert target.shell(command, timeout_s=60).status == RunnerStatus.INTEGRITY
    assert runner.check(bundle).passed


def _on_phone(path: Path, phone: EmulatedPhone) -> str:
    return f"/{path.relative_to(phone.files.root)}"


def _arm(phone: EmulatedPhone, fault: str) -> None:
    """Make `fault` happen while the runner runs, and not while files are pushed before it."""
    while phone.signal_programs(0) == 0:
        time.sleep(0.005)
    if fault in ("kill", "stop"):
        phone.signal_programs(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    elif fault == "unplug":
        phone.unplug()
    else:
        phone.faults.garbage_after_bytes = 100


@pytest.mark.parametrize("driver", ["intel"], indirect=True)
@pytest.mark.parametrize("fault", ["kill", "stop", "unplug", "garbage"])
def test_a_bench_that_goes_wrong_ends_in_one_line_and_works_the_next_time(
    opencl_phone: EmulatedPhone, connect: Callable[..., AdbTarget], bundle: Path, fault: str
) -> None:
    runner = Runner(connect(opencl_phone))
    runner.check(bundle)
    arming = threading.Thread(target=_arm, args=(opencl_phone, fault))
    arming.start()
    with pytest.raises(DeviceError) as caught:
        runner.bench([bundle], runs=50, warmup_runs=1, warmup_ms=1000, timeout_s=6)
    arming.join()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert isinstance(caught.value, TargetTimeoutError) == (fault == "stop")
    assert isinstance(caught.value, TargetOfflineError) == (fault == "unplug")
    assert len(runner.bench([bundle], runs=5, warmup_ms=0).bundles[0].total_samples_ms) == 5
