"""The same run measured through adb, on an emulated phone whose programs run on this computer's OpenCL device."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device.adb_keys import load_signer
from device.opencl_drivers import find_drivers
from results.records import read_result
from tests.emulated_phone import EmulatedPhone

from .conftest import structadmm


def measured(run: Path) -> dict[str, Any]:
    return json.loads((run / "measure" / "measurement.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def phone(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedPhone]:
    """A phone with the OpenCL device that `local` was, so that results can be compared bit by bit."""
    scratch = tmp_path_factory.mktemp("phone")
    name = measured(finished_run)["device"].removeprefix("local:")
    [driver] = [driver for driver in find_drivers() if driver.name == name]
    load_signer(scratch / "adbkey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRUCTADMM_ADBKEY", str(scratch / "adbkey"))
        with EmulatedPhone(scratch / "root", environment={**driver.environment, "PATH": os.environ["PATH"]}) as phone:
            yield phone


def test_a_run_measured_on_a_phone_has_the_checks_of_the_same_run_measured_here(
    config: Path, finished_run: Path, phone: EmulatedPhone, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    device = f"adb:127.0.0.1:{phone.port}"
    done = structadmm("run", config, "--out", run, "--device", device)
    assert done.status == 0, done.stderr
    assert "build: up to date" in done.stderr
    assert "Allow USB debugging?" in done.stderr  # the first command that this phone saw
    here, there = measured(finished_run), measured(run)
    assert there["device"] == device
    assert there["kind"] == "host"  # an emulated phone's times are this computer's, and are labelled so
    assert there["checks"] == here["checks"]
    for name in ("baseline", "pruned"):
        launches = [[launch["kernel"] for launch in record["profiles"][name]["launches"]] for record in (here, there)]
        assert launches[0] == launches[1]
        assert len(there["bench"]["times"][name]["total_samples_ms"]) == 20
    state = there["environment"]
    assert (state["before"]["gpu"], state["before"]["gpu_governor"]) == ("Adreno640v2", "msm-adreno-tz")
    assert state["before"]["android"] == state["after"]["android"]
    assert set(state["during"]["gpu_clock_mhz"]) == {585.0}
    assert state["fixed_performance_mode"] is True
    local, remote = (read_result(path / "report" / "result.json") for path in (finished_run, run))
    assert remote.checks == local.checks
    assert remote.conv_params == local.conv_params
    assert "585 to 585 MHz" in (run / "report" / "report.md").read_text()
    assert not list(phone.files.host_path("/data/local/tmp/structadmm/sessions").glob("*"))
    # Measured again, nothing is pushed: the phone has it.
    before = len(phone.opened_services)
    done = structadmm("measure", run, "--device", device, "--force")
    assert done.status == 0, done.stderr
    assert "sync:" not in phone.opened_services[before:]


def test_devices_and_doctor_tell_about_a_phone_that_is_named(phone: EmulatedPhone) -> None:
    device = f"adb:127.0.0.1:{phone.port}"
    done = structadmm("devices", "--device", device, "--json")
    assert done.status == 0, done.stderr
    [report] = [report for report in json.loads(done.stdout)["phones"] if report["device"] == device]
    assert report["identity"]["model"] == "Emulated Phone"
    assert report["identity"]["gpu"] == "Adreno640v2"
    done = structadmm("doctor", "--device", device)
    assert done.status == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if device in line]
    assert line.startswith("ok ")
    assert "Adreno640v2 (emulated): a kernel was built, run and was right" in line


def test_a_phone_that_is_not_there_is_listed_with_its_problem_and_ends_a_measurement_in_one_line(
    finished_run: Path, phone: EmulatedPhone, tmp_path: Path
) -> None:
    del phone  # its key is used
    done = structadmm("devices", "--device", "adb:127.0.0.1:1")
    assert done.status == 0
    assert "adb:127.0.0.1:1 is offline" in done.stdout
    shutil.copytree(finished_run, tmp_path / "run")
    done = structadmm("measure", tmp_path / "run", "--device", "adb:127.0.0.1:1")
    assert done.status == 2
    assert "adb:127.0.0.1:1 is offline" in done.one_line()
