"""Runs of one round on scikit-learn's digits that meet a budget, for comparisons between ways to meet it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from structadmm.progress import SilentReporter
from train.config import TrainConfig
from train.stage import run_train

#: Which of a run's two accuracies: right after the hard prune, and after retraining.
MOMENTS = ("cut", "retrained")


def train_dense(seed: int, out: Path) -> Path:
    """Train a dense ResNet-18 of width 16; the file of its weights."""
    untouched = {"structure": "filter", "sparsity": 0.0, "admm_epochs": 0, "retrain_epochs": 0}
    run_train(_configuration(seed, {"epochs": 12, "lr": 0.1}, untouched, None), out, SilentReporter())
    return out / "dense.safetensors"


def prune(seed: int, weights: Path, structure: str, reduction: float, out: Path, *, block: int = 4) -> dict[str, float]:
    """Prune to so many times fewer CONV parameters and retrain for three epochs; top-1 in percent at both `MOMENTS`."""
    entry = {
        "structure": structure,
        "target": {"measure": "conv_params", "reduction": reduction},
        "first_layer": True,
        **{"admm_epochs": 4, "retrain_epochs": 3, "rho": 0.2, "rho_growth": 1.5, "rho_max": 5.0},
        **{"lr": 0.02, "retrain_lr": 0.05},
        **({"block": block} if structure == "column" else {"multiple": 4}),
    }
    run_train(_configuration(seed, {"epochs": 0}, entry, weights), out, SilentReporter())
    pruning = json.loads((out / "pruning.json").read_text())
    images = pruning["accuracy"]["test_images"]
    cut, retrained = (pruning["rounds"][0][f"{when}_correct"] for when in ("hard_pruned", "retrained"))
    return {"cut": 100 * cut / images, "retrained": 100 * retrained / images}


def _configuration(seed: int, dense: dict[str, Any], entry: dict[str, Any], weights: Path | None) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "seed": seed,
            "threads": 1,
            "batch_size": 64,
            "channels_last": True,
            "model": {"entry": "cifar_resnet18", "kwargs": {"width": 16}, "weights": weights},
            "data": {"name": "digits", "held_out": 0.05},
            "optimizer": {"weight_decay": 5e-4},
            "dense": dense,
            "rounds": [entry],
        }
    )
