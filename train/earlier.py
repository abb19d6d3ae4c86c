"""The finished training run that another one goes on from: its pruned network, and what led to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from structadmm.errors import UserError
from structadmm.files import read_json
from train.config import TrainConfig
from train.data import Dataset
from train.stage_files import DENSE, HISTORY, MASKS, PRUNED, PRUNING


@dataclass(frozen=True)
class Earlier:
    """What a finished run left, and a run that goes on from it takes over.

    Attributes:
        stage: its train stage, where the dense network's weights lie.
        weights: of the pruned network, a state dict.
        masks: by parameter name, bool.
        rounds: what `pruning.json` says of its rounds and of those before.
        dense: test images that the dense network has right, and how many there are, as `correct` and `total`.
        history: the lines of `history.jsonl`, which go on.
        epochs: in all, of which the history tells.
    """

    stage: Path
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    rounds: list[dict[str, Any]]
    dense: dict[str, int]
    history: bytes
    epochs: int

    def load_into(self, model: nn.Module) -> None:
        """Give `model` the pruned weights.

        Raises:
            UserError: it is another network.
        """
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            problem = str(error).replace("\n", " ").replace("\t", " ")[:200]
            raise UserError(f"train.after: {self.stage / PRUNED} does not fit the model ({problem})") from error

    def copy_dense(self, out: Path) -> None:
        """Put the dense network's weights into a folder."""
        shutil.copyfile(self.stage / DENSE, out / DENSE)


def read_earlier(config: TrainConfig, data: Dataset, held_out: int, kwargs: Mapping[str, Any]) -> Earlier | None:
    """What `config.after` names; None where the configuration starts by itself.

    Args:
        config: of the run that goes on.
        data: what it trains on.
        held_out: training images that it does not train on.
        kwargs: arguments of its model.

    Raises:
        UserError: there is no finished train stage, a file of it is damaged, or it is of another model or other data.
    """
    if config.after is None:
        return None
    stage = config.after / "train"
    if not (stage / PRUNING).is_file():
        raise UserError(f"train.after: {config.after} has no finished train stage: run `structadmm train` on it first")
    record = read_json(stage / PRUNING, schema=1)
    try:
        earlier = Earlier(
            stage=stage,
            weights=load_file(stage / PRUNED),
            masks=load_file(stage / MASKS),
            rounds=list(record["rounds"]),
            dense={"correct": record["accuracy"]["dense_correct"], "total": record["accuracy"]["test_images"]},
            history=(stage / HISTORY).read_bytes(),
            epochs=_count_epochs(stage / HISTORY),
        )
        (stage / DENSE).stat()
        for name, mask in earlier.masks.items():
            if mask.shape != earlier.weights[name].shape:
                raise ValueError(
                    f"mask of {name} is {list(mask.shape)}, the weight {list(earlier.weights[name].shape)}"
                )
        model, images = record["model"], record["data"]
        found = {
            "train.model.entry": (config.model.entry, model["entry"]),
            "train.model.kwargs": (_as_json(kwargs), model["kwargs"]),
            "train.data.name": (data.name, images["name"]),
            "train.data.kwargs": (_as_json(config.data.kwargs), images["config"]["kwargs"]),
            "train.data's images": ([1, *data.image_shape], record["input_shape"]),
            "train.data's classes": (list(data.classes), images["classes"]),
            "train.data.held_out, in images": (held_out, images["held_out_images"]),
            "train.data's training images": (len(data.train_labels), images["train_images"]),
            "train.data's test images": (len(data.test_labels), images["test_images"]),
        }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"train.after: {stage} is damaged ({error}): restore it, or train it again") from error
    for option, (ours, theirs) in found.items():
        if ours != theirs:
            raise UserError(
                f"{option}: {ours} here, {theirs} in the run of train.after, {config.after}: make them equal"
            )
    return earlier


def _as_json(values: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(values)))


def _count_epochs(history: Path) -> int:
    lines = history.read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line)["type"] == "epoch" for line in lines)
