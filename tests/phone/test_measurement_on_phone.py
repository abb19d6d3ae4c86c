"""The measure stage on an emulated phone: heat, clocks, the fixed performance mode, broken connections.

Programs really run on this computer's OpenCL device. The phone stretches their time by a factor that it knows at every
moment, so the truth about any sample is the sample with that stretching undone: `Thermals.host_ns`.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from device.adb_target import AdbTarget
from device.config import MeasureConfig
from device.errors import DeviceError, RunnerError, TargetOfflineError
from device.opencl_drivers import find_drivers
from device.runner_build import find_compilers
from device.runner_client import BenchResult, HeatLimit, Runner
from device.stage import measure
from results.statistics import paired_speed_up
from structadmm.progress import SilentReporter
from tests.emulated_phone import EmulatedPhone, ThermalModel
from tests.hand_made_bundle import scale_add_files, write_files

GPU = "class/kgsl/kgsl-3d0"
INTEL = {driver.name: driver for driver in find_drivers()}["intel"]
QUICK = MeasureConfig(runs=8, warmup_runs=1, warmup_ms=0, launch_runs=0, profile_runs=1)

MakePhone = Callable[..., EmulatedPhone]
Connect = Callable[..., AdbTarget]


class Listener(SilentReporter):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def make_phone(tmp_path: Path, key: Path) -> Iterator[MakePhone]:
    """Makes phones that run programs on Intel's CPU runtime, and switches them off."""
    phones: list[EmulatedPhone] = []

    def make(**options: Any) -> EmulatedPhone:
        options.setdefault("environment", INTEL.environment)
        phone = EmulatedPhone(tmp_path / f"phone-{len(phones)}", **options)
        phone.__enter__()
        phones.append(phone)
        phone.authorisation.allow(key.with_name("adbkey.pub").read_bytes())
        return phone

    yield make
    for phone in phones:
        phone.stop()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two networks of which one moves eight times as much as the other."""
    return _pair(tmp_path_factory.mktemp("bundles"), 1 << 20)


@pytest.fixture(scope="module")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same where times do not matter."""
    return _pair(tmp_path_factory.mktemp("tiny"), 1 << 10)


