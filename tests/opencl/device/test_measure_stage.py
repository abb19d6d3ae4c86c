"""The runner from Python, and the measure stage, on Intel's runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from device.config import MeasureConfig
from device.errors import CheckError, DeviceError, RunnerError, RunnerStatus
from device.runner_client import Runner
from device.stage import run_measure
from device.target import ShellResult, Target, open_target
from structadmm.errors import UserError
from structadmm.files import read_json
from structadmm.progress import SilentReporter
from tests.hand_made_bundle import scale_add_files, write_files

QUICK = MeasureConfig(runs=12, warmup_runs=1, warmup_ms=0, launch_runs=3, profile_runs=3)


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    target = open_target("local:intel")
    yield target
    target.close()


@pytest.fixture
def build_dir(tmp_path: Path) -> Path:
    write_files(tmp_path / "build/baseline.clbundle", scale_add_files(1 << 18))
    write_files(tmp_path / "build/pruned.clbundle", scale_add_files(1 << 10))
    return tmp_path / "build"


def test_the_record_holds_pairs_in_round_order_and_its_statistics_are_theirs(build_dir: Path, tmp_path: Path) -> None:
    run_measure(QUICK, build_dir, tmp_path / "out", "local:intel", SilentReporter())
    record = read_json(tmp_path / "out/measurement.json", schema=1)
    assert (record["device"], record["kind"]) == ("local:intel", "host")
    assert record["config"]["runs"] == 12
    times = record["bench"]["times"]
    assert list(times) == record["bench"]["bundles"] == ["baseline", "pruned"]
    assert np.array(record["bench"]["order"]).shape == (12, 2)
    for name in times:
        samples = times[name]["total_samples_ms"]
        assert len(samples) == 12
        # Both sides hold twelve significant digits.
        assert times[name]["total_ms"]["median"] == pytest.approx(np.median(samples), rel=1e-10)
        assert record["checks"][name]["max_abs_error"] <= 1e-6
        assert [launch["layer"] for launch in record["profiles"][name]["launches"]] == ["layer/one", "layer/two"]
    # 256 times the work: the difference is no accident of a busy machine.
    assert times["baseline"]["total_ms"]["median"] > times["pruned"]["total_ms"]["median"]
    assert record["environment"]["before"]["cpus"] == record["environment"]["after"]["cpus"]
    assert str(tmp_path) not in json.dumps(record)


def test_a_bundle_that_computes_something_else_is_never_timed(build_dir: Path, tmp_path: Path) -> None:
    files = scale_add_files(1 << 10)
    files["plan.txt"] = files["plan.txt"].replace(b"i-3", b"i-2")
    write_files(build_dir / "pruned.clbundle", files)
    with pytest.raises(CheckError, match=r"pruned.clbundle: output 'y' is off by 1"):
        run_measure(QUICK, build_dir, tmp_path / "out", "local:intel", SilentReporter())
    assert not (tmp_path / "out").exists()


def test_a_missing_bundle_and_an_unknown_device_are_the_users_to_mend(build_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'no such device'"):
        run_measure(QUICK, build_dir, tmp_path / "out", "local:no such device", SilentReporter())
    with pytest.raises(UserError, match=r"baseline\.clbundle does not exist: run the build stage"):
        run_measure(QUICK, tmp_path, tmp_path / "out", "local", SilentReporter())


def test_run_returns_the_networks_outputs(target: Target, build_dir: Path) -> None:
    bundle = build_dir / "pruned.clbundle"
    result = Runner(target).run(bundle, [np.load(bundle / "input_0.npy")])
    # The device may fuse a multiplication and an addition.
    np.testing.assert_allclose(result.outputs[0], np.load(bundle / "output_0.npy"), atol=1e-6)
    assert result.session.platform.startswith("Intel")


def test_run_refuses_arrays_the_network_does_not_take(target: Target, build_dir: Path) -> None:
    runner = Runner(target)
    with pytest.raises(UserError, match="input 0 is float64"):
        runner.run(build_dir / "pruned.clbundle", [np.zeros((1, 1024))])
    with pytest.raises(RunnerError) as caught:
        runner.run(build_dir / "pruned.clbundle", [np.zeros((1, 7), np.float32)])
    assert caught.value.status is RunnerStatus.INPUT
    assert caught.value.exit_status == 2


def test_a_damaged_bundle_keeps_its_class_through_python(target: Target, build_dir: Path) -> None:
    weights = build_dir / "pruned.clbundle/weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RunnerError, match=r"weights.bin' differs") as caught:
        Runner(target).check(build_dir / "pruned.clbundle")
    assert caught.value.status is RunnerStatus.INTEGRITY
    with pytest.raises(UserError, match="not a bundle directory"):
        Runner(target).check(build_dir / "absent.clbundle")


def test_the_second_check_starts_from_binaries(
    target: Target, build_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTADMM_CACHE", str(build_dir.parent / "cache"))
    runner = Runner(target, executable=None)
    assert runner.check(build_dir / "pruned.clbundle").binary_cache.misses == 2
    assert runner.check(build_dir / "pruned.clbundle").binary_cache.hits == 2
    assert not Runner(target, use_program_cache=False).check(build_dir / "pruned.clbundle").binary_cache.used


@pytest.mark.parametrize(
    ("event", "index", "key", "value"),
    [
        ("bench", 0, "total_samples_ms", [1.0]),
        ("bench", 1, "start_samples_ms", [1.0, 2.0, 3.0]),
        ("bench", 1, "index", 0),
        ("rounds", None, "order", [[0, 1]]),
        ("rounds", None, "order", [[0, 1], [0, 0]]),
    ],
)
def test_a_bench_of_which_something_is_missing_gives_no_pairs(
    target: Target,
    build_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    index: int | None,
    key: str,
    value: Any,
) -> None:
    shell = target.shell

    def damaged(*arguments: Any, **options: Any) -> ShellResult:
        result = shell(*arguments, **options)
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        for line in lines:
            if (line["event"], line.get("index") if event == "bench" else None) == (event, index):
                line[key] = value
        return ShellResult(result.status, b"".join(json.dumps(line).encode() + b"\n" for line in lines), result.stderr)

    bundle = build_dir / "pruned.clbundle"
    runner = Runner(target)
    assert len(runner.bench([bundle, bundle], runs=2, warmup_ms=0).bundles) == 2
    monkeypatch.setattr(target, "shell", damaged)
    with pytest.raises(DeviceError, match="no whole bench of 2 bundles in 2 rounds"):
        runner.bench([bundle, bundle], runs=2, warmup_ms=0)


@pytest.mark.parametrize("change", [{"runs": 1}, {"runs": 2.5}, {"rest_ms": -1}, {"run": 5}, {"timeout_s": 0}])
def test_a_bad_measure_section_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        MeasureConfig.model_validate(change)
