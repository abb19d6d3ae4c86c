"""What `bench --watch` reads between rounds, and the rests it takes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from device.errors import RunnerStatus
from device.runner_build import find_compilers
from tests.opencl.device.conftest import DRIVERS, RunnerProcess

SOURCES = Path(__file__).parents[3] / "device/runner"
QUICK = ("--warmup-runs", 1, "--warmup-ms", 0, "--launch-runs", 0)


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> RunnerProcess:
    """A runner that keeps eight readings where the real one keeps thousands, and reads every millisecond."""
    executable = tmp_path_factory.mktemp("runner") / "runner"
    small = ["-DWATCH_SAMPLES=8", "-DWATCH_INTERVAL_MS=1", "-O1", "-std=c11"]
    sources = map(str, SOURCES.glob("*.c"))
    command = [*next(find_compilers()).command, *small, *sources, "-ldl", "-o", str(executable)]
    subprocess.run(command, check=True)
    return RunnerProcess(executable, DRIVERS["intel"].environment)


def test_numbers_are_read_between_rounds_and_what_is_no_number_is_null(
    runner: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "clock").write_text("585000000\n")
    (tmp_path / "busy").write_text("37 %\n")
    (tmp_path / "text").write_text("msm-adreno-tz\n")
    (tmp_path / "empty").write_text("")
    files = [tmp_path / name for name in ("clock", "busy", "text", "empty", "missing", ".")]
    words = [word for file in files for word in ("--watch", file)]
    outcome = runner("bench", bundle, *QUICK, "--runs", 4, "--rest-ms", 60, *words)
    assert outcome.status == 0, outcome
    watch = outcome.one("watch")
    count = len(watch["at_ms"])
    assert 2 <= count <= 5  # the first round, the end, and at most one every 100 ms between
    assert watch["at_ms"] == sorted(watch["at_ms"])
    assert watch["values"] == [[585000000] * count, [37] * count, *[[None] * count] * 4]
    assert (watch["rests"], watch["cooling_ms"]) == (0, 0)
    [times] = [line for line in outcome.events if line["event"] == "bench"]
    assert watch["at_ms"][0] <= times["start_samples_ms"][0]
    assert watch["at_ms"][-1] >= times["start_samples_ms"][-1] + times["total_samples_ms"][-1]


def test_a_long_measurement_keeps_readings_from_all_of_it(
    forgetful: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "clock").write_text("7")
    outcome = forgetful("bench", bundle, *QUICK, "--runs", 60, "--rest-ms", 2, "--watch", tmp_path / "clock")
    assert outcome.status == 0, outcome
    watch, [times] = outcome.one("watch"), [line for line in outcome.events if line["event"] == "bench"]
    end = times["start_samples_ms"][-1] + times["total_samples_ms"][-1]
    assert 4 <= len(watch["at_ms"]) <= 8
    assert watch["at_ms"] == sorted(watch["at_ms"])
    assert watch["at_ms"][0] <= times["start_samples_ms"][0]
    assert watch["at_ms"][-1] >= end
    assert any(end / 8 < at < end * 7 / 8 for at in watch["at_ms"])


def test_what_is_read_while_the_device_rests_is_no_reading_of_the_rounds(
    runner: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    """A device at rest lowers its clock: kept, such readings would look like throttling."""
    (tmp_path / "heat").write_text("80")
    hot = ("--hot-above", 75, "--hot-until", 70, "--hot-rest-ms", 1500)
    outcome = runner("bench", bundle, *QUICK, "--runs", 3, "--watch", tmp_path / "heat", *hot)
    assert outcome.status == 0, outcome
    watch, [times] = outcome.one("watch"), [line for line in outcome.events if line["event"] == "bench"]
    assert watch["cooling_ms"] >= 1500
    starts = times["start_samples_ms"]
    ends = [start + total for start, total in zip(starts, times["total_samples_ms"], strict=True)]
    assert starts[0] >= 1500  # the rest lies before the first round
    assert not [at for at in watch["at_ms"] if 100 < at < starts[0] - 100], watch
    assert watch["at_ms"][-1] >= ends[-1]


def test_a_rest_lasts_until_the_lower_limit_and_not_only_until_the_upper_one(
    forgetful: RunnerProcess, bundle: Path, tmp_path: Path
) -> None:
    # A pipe gives each reading what the next 63 bytes say, however late on a busy machine.
    readings = [80] + [72] * 8 + [68] * 50
    os.mkfifo(tmp_path / "temp")
    pipe = os.open(tmp_path / "temp", os.O_RDWR)
    try:
        os.write(pipe, b"".join(b"%-63d" % reading for reading in readings))
        hot = ("--watch", tmp_path / "temp", "--hot-above", 75, "--hot-until", 70, "--hot-rest-ms", 60000)
        outcome = forgetful("bench", bundle, *QUICK, "--runs", 1, *hot)
    finally:
        os.close(pipe)
    assert outcome.status == 0, outcome
    watch = outcome.one("watch")
    assert (watch["rests"], watch["values"][0][-1]) == (1, 68)


def test_a_temperature_that_cannot_be_read_is_no_reason_to_rest(forgetful: RunnerProcess, bundle: Path) -> None:
    hot = ("--watch", "/nonexistent", "--hot-above", 1, "--hot-until", 0, "--hot-rest-ms", 60000)
    outcome = forgetful("bench", bundle, *QUICK, "--runs", 2, *hot)
    assert outcome.status == 0, outcome
    assert outcome.one("watch")["cooling_ms"] == 0


def test_more_files_than_it_watches_are_refused(blind_runner: RunnerProcess, bundle: Path) -> None:
    outcome = blind_runner("bench", bundle, *["--watch", "x"] * 9)
    assert outcome.status == RunnerStatus.USAGE
    assert "more than 8 files to watch" in outcome.stderr
