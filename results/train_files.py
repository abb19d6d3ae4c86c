"""What the report reads of the training stage: histories and what pruning left."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from results.report_data import Epoch, PrunedLayer, Residual
from structadmm.errors import UserError


def read_history(path: Path) -> tuple[list[Epoch], list[Residual]]:
    """Epochs and ADMM updates of `history.jsonl`, in order.

    Raises:
        UserError: the file is absent, or a line of it is not what training writes.
    """
    epochs: list[Epoch] = []
    residuals: list[Residual] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the train stage first") from None
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            if line["type"] == "epoch":
                epochs.append(Epoch(_phase(line), line["loss"], line["test_accuracy"]))
            elif line["type"] == "residuals":
                layers = line["layers"].values()
                primal = [layer["primal"] for layer in layers]
                dual = math.sqrt(sum(layer["dual"] ** 2 for layer in layers))
                residuals.append(Residual(line["round"] + 1, statistics.median(primal), max(primal), dual))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}, is damaged ({error}): run the train stage again") from None
    return epochs, residuals


def pruned_layers(pruning: dict[str, Any]) -> list[PrunedLayer]:
    """The layers of `pruning.json`, in network order."""
    return [
        PrunedLayer(
            name=layer["name"],
            shape=tuple(layer["shape"]),
            filters=layer["filters"],
            filters_kept=layer["kept_filters"],
            columns=layer["columns"],
            columns_kept=layer["kept_columns"],
        )
        for layer in pruning["layers"]
    ]


def _phase(line: dict[str, Any]) -> str:
    return str(line["phase"]) if line["round"] < 0 else f"round {line['round'] + 1} {line['phase']}"
