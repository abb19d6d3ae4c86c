from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run_directory import RECORD
from results.records import read_result
from structadmm.files import sha256_file

from .conftest import CONFIG, argv, environment, structadmm


@pytest.fixture
def copy(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    shutil.copytree(finished_run, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_ends_with_a_valid_result_whose_checks_hold(finished_run: Path) -> None:
    result = read_result(finished_run / "report" / "result.json")
    assert result.name == "small"
    assert result.latency_ms.kind == "host"
    assert result.latency_ms.baseline.samples == 20
    # The project's promises for every run: float32 sums in another order, through a dozen layers.
    assert result.checks.masked_vs_shrunk <= 1e-5
    assert result.checks.shrunk_vs_onnx <= 1e-4
    assert result.checks.onnx_vs_device <= 1e-3
    # Half of the filters and half of the columns of what is left, in all but the first layer and its shortcuts.
    assert 2.0 < result.conv_params.ratio < 8.0


def test_the_result_repeats_what_the_stages_recorded(finished_run: Path) -> None:
    result = read_result(finished_run / "report" / "result.json")
    export = json.loads((finished_run / "export" / "export.json").read_text())
    measure = json.loads((finished_run / "measure" / "measurement.json").read_text())
    pruning = json.loads((finished_run / "train" / "pruning.json").read_text())
    assert result.conv_params.pruned == export["conv_params"]["pruned"]
    assert result.macs.dense == export["macs"]["dense"]
    assert result.accuracy.pruned == pytest.approx(pruning["accuracy"]["pruned"], abs=1e-9)  # the same division
    for network in ("baseline", "pruned"):
        runner = measure["bench"]["times"][network]["total_ms"]
        ours = getattr(result.latency_ms, network)
        for figure in ("min", "p10", "median", "mean", "p90", "p99"):
            # The runner computes the same percentiles in C from samples it prints with nanoseconds.
            assert getattr(ours, figure) == pytest.approx(runner[figure], abs=2e-6)


def test_a_finished_run_does_no_work_and_says_so(config: Path, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.name != ".lock"}
    done = structadmm("run", config, "--out", finished_run)
    assert done.status == 0
    assert "nothing to do" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*") if path.name != ".lock"} == before


def test_only_what_a_change_concerns_runs_again_and_the_reason_is_told(config: Path, copy: Path) -> None:
    done = structadmm("run", config, "--out", copy, "--set", "report.bootstrap_seed=5", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == 1
    assert "bootstrap_seed = 5" in (copy / "config.toml").read_text()
    done = structadmm("run", config, "--out", copy)
    assert "report: report.bootstrap_seed: 5 -> 0" in done.stderr
    for stage in ("train", "export", "build", "measure"):
        assert f"{stage}: up to date" in done.stderr


def test_one_stage_alone_refuses_stale_inputs_and_runs_on_fresh_ones(copy: Path) -> None:
    done = structadmm("report", copy, "--force", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "small"
    done = structadmm("report", copy, "--set", "build.schedules=upstream")
    assert done.status == 2
    assert "build stage" in done.one_line()
    assert "structadmm build" in done.one_line()


def test_a_file_changed_by_hand_is_refused_until_the_stage_is_forced(config: Path, copy: Path) -> None:
    (copy / "measure" / "measurement.json").write_text("{}")
    done = structadmm("run", config, "--out", copy)
    assert done.status == 2
    assert "--from measure" in done.one_line()
    done = structadmm("run", config, "--out", copy, "--from", "measure")
    assert done.status == 0, done.stderr


def test_another_experiment_and_foreign_files_are_not_written_over(config: Path, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(CONFIG.replace('"small"', '"other"'))
    assert "'small'" in structadmm("run", other, "--out", copy).one_line()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("")
    done = structadmm("run", config, "--out", tmp_path / "foreign")
    assert (done.status, done.one_line().count("holds no run")) == (2, 1)


def kill_when(arguments: list[str], ready: Callable[[], bool]) -> int:
    """Start the command, SIGKILL it as soon as `ready`, and return its status."""
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    ) as process:
        deadline = time.monotonic() + 300
        while process.poll() is None and not ready():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    return process.returncode


def test_a_run_killed_in_every_stage_ends_with_the_weights_of_an_undisturbed_one(
    config: Path, finished_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = argv("run", config, "--out", out)

    def epochs_done(count: int) -> Callable[[], bool]:
        history = out / ".train.partial" / "history.jsonl"
        return lambda: history.exists() and history.read_text().count('"epoch"') > count

    kills = [epochs_done(1), epochs_done(3)]
    kills += [(out / f".{stage}.partial").is_dir for stage in ("export", "build", "measure", "report")]
    for ready in kills:
        assert kill_when(command, ready) == -signal.SIGKILL
    done = structadmm("run", config, "--out", out)
    assert done.status == 0, done.stderr
    for name in ("dense.safetensors", "pruned.safetensors", "masks.safetensors"):
        assert sha256_file(out / "train" / name) == sha256_file(finished_run / "train" / name)
    for bundle in ("baseline.clbundle", "pruned.clbundle"):
        assert sha256_file(out / "build" / bundle / "SHA256SUMS") == sha256_file(
            finished_run / "build" / bundle / "SHA256SUMS"
        )
    assert not [path for path in out.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert json.loads((out / "train" / RECORD).read_text())["complete"] is True


def test_ctrl_c_ends_with_130_and_one_line_that_says_how_to_go_on(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen(
        argv("run", config, "--out", out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        while not (out / ".train.partial" / "history.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == (
        f"structadmm: interrupted: `structadmm run {out}/config.toml --out {out}` goes on from here"
    )
