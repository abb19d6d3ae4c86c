from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from device.candidates import TIMED_LAYER, Trial, try_candidate
from device.runner_client import ProfileResult
from device.runner_events import LaunchTime
from structadmm.errors import UserError


def launch(layer: str, min_ms: float, median_ms: float, p90_ms: float) -> LaunchTime:
    values = {"min_ms": min_ms, "median_ms": median_ms, "p90_ms": p90_ms}
    rates = {"gflops_per_s": None, "gbytes_per_s": None}
    return LaunchTime.model_validate(
        {"index": 0, "layer": layer, "kernel": "k", "flops": 1, "bytes": 1} | values | rates
    )


class Profiler:
    def __init__(self, *launches: LaunchTime) -> None:
        self._launches = launches

    def profile(self, *_: object, **__: object) -> ProfileResult:
        session: Any = None
        return ProfileResult(session, session, self._launches)


def test_a_candidates_times_are_the_sums_over_its_own_launches_and_not_over_its_proofs() -> None:
    runner: Any = Profiler(
        launch("proof", 50.0, 60.0, 70.0),
        launch(TIMED_LAYER, 1.0, 2.0, 4.0),
        launch(TIMED_LAYER, 0.5, 0.75, 1.0),
    )
    outcome = try_candidate(runner, Path("x.clbundle"), Trial(), "device")
    assert outcome.status == "ok"
    assert outcome.times is not None
    assert (outcome.times.min_ms, outcome.times.median_ms, outcome.times.p90_ms) == (1.5, 2.75, 5.0)


def test_a_clock_that_does_not_tick_makes_no_candidate_the_fastest() -> None:
    runner: Any = Profiler(launch(TIMED_LAYER, 0.0, 0.0, 0.0))
    outcome = try_candidate(runner, Path("x.clbundle"), Trial(), "device")
    assert (outcome.status, outcome.times) == ("crashed", None)


def test_a_bundle_without_a_timed_launch_is_no_candidate() -> None:
    runner: Any = Profiler(launch("conv1", 1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="is no candidate"):
        try_candidate(runner, Path("x.clbundle"), Trial(), "device")
