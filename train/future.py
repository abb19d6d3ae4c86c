"""Which changes of a configuration an interrupted run can go on with: those of what lies ahead of its checkpoint.

The rounds that are still to come may be planned anew, with other budgets or epochs, or left out, and others may be
added: what was trained so far is what it would have been. So is it wherever the data lie and however often a checkpoint
is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from train.checkpoint import load_position
from train.config import TrainConfig
from train.rounds import Phase, distilled, mixed, phases

# How and where, not what.
_CIRCUMSTANCES = ("device", "checkpoint_every", "compact")
_PLACES = ("root", "verify", "download")
_OF_RETRAINING = {"retrain_epochs", "retrain_lr", "retrain_schedule"}


def conflict(old: Mapping[str, Any], new: Mapping[str, Any], phase: int) -> str | None:
    """What keeps a run of configuration `old` that has come to a phase from going on with `new`: a dotted name or None.

    Args:
        old: the `[train]` section as JSON.
        new: likewise.
        phase: index into `train.rounds.phases` of what was being trained.
    """
    try:
        before, after = TrainConfig.model_validate(old), TrainConfig.model_validate(new)
    except ValidationError:
        return first_difference(old, new)  # of another version
    found = first_difference(_past(before, phase), _past(after, phase))
    return None if found is None else found.replace("begun.", "rounds.")


def can_go_on(old: Mapping[str, Any], new: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether the run of `checkpoint`, of configuration `old`, is the beginning of a run of `new`, too.

    Raises:
        UserError: the checkpoint is damaged.
    """
    return checkpoint.exists() and conflict(old, new, load_position(checkpoint).phase) is None


def _past(config: TrainConfig, phase: int) -> dict[str, Any]:
    """What training has depended on up to and in a phase."""
    values = config.model_dump(mode="json", exclude=set(_CIRCUMSTANCES) | {"rounds", "distill", "mix"})
    values["data"] = {key: value for key, value in values["data"].items() if key not in _PLACES}
    values["data"]["held_out"] = config.held_out  # a round to come may decide it
    begun = phases(config)[: phase + 1]
    values["begun"] = [
        entry.model_dump(mode="json", exclude=_OF_RETRAINING if _only_admm(index, begun) else None)
        for index, entry in enumerate(config.rounds)
        if any(part.round == index for part in begun)
    ]
    for told, name in ((distilled, "distill"), (mixed, "mix")):
        parts = [part for part in begun if told(config, part) is not None]
        values[told.__name__] = [(part.kind, part.round) for part in parts]
        if parts:
            values[name] = getattr(config, name).model_dump(mode="json", exclude={"phases"})
    return values


def _only_admm(index: int, begun: tuple[Phase, ...]) -> bool:
    return not any(part.round == index and part.kind == "retrain" for part in begun)


def first_difference(old: Any, new: Any, place: str = "") -> str | None:
    """Dotted place of the first difference between two JSON values, or None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{place}.{key}" if place else key
            if key not in old or key not in new:
                return inner
            found = first_difference(old[key], new[key], inner)
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (left, right) in enumerate(zip(old, new, strict=True)):
            found = first_difference(left, right, f"{place}.{index}")
            if found is not None:
                return found
        return None
    return None if old == new else place