def _pair(folder: Path, size: int) -> dict[str, Path]:
    return {
        "baseline": write_files(folder / "baseline.clbundle", scale_add_files(size)),
        "pruned": write_files(folder / "pruned.clbundle", scale_add_files(size // 8)),
    }


def power_mode(phone: EmulatedPhone) -> str:
    return (phone.files.root / "system/etc/power_mode").read_text().strip()


def true_ms(phone: EmulatedPhone, start_ns: int, starts_ms: Sequence[float], took_ms: Sequence[float]) -> list[float]:
    """Samples as they would have been at the highest clock."""
    assert phone.thermals is not None
    host_ns = phone.thermals.host_ns
    begun = [start_ns + start * 1e6 for start in starts_ms]
    return [(host_ns(at + took * 1e6) - host_ns(at)) / 1e6 for at, took in zip(begun, took_ms, strict=True)]


def test_on_a_phone_that_throttles_the_measurement_says_so_and_its_speed_up_is_the_true_one(
    make_phone: MakePhone, connect: Connect, bundles: dict[str, Path]
) -> None:
    # Goes up and down through its clocks several times a second for as long as something runs.
    restless = ThermalModel(
        clocks_mhz=(585.0, 427.0, 257.0, 150.0),
        heating_c_per_s=80.0,
        cooling_time_s=0.7,
        limit_c=45.0,
        recover_c=40.0,
        step_s=0.15,
    )
    phone = make_phone(thermal_model=restless)
    reporter = Listener()
    target = connect(phone, reporter=reporter, io_timeout_s=20.0, command_timeout_s=20.0)
    config = QUICK.model_copy(update={"runs": 200, "rest_ms": 4, "rest_above_c": 0})
    record = measure(config, bundles, target, reporter)

    assert not record["steadiness"]["steady"]
    assert any("clock fell" in warning for warning in record["steadiness"]["warnings"])
    assert any("throttled" in line for line in reporter.said)
    assert len(set(record["environment"]["during"]["gpu_clock_mhz"])) > 1
    times, start_ns = record["bench"]["times"], record["bench"]["start_ns"]
    samples = {name: times[name]["total_samples_ms"] for name in bundles}
    truth = {name: true_ms(phone, start_ns, times[name]["start_samples_ms"], samples[name]) for name in bundles}
    assert max(samples["baseline"]) > 1.3 * max(min(truth["baseline"]), 0.01)  # the phone did stretch them
    measured = paired_speed_up(samples["baseline"], samples["pruned"], resamples=10).median
    true = paired_speed_up(truth["baseline"], truth["pruned"], resamples=10).median
    # The goal. What is left are rounds in the middle of which the clock stepped; a busy computer is in both figures.
    assert measured == pytest.approx(true, rel=0.03)


def test_measuring_one_network_after_the_other_is_wrong_on_the_same_phone(
    make_phone: MakePhone, connect: Connect, bundles: dict[str, Path]
) -> None:
    # Reaches its limit after some four seconds of work and does not recover in the time of this test.
    warming = ThermalModel(
        clocks_mhz=(585.0, 427.0, 257.0), heating_c_per_s=8.0, cooling_time_s=1e3, recover_c=0.0, step_s=0.1
    )
    phone = make_phone(thermal_model=warming)
    runner = Runner(connect(phone, io_timeout_s=20.0))

    def bench(name: str) -> BenchResult:
        return runner.bench([bundles[name]], runs=40, warmup_runs=1, warmup_ms=0, launch_runs=0)

    def medians(result: BenchResult) -> tuple[float, float]:
        [times] = result.bundles
        took = times.total_samples_ms
        return statistics.median(took), statistics.median(
            true_ms(phone, result.rounds.start_ns, times.start_samples_ms, took)
        )

    cool = medians(bench("baseline"))
    # Somebody who times networks one by one takes his time; what runs meanwhile need not compute anything to heat.
    program = phone.files.host_path("/data/local/tmp/idle")
    program.write_text("#!/bin/sh\nsleep 0.2\n")
    program.chmod(0o755)
    assert phone.thermals is not None
    while phone.thermals.state.level < 2:
        runner.target.shell(["/data/local/tmp/idle"], timeout_s=10)
    warm = medians(bench("pruned"))
    naive, true = cool[0] / warm[0], cool[1] / warm[1]
    assert abs(naive / true - 1) > 0.10


def test_a_hot_phone_rests_until_it_is_cooler_with_its_clocks_held_meanwhile(
    make_phone: MakePhone, connect: Connect, tiny_bundles: dict[str, Path]
) -> None:
    phone = make_phone()
    phone.files.write_sysfs(f"{GPU}/temp", "80000")
    modes = []

    def cool_off() -> None:
        while phone.signal_programs(0) == 0 or power_mode(phone) == "false":
            time.sleep(0.01)
        time.sleep(1.5)  # the runner has begun to rest by then, or finds a cool phone and the test fails
        modes.append(power_mode(phone))
        phone.files.write_sysfs(f"{GPU}/temp", "68000")

    cooling = threading.Thread(target=cool_off)
    cooling.start()
    record = measure(QUICK, tiny_bundles, connect(phone), SilentReporter())
    cooling.join()
    during = record["environment"]["during"]
    assert during["rests"] == 1
    assert during["cooling_ms"] >= 100
    assert during["gpu_temperature_c"][0] == 80.0
    assert during["gpu_temperature_c"][-1] == 68.0
    assert modes == ["true"]
    assert record["environment"]["fixed_performance_mode"] is True
    assert power_mode(phone) == "false"


def test_a_phone_that_stays_hot_is_measured_all_the_same_when_its_time_is_up(
    make_phone: MakePhone, connect: Connect, tiny_bundles: dict[str, Path]
) -> None:
    phone = make_phone()
    phone.files.write_sysfs(f"{GPU}/temp", "91000")
    target = connect(phone)
    files = target.state_files()
    assert [file.name for file in files] == ["gpu_temperature_c", "gpu_clock_mhz"]
    result = Runner(target).bench(
        [tiny_bundles["pruned"]], runs=4, warmup_ms=0, watch=files, heat_limit=HeatLimit(75, 70, at_most_ms=600)
    )
    assert result.watched is not None
    # Sleeps of 100 ms, the last of which may begin just before the time is up and end late on a busy computer.
    assert 600 <= result.watched.cooling_ms < 5000
    assert set(result.watched.values[0]) == {91.0}
    assert set(result.watched.values[1]) == {585.0}
    assert len(result.bundles[0].total_samples_ms) == 4


def test_a_phone_without_kgsl_is_watched_through_its_gpus_thermal_zone(make_phone: MakePhone, connect: Connect) -> None:
    phone = make_phone()
    (phone.files.root / "sys" / GPU / "temp").unlink()
    for name in ("gpuclk", "devfreq/cur_freq"):
        (phone.files.root / "sys" / GPU / name).unlink()
    [file] = connect(phone).state_files()
    assert (file.name, file.scale) == ("gpu_temperature_c", 1000.0)
    assert file.path == "/sys/class/thermal/thermal_zone0/temp"


@pytest.mark.parametrize("tells_temperature", [True, False])
def test_a_rest_ends_five_degrees_below_where_it_begins_and_no_clock_is_taken_for_a_temperature(
    make_phone: MakePhone,
    connect: Connect,
    tiny_bundles: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tells_temperature: bool,
) -> None:
    phone = make_phone()
    if not tells_temperature:
        for name in (f"{GPU}/temp", "class/thermal/thermal_zone0/temp"):
            (phone.files.root / "sys" / name).unlink()
    asked: list[dict[str, Any]] = []

    def watched(*_: object, **options: Any) -> BenchResult:
        asked.append(options)
        raise DeviceError("enough was seen")

    monkeypatch.setattr(Runner, "bench", watched)
    with pytest.raises(DeviceError, match="enough was seen"):
        measure(QUICK, tiny_bundles, connect(phone), SilentReporter())
    names = [file.name for file in asked[0]["watch"]]
    assert names == (["gpu_temperature_c", "gpu_clock_mhz"] if tells_temperature else ["gpu_clock_mhz"])
    assert asked[0]["heat_limit"] == (HeatLimit(75, 70, at_most_ms=120_000) if tells_temperature else None)


def test_the_fixed_performance_mode_is_left_when_the_measurement_fails(
    make_phone: MakePhone, connect: Connect, tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = make_phone()
    modes = []

    def fail(*_: object, **__: object) -> BenchResult:
        modes.append(power_mode(phone))
        raise DeviceError("the bench failed")

    monkeypatch.setattr(Runner, "bench", fail)
    with pytest.raises(DeviceError, match="the bench failed"):
        measure(QUICK, tiny_bundles, connect(phone), SilentReporter())
    assert modes == ["true"]
    assert power_mode(phone) == "false"


def test_two_phones_are_measured_at_once(
    make_phone: MakePhone, connect: Connect, tiny_bundles: dict[str, Path]
) -> None:
    phones = [make_phone(), make_phone()]
    targets = [connect(phone, io_timeout_s=20.0, command_timeout_s=20.0) for phone in phones]
    records: dict[str, dict[str, Any]] = {}

    def run(target: AdbTarget) -> None:
        records[target.name] = measure(QUICK, tiny_bundles, target, SilentReporter())

    threads = [threading.Thread(target=run, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: record["device"] for name, record in records.items()} == {
        f"adb:127.0.0.1:{phone.port}": f"adb:127.0.0.1:{phone.port}" for phone in phones
    }


def test_a_check_survives_a_dropped_connection_and_a_bench_ends_in_one_line(
    make_phone: MakePhone, connect: Connect, tiny_bundles: dict[str, Path]
) -> None:
    phone = make_phone()
    runner = Runner(connect(phone, io_timeout_s=20.0))
    runner.check(tiny_bundles["pruned"])

    def unplug() -> None:
        while phone.signal_programs(0) == 0:
            time.sleep(0.005)
        phone.unplug()

    def unplugged(command: Callable[[], object]) -> object:
        hand = threading.Thread(target=unplug)
        hand.start()
        try:
            return command()
        finally:
            hand.join()

    assert unplugged(lambda: runner.check(tiny_bundles["pruned"]).passed) is True
    assert unplugged(runner.info)
    assert unplugged(lambda: runner.profile(tiny_bundles["pruned"], runs=1).launches)
    with pytest.raises(TargetOfflineError, match="is offline") as caught:
        unplugged(lambda: runner.bench([tiny_bundles["pruned"]], runs=500, warmup_ms=500))
    assert "\n" not in str(caught.value)


def test_a_vendors_missing_library_is_found_where_the_user_says(
    make_phone: MakePhone, connect: Connect, tmp_path: Path
) -> None:
    vendor = tmp_path / "phone-0/vendor/lib64"
    phone = make_phone(environment={"STRUCTADMM_OPENCL_LIBRARY": str(vendor / "libOpenCL.so")})
    vendor.mkdir(parents=True, exist_ok=True)
    compiler = [*next(find_compilers()).command, "-shared", "-fPIC"]
    _compile(compiler, tmp_path, "int vendor_secret(void) { return 7; }", vendor / "libvendor.so")
    # No OpenCL at all, but it loads: what it lacks is the next thing that the runner complains about.
    source = "int vendor_secret(void); int clNothing(void) { return vendor_secret(); }"
    _compile(compiler, tmp_path, source, vendor / "libOpenCL.so", f"-L{vendor}", "-lvendor")
    with pytest.raises(RunnerError, match=r"libvendor\.so.*try STRUCTADMM_LD_LIBRARY_PATH=/vendor/lib64"):
        Runner(connect(phone)).info()
    with pytest.raises(RunnerError, match=r"libOpenCL\.so' has no cl") as caught:
        Runner(connect(phone, library_path="/vendor/lib64")).info()
    assert "LD_LIBRARY_PATH" not in str(caught.value)


def _compile(compiler: Sequence[str], scratch: Path, source: str, library: Path, *options: str) -> None:
    import subprocess

    (scratch / "source.c").write_text(source)
    subprocess.run([*compiler, str(scratch / "source.c"), "-o", str(library), *options], check=True)
