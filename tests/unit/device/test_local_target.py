"""Which device `local` is, and how commands run on this machine."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from device import local_target
from device.errors import DeviceError, TargetTimeoutError
from device.local_target import (
    CHOICE_VARIABLE,
    LocalDevice,
    LocalDevices,
    LocalTarget,
    choose_local_device,
    find_local_devices,
)
from device.opencl_drivers import OpenClDriver, find_drivers
from device.runner_events import DeviceInfo
from device.target import ShellResult, open_target
from structadmm.errors import UserError


def device(driver: str, platform: str, name: str, kind: str) -> LocalDevice:
    numbers = {field: 0 for field, info in DeviceInfo.model_fields.items() if info.annotation is int}
    info = DeviceInfo.model_validate(
        {
            **numbers,
            "index": "0.0",
            "platform": platform,
            "platform_version": "",
            "name": name,
            "vendor": "",
            "driver": "1",
            "version": "",
            "type": kind,
            "images": True,
            "fp16": False,
            "perf_hint": False,
            "priority_hint": False,
            "extensions": "",
        }
    )
    return LocalDevice(OpenClDriver(driver), info)


INTEL = device("intel", "Intel(R) OpenCL", "AMD EPYC", "cpu")
POCL = device("pocl", "Portable Computing Language", "pthread-skylake", "cpu")
GPU = device("nvidia", "NVIDIA CUDA", "NVIDIA H200", "gpu")


def test_part_of_any_name_chooses_a_device_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE_VARIABLE, raising=False)
    found = LocalDevices((GPU, INTEL, POCL), {})
    assert choose_local_device("", found) is GPU
    assert choose_local_device("intel", found) is INTEL
    assert choose_local_device("PORTABLE", found) is POCL
    assert choose_local_device("epyc", found) is INTEL


def test_the_variable_chooses_where_the_option_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE_VARIABLE, "pocl")
    found = LocalDevices((INTEL, POCL), {})
    assert choose_local_device("", found) is POCL
    assert choose_local_device("intel", found) is INTEL


def test_an_unknown_device_is_refused_with_the_names_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE_VARIABLE, raising=False)
    with pytest.raises(UserError, match=r"'adreno'.*local:intel \(AMD EPYC\).*broken: it crashed"):
        choose_local_device("adreno", LocalDevices((INTEL,), {"broken": "it crashed"}))
    with pytest.raises(UserError, match=r"no OpenCL device on this machine.*pip install intel-opencl-rt"):
        choose_local_device("", LocalDevices((), {}))
    with pytest.raises(UserError, match="unknown device 'phone'"):
        open_target("phone")


def test_this_machine_prefers_a_gpu_then_intel_then_pocl() -> None:
    names = [found.driver.name for found in find_local_devices().devices if found.info.type != "gpu"]
    assert "intel" in names
    assert names.index("intel") == 0
    assert sorted(set(names)) == sorted(names), "a device was found through two drivers"


def test_drivers_are_found_beside_their_loader_and_each_sees_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTADMM_CACHE", str(tmp_path / "cache"))
    libraries, vendors = tmp_path / "lib", tmp_path / "vendors"
    libraries.mkdir()
    vendors.mkdir()
    (vendors / "b.icd").write_text("libb.so\n")
    (vendors / "a.icd").write_text("liba.so\n")
    (libraries / "libintelocl.so").touch()
    assert [driver.name for driver in find_drivers([libraries], vendors)] == ["a", "b"]
    (libraries / "libOpenCL.so.1").touch()
    intel, first, second = find_drivers([libraries], vendors)
    assert (intel.name, first.name, second.name) == ("intel", "a", "b")
    assert intel.environment["LD_LIBRARY_PATH"] == str(libraries)
    listed = [list(Path(driver.environment["OCL_ICD_VENDORS"]).iterdir()) for driver in (intel, first, second)]
    texts = [[path.read_text().strip() for path in paths] for paths in listed]
    assert texts == [[str(libraries / "libintelocl.so")], ["liba.so"], ["libb.so"]]


def test_pocl_keeps_its_threads_on_their_cores_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTADMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("POCL_AFFINITY", raising=False)
    (tmp_path / "pocl.icd").write_text("libpocl.so\n")
    (pocl,) = find_drivers([], tmp_path)
    assert pocl.environment["POCL_AFFINITY"] == "1"
    monkeypatch.setenv("POCL_AFFINITY", "0")
    (pocl,) = find_drivers([], tmp_path)
    assert "POCL_AFFINITY" not in pocl.environment


def test_a_machine_without_drivers_has_none(tmp_path: Path) -> None:
    assert find_drivers([tmp_path], tmp_path / "absent") == ()


@pytest.fixture(scope="module")
def target() -> LocalTarget:
    return LocalTarget("intel")


def test_a_command_gets_its_arguments_unharmed_and_its_streams_apart(target: LocalTarget) -> None:
    words = ["a b", "$HOME", "'\"`", "", "ü"]
    program = "import sys; sys.stdout.write('|'.join(sys.argv[1:])); sys.stderr.write('err'); sys.exit(7)"
    result = target.shell([sys.executable, "-X", "utf8", "-c", program, *words], timeout_s=60)
    assert result.status == 7
    assert result.stdout.decode() == "|".join(words)
    assert result.stderr == b"err"


def test_a_command_past_its_time_out_is_killed_with_its_children(target: LocalTarget, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    script = f"(while :; do date +%N > {alive}; sleep 0.05; done) & wait"
    with pytest.raises(TargetTimeoutError, match=r"still running after 0\.5 s and was killed"):
        target.shell(["/bin/sh", "-c", script], timeout_s=0.5)
    time.sleep(0.2)  # the last write of a child that was being killed
    before = alive.read_bytes()
    time.sleep(0.3)
    assert alive.read_bytes() == before


def test_a_program_that_is_not_there_is_a_device_error(target: LocalTarget) -> None:
    with pytest.raises(DeviceError, match="cannot start /no/such/program"):
        target.shell(["/no/such/program"], timeout_s=5)


def test_the_working_directory_goes_with_the_target() -> None:
    target = LocalTarget("intel")
    directory = Path(target.workdir())
    (directory / "x").write_text("left")
    assert target.workdir() == str(directory)
    target.pull(str(directory / "x"), directory / "y")
    assert (directory / "y").read_text() == "left"
    target.close()
    assert not directory.exists()
    target.close()


def test_a_source_that_is_not_there_cannot_be_pushed(target: LocalTarget, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        target.push(tmp_path / "absent", "name")


def test_facts_are_plain_json(target: LocalTarget) -> None:
    import json

    facts = json.loads(json.dumps(target.facts(), allow_nan=False))
    assert facts["cpus"] >= 1
    assert facts["system"] == "Linux"


def test_the_target_of_a_process_does_not_leak_into_ours(target: LocalTarget) -> None:
    seen = target.shell(["/usr/bin/env"], timeout_s=10).stdout.decode()
    assert "OCL_ICD_VENDORS=" in seen
    assert "OCL_ICD_VENDORS" not in subprocess.run(["/usr/bin/env"], capture_output=True, text=True, check=True).stdout


def test_a_driver_that_hangs_is_told_of_and_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = OpenClDriver("hung")
    drivers = find_drivers()
    monkeypatch.setattr(local_target, "find_drivers", lambda: [hung, *drivers])
    run = local_target._run

    def stuck(argv: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> ShellResult:
        if environment is hung.environment:
            return run(["sleep", "60"], environment, 0.1)
        return run(argv, environment, timeout_s)

    monkeypatch.setattr(local_target, "_run", stuck)
    found = find_local_devices()
    assert "still running after 0.1 s" in found.failures["hung"]
    assert {device.driver.name for device in found.devices} <= {driver.name for driver in drivers}
    assert len(found.devices) > 0
