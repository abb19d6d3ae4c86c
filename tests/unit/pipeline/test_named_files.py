from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.named_files import named_files
from pipeline.run_config import RunConfig
from pipeline.run_directory import RunDirectory, open_run_directory
from pipeline.stages import STAGE_BY_NAME, StageContext
from structadmm.progress import SilentReporter
from train.checkpoint import Checkpoint, Position, save_checkpoint
from train.config import TrainConfig
from train.stage_files import CHECKPOINT

ROUND = {"structure": "filter", "sparsity": 0.5}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def train_stage(run: Path, weights: bytes) -> str:
    """Finish a train stage and return what identifies it."""
    with open_run_directory(run, ("train",)) as directory:
        (directory.begin("train", {}, None) / "pruned.safetensors").write_bytes(weights)
        directory.complete("train", {})
        return directory.content("train")


def test_every_file_that_an_option_names_is_known_by_its_content(tmp_path: Path) -> None:
    weights, teacher, costs = (tmp_path / name for name in ("weights.pt", "teacher.safetensors", "costs.json"))
    weights.write_bytes(b"weights")
    costs.write_bytes(b"costs")
    budget = {"measure": "latency", "limit": 1.0, "costs": str(costs)}
    config = TrainConfig.model_validate(
        {
            "model": {"weights": str(weights)},
            "distill": {"weights": str(teacher)},
            "data": {"root": str(tmp_path)},
            "rounds": [ROUND, {"structure": "filter", "target": budget}],
        }
    )
    assert named_files(config) == {
        weights.as_posix(): sha256(b"weights"),
        teacher.as_posix(): None,
        costs.as_posix(): sha256(b"costs"),
    }


def test_a_run_to_go_on_from_is_known_by_its_train_stage(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = TrainConfig.model_validate({"after": str(run), "dense": {"epochs": 0}, "rounds": [ROUND]})
    assert named_files(config) == {run.as_posix(): None}
    first = train_stage(run, b"first")
    assert named_files(config) == {run.as_posix(): first}
    assert train_stage(run, b"second") != first
    assert named_files(config)[run.as_posix()] != first


def test_training_does_not_go_on_from_half_of_another_ones_weights(tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"first")
    train = {"model": {"weights": str(weights)}, "rounds": [ROUND]}
    config = RunConfig.model_validate({"name": "a", "train": train})
    stage = STAGE_BY_NAME["train"]
    context = StageContext(config, RunDirectory(tmp_path / "run"), "host", SilentReporter())
    before = stage.inputs(context)
    assert stage.goes_on is not None
    save_checkpoint(tmp_path / CHECKPOINT, Checkpoint(Position(), {}, {}, before["config"]["train"], 1, 0, {}))
    assert stage.goes_on(before, stage.inputs(context), tmp_path)
    weights.write_bytes(b"second")
    after = stage.inputs(context)
    assert before["config"] == after["config"]
    assert not stage.goes_on(before, after, tmp_path)
    with open_run_directory(tmp_path / "run", ("train",)) as directory:
        directory.begin("train", before, None)
        directory.complete("train", before)
        assert directory.why_run("train", before) is None
        assert directory.why_run("train", after) == f"{weights.as_posix()} has changed"
        weights.unlink()
        assert directory.why_run("train", stage.inputs(context)) is None


def test_a_build_with_the_shipped_database_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "shipped.jsonl"
    monkeypatch.setattr("pipeline.shipped_tuning.shipped_database", lambda *_: database)
    config = RunConfig.model_validate({"name": "x", "train": {"rounds": [ROUND]}, "build": {"tuned": "auto"}})
    with open_run_directory(tmp_path / "run", ("export",)) as directory:
        directory.begin("export", {}, None)
        directory.complete("export", {})
        context = StageContext(config, directory, "local", SilentReporter())
        known = []
        for content in (b"one", b"two"):
            database.write_bytes(content)
            known.append(STAGE_BY_NAME["build"].inputs(context)["tuning_database"])
    assert known == [sha256(b"one"), sha256(b"two")]


def test_upstream_schedules_take_no_shipped_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "shipped.jsonl"
    database.write_bytes(b"one")
    monkeypatch.setattr("pipeline.shipped_tuning.shipped_database", lambda *_: database)
    build = {"tuned": "auto", "schedules": "upstream"}
    config = RunConfig.model_validate({"name": "x", "train": {"rounds": [ROUND]}, "build": build})
    with open_run_directory(tmp_path / "run", ("export",)) as directory:
        directory.begin("export", {}, None)
        directory.complete("export", {})
        context = StageContext(config, directory, "local", SilentReporter())
        assert STAGE_BY_NAME["build"].inputs(context)["tuning_database"] is None
