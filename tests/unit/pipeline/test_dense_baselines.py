"""The record of a dense network: made from a run, counted again, and of no run that prunes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.dense_baselines import publish_baseline
from pipeline.evaluate import data_digest
from structadmm.errors import InvariantError, UserError
from structadmm.progress import SilentReporter
from train.config import TrainConfig
from train.data import load_dataset
from train.stage import run_train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    config = TrainConfig.model_validate(
        {
            "model": {"entry": "cifar_resnet20", "kwargs": {"width": 4}},
            "dense": {"epochs": 2, "lr": 0.05},
            "rounds": [{"structure": "filter", "sparsity": 0.0, "admm_epochs": 0, "retrain_epochs": 0}],
        }
    )
    run_train(config, path / "train", SilentReporter())
    (path / "config.toml").write_text('name = "dense"\n')
    return path


def test_a_baseline_says_what_the_run_reached_on_which_images(run: Path, tmp_path: Path) -> None:
    found = publish_baseline(run, tmp_path / "out", title="small", note="", reporter=SilentReporter())
    accuracy = json.loads((run / "train" / "pruning.json").read_text())["accuracy"]
    assert (found.correct, found.epochs) == (accuracy["dense_correct"], 2)
    data = load_dataset(TrainConfig.model_validate({"rounds": [{"structure": "filter", "sparsity": 0.0}]}).data)
    assert (found.data.sha256, found.data.images) == (data_digest(data), accuracy["test_images"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"baseline.json", "config.toml", "history.jsonl"}


def test_a_run_that_prunes_or_claims_another_accuracy_is_refused_and_nothing_written(run: Path, tmp_path: Path) -> None:
    path = run / "train" / "pruning.json"
    before = path.read_text()
    values = json.loads(before)
    try:
        values["conv_params"]["ratio"] = 2.0
        path.write_text(json.dumps(values))
        with pytest.raises(UserError, match="removes nothing"):
            publish_baseline(run, tmp_path / "out", title="t", note="", reporter=SilentReporter())
        values["conv_params"]["ratio"] = 1.0
        values["accuracy"]["dense"] += 5.0
        path.write_text(json.dumps(values))
        with pytest.raises(InvariantError, match="the run says"):
            publish_baseline(run, tmp_path / "out", title="t", note="", reporter=SilentReporter())
    finally:
        path.write_text(before)
    assert not (tmp_path / "out").exists()
