from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import run_command_line
from pipeline.shipped_tuning import shipped_database
from tests.unit.tvm_build.test_tuning_database import record


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a mistake ends with."""
    assert run_command_line(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_merged_databases_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, split in (("a", 8), ("b", 4)):
        (tmp_path / f"{name}.jsonl").write_bytes(record(split, split / 8).line())
    out = tmp_path / "out.jsonl"
    assert run_command_line(["tuned", "merge", f"{tmp_path}/a.jsonl", f"{tmp_path}/b.jsonl", "--out", str(out)]) == 0
    assert run_command_line(["tuned", "show", str(out), "--json"]) == 0
    shown = capsys.readouterr().out
    assert "2 trials of 2 databases" in shown
    assert '"best_ms": 0.5' in shown


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tracker", "localhost:9190"], "--tracker and --key go together"),
        (["--tracker", "localhost:9190", "--key", "k", "--device", "adb:"], "give one of them"),
        (["--device", "toaster"], "unknown device"),
        (["--dtype", "float8"], "float8"),
    ],
)
def test_options_of_tune_that_do_not_fit_are_refused(
    options: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "db.jsonl"
    assert complaint in fails(capsys, "tune", str(tmp_path / "model.onnx"), "--out", str(out), *options)
    assert not out.exists()


def test_a_run_directory_without_exported_networks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(capsys, "tune", str(tmp_path), "--out", str(tmp_path / "db.jsonl"))
    assert "baseline.onnx does not exist" in line


def test_layer_costs_that_cannot_be_written_are_not_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device.target.open_target", None)  # a call would end in status 1
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "costs.json"
    assert f"{out} cannot be written (" in fails(capsys, "layer-costs", "model.onnx", "--out", str(out))


def test_a_malformed_database_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "db.jsonl").write_text("nonsense\n")
    assert "line 1 is no tuning record" in fails(capsys, "tuned", "show", str(tmp_path / "db.jsonl"))
    assert "no such tuning database" in fails(capsys, "tuned", "show", str(tmp_path / "other.jsonl"))


def test_databases_without_a_trial_are_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    assert "no trial to merge" in fails(capsys, "tuned", "merge", str(tmp_path / "empty.jsonl"), "--out", str(out))
    assert not out.exists()


def test_a_shipped_database_is_used_on_its_own_device_only(tmp_path: Path) -> None:
    from device.candidates import LocalMeasurer
    from device.target import open_target

    measurer = LocalMeasurer(open_target("local"))
    facts = measurer.device_facts()
    measurer.close()
    here = record().model_copy(update={"device": facts, "target": "opencl-cpu"})
    halves = here.model_copy(update={"dtype": "float16"})
    (tmp_path / "a.jsonl").write_bytes(record().line())
    (tmp_path / "b.jsonl").write_bytes(here.line())
    (tmp_path / "c.jsonl").write_bytes(record().line() + halves.line())
    assert shipped_database("local", "opencl-cpu", "float32", tmp_path) == tmp_path / "b.jsonl"
    assert shipped_database("local", "opencl-cpu", "float16", tmp_path) == tmp_path / "c.jsonl"
    assert shipped_database("local", "opencl-cpu", "float16_float32", tmp_path) is None
    assert shipped_database("local", "adreno-640", "float32", tmp_path) is None
    assert shipped_database("adb:", "opencl-cpu", "float32", tmp_path) is None
    assert shipped_database("local", "opencl-cpu", "float32", tmp_path / "none") is None
