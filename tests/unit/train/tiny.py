"""A training run of a second: few digits, a small network, one round of filters and one of columns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from structadmm.progress import SilentReporter
from train.config import TrainConfig
from train.data import Dataset
from train.data.digits import load
from train.models.cifar_resnet import CifarResNet
from train.stage import run_train


def few_digits() -> Dataset:
    full = load()
    return Dataset(
        name="few digits",
        train_images=full.train_images[:90],
        train_labels=full.train_labels[:90],
        test_images=full.test_images[:50],
        test_labels=full.test_labels[:50],
        classes=full.classes,
        mean=full.mean,
        std=full.std,
        augmentation=full.augmentation,
    )


def resnet(width: int = 4) -> nn.Module:
    return CifarResNet((1, 1), width, 10, 1)


def shared_weight() -> nn.Module:
    model = CifarResNet((1, 1), 4, 10, 1)
    block = model.get_submodule("layer1.0")
    block.conv2 = block.conv1
    return model


class WithoutBatchNorm(nn.Module):
    """Its loss is a sum over samples, so that how a batch is cut up changes nothing but rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean(dim=(2, 3)))
        return logits


def normalised_at_the_end() -> nn.Module:
    """BatchNorm over a single pixel."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def partly_fixed() -> nn.Module:
    model = resnet()
    model.get_submodule("layer1.0.conv1").requires_grad_(False)
    return model


def no_convolution() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        "batch_size": 16,
        "model": {"entry": "tests.unit.train.tiny:resnet"},
        "data": {"name": "tests.unit.train.tiny:few_digits"},
        "dense": {"epochs": 3},
        "rounds": [
            {"structure": "filter", "sparsity": 0.5, "admm_epochs": 3, "update_every": 2, "retrain_epochs": 2},
            {"structure": "column", "sparsity": 0.5, "block": 4, "admm_epochs": 2, "retrain_epochs": 2},
        ],
    }
    return TrainConfig.model_validate(values | changes)


def tell(line: str) -> None:
    """Print a line in one piece: print() writes its end apart, and two processes share the pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    state = PartialState(cpu=True)
    tell(f"process {state.process_index} of {state.num_processes}")
    run_train(config(**eval(sys.argv[2])), Path(sys.argv[1]), SilentReporter())  # arguments come from the tests
    names = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    tell(f"threads of the group left: {[name for name in names if 'gloo' in name]}")
