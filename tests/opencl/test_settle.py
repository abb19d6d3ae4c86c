"""Settling a tuning database within a network, on a real OpenCL device of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import pipeline.settle
from device.candidates import LocalMeasurer
from device.runner_client import Runner
from device.target import open_target
from pipeline.cli import run_command_line
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.compile.onnx_models import conv, save, weights
from tvm_build.compile import compile_onnx
from tvm_build.gpu import gpu_by_name
from tvm_build.precision import FLOAT32
from tvm_build.tuning.database import UNTUNED, read_database
from tvm_build.tuning.session import run_session
from tvm_build.tuning.tasks import extract_tasks, fused_network

CPU = gpu_by_name("opencl-cpu")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    constants = {"a.weight": weights(16, 8, 3, 3), "b.weight": weights(12, 16, 3, 3, seed=1)}
    nodes = [conv("a", "x", "y", pads=[1] * 4), conv("b", "y", "z", pads=[1] * 4)]
    return save(tmp_path / "model.onnx", nodes, {"x": [1, 8, 10, 9]}, ["z"], constants)


@pytest.fixture
def database(network: Path, tmp_path: Path) -> Path:
    """Sixty trials of the network's layers."""
    path = tmp_path / "db.jsonl"
    measurer = LocalMeasurer(open_target("local"))
    tasks = extract_tasks([fused_network(network, CPU, FLOAT32)], CPU, FLOAT32)
    try:
        run_session(tasks, path, measurer, gpu=CPU, precision=FLOAT32, trials=60, reporter=SilentReporter())
    finally:
        measurer.close()
    return path


def test_what_was_found_is_compared_in_the_network_kept_and_used(
    network: Path, database: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = read_database(database)
    assert run_command_line(["tuned", "settle", str(network), "--db", str(database), "--json"]) == 0
    (settled,) = json.loads(capsys.readouterr().out)["networks"]
    assert settled["network"] == "model.onnx"
    assert settled["compared"] > 1
    assert settled["kind"] == "host"
    low, high = settled["speed_up"]["ci95"]
    assert low <= settled["speed_up"]["median"] <= high

    records = read_database(database)
    assert records[: len(trials)] == trials
    contested = records[len(trials) :]
    assert len({record.contest for record in contested}) == 1
    assert all(record.contest and record.cost_ms for record in contested)
    summary = compile_onnx(network, tmp_path / "net.clbundle", target="opencl-cpu", tuned=database)
    assert summary.tuned is not None
    assert {"a", "b"} <= set(summary.tuned.tuned)
    times = {record.cost_ms for record in contested}
    measured = [launch.measured_us for launch in summary.lowered if launch.measured_us is not None]
    assert {round(us / 1e3, 9) for us in measured} <= {round(ms, 9) for ms in times if ms is not None}
    target = open_target("local")
    try:
        assert Runner(target).check(tmp_path / "net.clbundle").passed
    finally:
        target.close()


@pytest.mark.parametrize("written", [None, b"", b"nonsense\n"])
def test_a_database_without_trials_of_the_device_is_refused_and_left_as_it_was(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], written: bytes | None
) -> None:
    database = tmp_path / "db.jsonl"
    if written is not None:
        database.write_bytes(written)
    assert run_command_line(["tuned", "settle", str(network), "--db", str(database)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "db.jsonl" in line
    assert (database.read_bytes() if database.exists() else None) == written


def test_a_network_that_is_slower_with_what_was_found_stays_untuned(
    network: Path, database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline.settle.Settled, "stays_untuned", property(lambda settled: True))
    assert run_command_line(["tuned", "settle", str(network), "--db", str(database)]) == 0
    assert "it stays untuned" in capsys.readouterr().out
    assert {record.contest.endswith(UNTUNED) for record in read_database(database) if record.contest} == {True}
    for name, tuned in (("untuned", None), ("tuned", database)):
        compile_onnx(network, tmp_path / f"{name}.clbundle", target="opencl-cpu", tuned=tuned)
    for file in ("plan.txt", "kernels.cl", "weights.bin"):
        assert (tmp_path / "tuned.clbundle" / file).read_bytes() == (tmp_path / "untuned.clbundle" / file).read_bytes()


def test_a_session_is_shown_before_it_is_settled(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise UserError("the device went away")

    monkeypatch.setattr(pipeline.settle, "settle", fails)
    words = ["tune", str(network), "--out", str(tmp_path / "db.jsonl"), "--trials", "8", "--runs", "2"]
    assert run_command_line(words) == 2
    shown = capsys.readouterr()
    assert "8 new trials" in shown.out
    assert "the device went away" in shown.err
