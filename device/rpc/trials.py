"""How a candidate is tried, as JSON between a tuner and a server."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from pydantic import TypeAdapter, ValidationError

from device.candidates import Trial
from structadmm.errors import UserError

_MAX_RUNS = 1000


def trial_to_json(trial: Trial) -> str:
    """All its numbers."""
    return json.dumps(asdict(trial))


def trial_from_json(text: str, *, max_trial_s: float) -> Trial:
    """The trial that a client asks for, its time-out lowered to what the server allows.

    Raises:
        UserError: it is no trial, or asks for more than a thousand runs.
    """
    try:
        trial = TypeAdapter(Trial).validate_json(text)
    except ValidationError as error:
        raise UserError(f"the trial is not understood ({error.errors()[0]['msg']}): is the tuner newer?") from None
    if not (1 <= trial.runs <= _MAX_RUNS and 0 <= trial.warmup_runs <= _MAX_RUNS and trial.timeout_s > 0):
        raise UserError(f"a trial of {trial.runs} runs after {trial.warmup_runs}: expected 1 to {_MAX_RUNS}")
    return replace(trial, timeout_s=min(trial.timeout_s, max_trial_s))
