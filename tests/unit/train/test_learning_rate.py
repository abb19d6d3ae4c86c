from __future__ import annotations

import dataclasses

import pytest

from train.loop import learning_rate
from train.rounds import Phase

PHASE = Phase("dense", -1, epochs=10, lr=0.4, schedule="cosine", warmup_epochs=2.0, restart_every=10)


def test_the_rate_rises_during_the_warm_up_and_falls_to_zero_along_a_cosine() -> None:
    assert learning_rate(PHASE, 0.0) == pytest.approx(0.004)
    assert learning_rate(PHASE, 1.0) == pytest.approx(0.2)
    assert learning_rate(PHASE, 2.0) == pytest.approx(0.4)
    assert learning_rate(PHASE, 6.0) == pytest.approx(0.2)
    assert 0 < learning_rate(PHASE, 9.99) < 1e-4


def test_the_schedule_restarts_at_each_update_of_the_target() -> None:
    phase = Phase("admm", 0, epochs=6, lr=0.4, schedule="cosine", warmup_epochs=0.0, restart_every=3)
    for done in (0.0, 0.5, 2.9):
        assert learning_rate(phase, done) == pytest.approx(learning_rate(phase, done + 3))
    assert learning_rate(phase, 3.0) == pytest.approx(0.4)


def test_steps_and_constants() -> None:
    step = dataclasses.replace(PHASE, schedule="step", warmup_epochs=0.0)
    assert [learning_rate(step, done) for done in (0.0, 4.9, 5.0, 7.4, 7.5)] == pytest.approx(
        [0.4, 0.4, 0.04, 0.04, 0.004]
    )
    constant = dataclasses.replace(PHASE, schedule="constant", warmup_epochs=0.0)
    assert {learning_rate(constant, done) for done in (0.0, 3.3, 9.9)} == {0.4}


def test_a_warm_up_longer_than_the_phase_takes_half_of_it() -> None:
    short = dataclasses.replace(PHASE, epochs=1, restart_every=1)
    assert learning_rate(short, 0.5) == pytest.approx(0.4)
    assert learning_rate(short, 0.75) == pytest.approx(0.2)
