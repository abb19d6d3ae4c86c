"""Runs that became no reference network, in `results/reference/attempts/NAME/`: what was tried, and how far it came.

A folder holds `attempt.json`, written by hand, the configuration, and the history that the accuracy is read from; of
runs that were exported and measured also `result.json`, whose accuracy, of the exported network, then counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field

from results.records import Positive, Record, read_record, read_result
from structadmm.errors import UserError

SCHEMA = 1
ATTEMPT = "attempt.json"


class Attempt(Record):
    """`attempt.json`, schema 1.

    Attributes:
        title: one line for people.
        conv_reduction: how many times fewer CONV parameters the exported network has.
        lesson: what it taught.
    """

    schema_: Annotated[int, Field(alias="schema", ge=SCHEMA, le=SCHEMA)] = SCHEMA
    title: str
    conv_reduction: Positive
    lesson: str


@dataclass(frozen=True)
class AttemptFolder:
    """An attempt and its history.

    Attributes:
        path: its folder.
        attempt: what was written about it.
        epochs: that were trained.
        accuracy: percent of the test images after the last; of the exported network where there is one.
        exported: whether there is.
    """

    path: Path
    attempt: Attempt
    epochs: int
    accuracy: float
    exported: bool


def list_attempts() -> list[AttemptFolder]:
    """All of them, by name.

    Raises:
        UserError: a record is damaged.
    """
    root = Path(str(files("results"))) / "reference" / "attempts"
    return [_open(path) for path in sorted(root.glob(f"*/{ATTEMPT}"))]


def _open(path: Path) -> AttemptFolder:
    attempt = read_record(path, Attempt, SCHEMA)
    try:
        lines = [json.loads(line) for line in (path.parent / "history.jsonl").read_text(encoding="utf-8").splitlines()]
        epochs = [line for line in lines if line["type"] == "epoch"]
        accuracy, result = float(epochs[-1]["test_accuracy"]), path.parent / "result.json"
        if result.exists():
            accuracy = read_result(result).accuracy.pruned
        return AttemptFolder(path.parent, attempt, len(epochs), accuracy, exported=result.exists())
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{path.parent / 'history.jsonl'} is no history ({error}): restore the file") from None
