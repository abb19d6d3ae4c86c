"""Qualcomm's extensions on the host-memory test double, with the sanitizers: used, reported, and each switched off."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from device.errors import RunnerStatus
from device.runner_build import build_runner, find_compilers
from tests.hand_made_bundle import RELU, SCALE_ADD, Program, bundle_files, npy_bytes, part_files, write_files
from tests.opencl.device.conftest import RunnerProcess

DOUBLE = Path(__file__).parents[2] / "emulated_android" / "host_memory_opencl.c"
ADDITIONS = 22


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> RunnerProcess:
    library = tmp_path_factory.mktemp("double") / "libOpenCL.so"
    [compiler, *_] = find_compilers()
    subprocess.run([*compiler.command, "-std=gnu11", "-shared", "-fPIC", "-O1", DOUBLE, "-o", library], check=True)
    return RunnerProcess(build_runner(sanitizers=True), {"STRUCTADMM_OPENCL_LIBRARY": str(library)})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As many launches as need three recordings: additions to and fro between two buffers, and a ReLU."""
    x = np.arange(16, dtype=np.float32)
    launches = [f"launch 0 scale_add 1 16 0 0 0 add/{k} 5 m{k % 2} m2 m{1 - k % 2} f1.0 i{k}" for k in range(ADDITIONS)]
    y = x + ADDITIONS + sum(range(ADDITIONS))
    files = bundle_files(
        [
            *("buffer 0 64", "buffer 1 64", "constant 2 64 0", "buffer 3 64"),
            *("input 0 float32 1 16 x", "output 3 float32 1 16 y"),
        ],
        [Program(SCALE_ADD), Program(RELU)],
        [x],
        [y.astype(np.float32)],
        weights=np.ones(16, np.float32).tobytes(),
        tolerance=0,
        launches=[*launches, "launch 1 relu 1 16 0 0 0 last 2 m0 m3"],
    )
    return write_files(tmp_path / "net.clbundle", files)


def test_launches_are_replayed_from_recordings_in_their_order(runner: RunnerProcess, bundle: Path) -> None:
    checked = runner("check", bundle)
    assert checked.status == 0, checked
    assert checked.one("session")["recording_set"] is True
    assert checked.one("check")["recordings"] == 3
    bench = runner("bench", bundle, bundle, "--runs", 3, "--warmup-ms", 0)
    assert [event["recordings"] for event in bench.events if event["event"] == "bench"] == [3, 3]


@pytest.mark.parametrize(("most", "recordings"), [("4", 6), ("23", 3), ("1", 23)])
def test_a_recording_holds_no_more_launches_than_the_driver_says(
    runner: RunnerProcess, bundle: Path, most: str, recordings: int
) -> None:
    checked = runner("check", bundle, DOUBLE_MOST_RECORDED=most)
    assert checked.status == 0, checked
    assert checked.one("check")["recordings"] == recordings


def test_recorded_and_live_launches_give_the_same_bytes(runner: RunnerProcess, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(npy_bytes(np.random.default_rng(0).standard_normal((48), dtype=np.float32)))
    for switch in ("on", "off"):
        files = ("--input", tmp_path / "x.npy", "--output", tmp_path / f"{switch}.npy", "--samples", 3)
        outcome = runner("run", bundle, *files, "--recording", switch)
        assert outcome.status == 0, outcome
        assert outcome.one("run")["recordings"] == (3 if switch == "on" else 0)
    assert (tmp_path / "on.npy").read_bytes() == (tmp_path / "off.npy").read_bytes()


def test_parts_of_a_buffer_are_arguments_of_recorded_launches(runner: RunnerProcess, tmp_path: Path) -> None:
    bundle = write_files(tmp_path / "parts.clbundle", part_files())
    for switch, recordings in (("on", 1), ("off", 0)):
        checked = runner("check", bundle, "--recording", switch)
        assert checked.status == 0, checked
        assert checked.one("check")["recordings"] == recordings


@pytest.mark.parametrize(("bits", "allowed"), [(0, True), (8 * 512, True), (8 * 1024, False), (8 * 4096, False)])
def test_a_part_where_the_device_allows_none_is_refused_before_any_memory_is_taken(
    runner: RunnerProcess, tmp_path: Path, bits: int, allowed: bool
) -> None:
    bundle = write_files(tmp_path / "parts.clbundle", part_files())
    outcome = runner("check", bundle, DOUBLE_ALIGNMENT_BITS=str(bits))
    assert outcome.status == (0 if allowed else RunnerStatus.DEVICE_LIMIT), outcome
    if not allowed:
        assert f"wants multiples of {bits // 8}" in outcome.stderr
        assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["perf-hint", "priority-hint", "recording"])
def test_each_can_be_switched_off_and_is_reported(runner: RunnerProcess, bundle: Path, name: str) -> None:
    checked = runner("check", bundle, f"--{name}", "off")
    assert checked.status == 0, checked
    session = checked.one("session")
    fields = {"perf-hint": "perf_hint_set", "priority-hint": "priority_hint_set", "recording": "recording_set"}
    assert {key: session[field] for key, field in fields.items()} == {key: key != name for key in fields}
    assert session["recordable_queues"] is True


def test_a_driver_that_refuses_to_record_launches_live_and_says_so(runner: RunnerProcess, bundle: Path) -> None:
    checked = runner("check", bundle, DOUBLE_REFUSES_RECORDINGS="1")
    assert checked.status == 0, checked
    assert checked.one("session")["recording_set"] is True
    assert checked.one("check")["recordings"] == 0


def test_a_profile_times_every_launch_although_they_could_be_recorded(runner: RunnerProcess, bundle: Path) -> None:
    profile = runner("profile", bundle, "--runs", 2)
    assert profile.status == 0, profile
    assert len([event for event in profile.events if event["event"] == "launch"]) == ADDITIONS + 1
