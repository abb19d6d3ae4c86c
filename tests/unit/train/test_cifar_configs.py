"""The shipped CIFAR-10 experiments: what each says it reaches, planned on narrower networks and made-up images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipeline.run_config import load_run_config
from structadmm.progress import SilentReporter
from train.config import TrainConfig
from train.data import Dataset
from train.stage import run_train

CONFIGS = Path(__file__).parents[3] / "configs"
HERE = f"{__name__}:noise"


def noise() -> Dataset:
    """Sixty images of CIFAR's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(60) % 10
    return Dataset("noise", images, labels, images[:20], labels[:20], tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


def without_training(name: str, width: int) -> TrainConfig:
    """The configuration with its rounds as they are, and no epoch in any of them."""
    train = load_run_config(CONFIGS / f"{name}.toml").train
    rounds = []
    for entry in train.rounds:
        target = entry.target and entry.target.model_copy(update={"images": 2})
        rounds.append(entry.model_copy(update={"admm_epochs": 0, "retrain_epochs": 0, "target": target}))
    return train.model_copy(
        update={
            "threads": 1,
            "precision": "fp32",
            "model": train.model.model_copy(update={"weights": None, "kwargs": {"width": width}}),
            "data": train.data.model_copy(update={"name": HERE, "held_out": 0.1}),
            "dense": train.dense.model_copy(update={"epochs": 0}),
            "rounds": tuple(rounds),
        }
    )


@pytest.mark.parametrize(
    ("name", "width", "ratio"),
    [
        ("resnet18_cifar10_30x", 12, 30.0),
        ("resnet18_cifar10_55x", 12, 55.0),
        ("resnet18_cifar10_55x_after_10x", 12, 55.0),
        ("alexnet_cifar10", 16, 15.0),
    ],
)
def test_the_rounds_of_an_experiment_end_where_its_name_says(
    name: str, width: int, ratio: float, tmp_path: Path
) -> None:
    config = without_training(name, width)
    if config.after is not None:
        run_train(without_training(config.after.name, width), tmp_path / "before" / "train", SilentReporter())
        config = config.model_copy(update={"after": tmp_path / "before", "distill": None})
    run_train(config, tmp_path, SilentReporter())
    pruning = json.loads((tmp_path / "pruning.json").read_text())
    # A target is met within 2 %, and never exceeded.
    assert ratio <= pruning["conv_params"]["ratio"] <= 1.03 * ratio


def test_pruning_starts_where_the_dense_run_leaves_its_weights() -> None:
    dense = load_run_config(CONFIGS / "resnet18_cifar10_dense.toml")
    left = Path("runs") / dense.name / "train" / "dense.safetensors"
    for path in CONFIGS.glob("resnet18_cifar10_*.toml"):
        config = load_run_config(path)
        # What purification is judged on was never trained on, in no run.
        assert config.train.data == dense.train.data
        if config.train.after is not None:
            assert config.train.after in {Path("runs") / other.stem for other in CONFIGS.glob("*.toml")}
        elif config.name not in (dense.name, "resnet18_cifar10_dense_longer"):
            assert config.train.model.weights == left


def test_the_dense_network_gets_as_many_epochs_as_any_pruned_one() -> None:
    dense, longer, mixed = (
        load_run_config(CONFIGS / f"resnet18_cifar10_{name}.toml").train
        for name in ("dense", "dense_longer", "dense_mixed")
    )
    assert longer.model.weights is None
    assert mixed.mix is not None
    pruned = set(CONFIGS.glob("resnet18_cifar10_*.toml")) - set(CONFIGS.glob("resnet18_cifar10_dense*.toml"))
    assert pruned
    for path in pruned:
        epochs = dense.dense.epochs + epochs_of_pruning(load_run_config(path).train)
        assert epochs <= longer.dense.epochs <= dense.dense.epochs + mixed.dense.epochs


def epochs_of_pruning(config: TrainConfig) -> int:
    """With those of the runs that it goes on from."""
    own = sum(entry.admm_epochs + entry.retrain_epochs for entry in config.rounds)
    if config.after is None:
        return own
    return own + epochs_of_pruning(load_run_config(CONFIGS / f"{config.after.name}.toml").train)
