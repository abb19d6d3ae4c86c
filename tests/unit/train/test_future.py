"""A run that was interrupted goes on with another plan for what lies ahead, and with no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.train import tiny
from tests.unit.train.test_run import StopAt, assert_same_run
from train.config import TrainConfig
from train.future import conflict
from train.stage import run_train

ROUND = {"structure": "filter", "sparsity": 0.3, "admm_epochs": 1, "retrain_epochs": 1}
LATER = {"structure": "column", "sparsity": 0.5, "admm_epochs": 1, "retrain_epochs": 1}
BUDGET = {"structure": "filter", "target": {"measure": "macs", "reduction": 4.0}}
DATA = {"name": "tests.unit.train.tiny:few_digits"}
DISTILL = {"weight": 0.5, "phases": "last"}
# Phases: 0 dense; 1 and 2 the first round; 3 and 4 the second.


def config(*rounds: dict[str, Any], **changes: Any) -> TrainConfig:
    return tiny.config(dense={"epochs": 1}, rounds=list(rounds), **changes)


@pytest.mark.parametrize(
    ("before", "after", "phase", "expected"),
    [
        (config(ROUND, LATER), config(ROUND, {**LATER, "sparsity": 0.7}), 2, None),
        (config(ROUND, LATER), config(ROUND, {**LATER, "sparsity": 0.7}), 3, "rounds.1.sparsity"),
        (config(ROUND, LATER), config(ROUND), 2, None),
        (config(ROUND), config(ROUND, LATER, LATER), 2, None),
        (config(ROUND, LATER), config({**ROUND, "retrain_epochs": 5}, LATER), 1, None),
        (config(ROUND, LATER), config({**ROUND, "retrain_epochs": 5}, LATER), 2, "rounds.0.retrain_epochs"),
        (config(ROUND, LATER), config({**ROUND, "rho": 0.5}, LATER), 1, "rounds.0.rho"),
        (config(ROUND, LATER), config({**ROUND, "rho": 0.5}, LATER), 0, None),
        (config(ROUND), config(ROUND, seed=7), 0, "seed"),
        (config(ROUND), config(ROUND, checkpoint_every=3, compact=False, device="cpu"), 2, None),
        (config(ROUND, LATER), config(ROUND, LATER, distill=DISTILL), 3, None),
        (config(ROUND, LATER), config(ROUND, LATER, distill=DISTILL), 4, "distilled"),
        # The round that was the last, and distilled, would be so no more.
        (config(ROUND, distill=DISTILL), config(ROUND, LATER, distill=DISTILL), 2, "distilled"),
        (config(ROUND, distill=DISTILL), config(ROUND, distill={**DISTILL, "weight": 0.7}), 2, "distill.weight"),
        (config(ROUND, distill=DISTILL), config(ROUND, distill={**DISTILL, "weight": 0.7}), 1, None),
        (config(ROUND, LATER), config(ROUND, LATER, mix={"phases": "last"}), 3, None),
        (config(ROUND, LATER), config(ROUND, LATER, mix={"phases": "last"}), 4, "mixed"),
        (config(ROUND, LATER), config(ROUND, LATER, mix={"phases": "all"}), 0, "mixed"),
        (config(ROUND, mix={"alpha": 0.5}), config(ROUND, mix={"alpha": 0.7}), 0, "mix.alpha"),
        # A round with a budget holds images out, from the first epoch on.
        (config(ROUND), config(ROUND, BUDGET), 1, "data.held_out"),
        (config(ROUND, BUDGET), config(ROUND), 1, "data.held_out"),
        (config(ROUND, BUDGET), config(ROUND, LATER, data={**DATA, "held_out": 0.05}), 1, None),
    ],
)
def test_only_what_lies_ahead_may_change(
    before: TrainConfig, after: TrainConfig, phase: int, expected: str | None
) -> None:
    found = conflict(before.model_dump(mode="json"), after.model_dump(mode="json"), phase)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(expected)


def test_a_configuration_of_another_version_is_a_conflict() -> None:
    values = config(ROUND).model_dump(mode="json")
    assert conflict({**values, "momentum_reset": True}, values, 0) == "momentum_reset"


def test_a_run_that_goes_on_with_another_next_round_is_the_run_planned_so_from_the_start(tmp_path: Path) -> None:
    planned = config(ROUND, {**LATER, "sparsity": 0.7})
    run_train(planned, tmp_path / "planned", SilentReporter())
    with pytest.raises(SystemExit):
        run_train(config(ROUND, LATER), tmp_path / "changed", StopAt(7))
    with pytest.raises(UserError, match=r"train\.seed differs"):
        run_train(planned.model_copy(update={"seed": 9}), tmp_path / "changed", SilentReporter())
    run_train(planned, tmp_path / "changed", SilentReporter())
    assert_same_run(tmp_path / "planned", tmp_path / "changed")
