"""What a measurement says about a device that warms up, on a virtual phone: its time is counted and not waited for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.throttling import judge, latency_drift, summarise_clock
from results.statistics import paired_speed_up
from tests.emulated_phone import ThermalModel
from tests.emulated_phone.thermal import ThermalState, advance

STEP_S = 0.002


@dataclass
class VirtualPhone:
    """Networks that take a known time at the highest clock, on the emulated phone's thermal model."""

    model: ThermalModel = field(default_factory=ThermalModel)

    def __post_init__(self) -> None:
        self.state = ThermalState(self.model.ambient_c)
        self.random = random.Random(0)

    @property
    def clock_mhz(self) -> float:
        return self.model.clocks_mhz[self.state.level]

    def run(self, work_ms: float, *, noise: float = 0.02) -> float:
        """One inference: how long it took, in ms."""
        left_s = work_ms / 1000 * self.random.lognormvariate(0, noise)
        taken_s = 0.0
        while left_s > 0:
            speed = self.clock_mhz / self.model.clocks_mhz[0]
            step = min(STEP_S, left_s / speed)
            self.state = advance(self.model, self.state, step, busy=True)
            left_s -= step * speed
            taken_s += step
        return taken_s * 1000

    def rounds(self, baseline_ms: float, pruned_ms: float, count: int) -> tuple[list[float], list[float], list[float]]:
        """Latencies of both and the clock before each round."""
        baseline, pruned, clocks = [], [], []
        for _ in range(count):
            clocks.append(self.clock_mhz)
            if self.random.random() < 0.5:
                baseline.append(self.run(baseline_ms))
                pruned.append(self.run(pruned_ms))
            else:
                pruned.append(self.run(pruned_ms))
                baseline.append(self.run(baseline_ms))
        return baseline, pruned, clocks


def quick_model(**changes: float) -> ThermalModel:
    values = {"heating_c_per_s": 12.0, "cooling_time_s": 15.0, **changes}
    return ThermalModel(**values)  # type: ignore[arg-type]  # all that a test changes is a float


def test_on_a_phone_that_throttles_the_paired_speed_up_is_right_and_a_naive_one_is_not() -> None:
    true_ratio = 3.0
    baseline, pruned, clocks = VirtualPhone(quick_model()).rounds(30.0, 10.0, 200)
    verdict = judge([baseline, pruned], clocks, 585.0)
    assert not verdict.steady
    assert "throttled: its clock fell from 585 to" in verdict.warnings[0]
    assert "latencies drifted" in verdict.warnings[1]
    measured = paired_speed_up(baseline, pruned, resamples=1000)
    # The goal; pairs that straddle a step of the clock and noise of 2 % leave less than 1 %.
    assert measured.median == pytest.approx(true_ratio, rel=0.03)
    assert measured.ci95[0] <= true_ratio * 1.01
    assert measured.ci95[1] >= true_ratio * 0.99

    naive_phone = VirtualPhone(quick_model())
    first = sorted(naive_phone.run(30.0) for _ in range(200))
    second = sorted(naive_phone.run(10.0) for _ in range(200))
    assert abs(first[100] / second[100] / true_ratio - 1) > 0.10


@settings(deadline=None, max_examples=25, derandomize=True)
@given(heating=st.floats(4, 40), cooling=st.floats(5, 60), ratio=st.floats(1.2, 6), rounds=st.integers(60, 200))
def test_whatever_the_phone_the_paired_speed_up_stays_within_three_percent(
    heating: float, cooling: float, ratio: float, rounds: int
) -> None:
    phone = VirtualPhone(quick_model(heating_c_per_s=heating, cooling_time_s=cooling))
    baseline, pruned, _ = phone.rounds(10.0 * ratio, 10.0, rounds)
    # Noise of 2 % on each of 60 pairs moves a median by 0.5 % (one standard deviation).
    assert paired_speed_up(baseline, pruned, resamples=10).median == pytest.approx(ratio, rel=0.03)


def test_a_phone_that_stays_cool_is_steady() -> None:
    baseline, pruned, clocks = VirtualPhone(quick_model(limit_c=1000.0)).rounds(30.0, 10.0, 200)
    verdict = judge([baseline, pruned], clocks, 585.0)
    assert verdict.steady, verdict.warnings
    assert verdict.clock_mhz is not None
    assert verdict.clock_mhz.lowest == verdict.clock_mhz.highest == 585.0


def test_a_phone_that_begins_hot_is_said_to_run_below_its_clock() -> None:
    verdict = judge([[9.0] * 40, [3.0] * 40], [427.0] * 10, 585.0)
    assert verdict.warnings == (
        "its clock never rose above 427 of 585 MHz: it was warm already, or its governor held it there",
    )


def test_one_odd_reading_of_the_clock_is_no_throttling() -> None:
    clocks: list[float | None] = [585.0] * 80
    clocks[33] = 180.0
    clocks[50] = None
    assert judge([[9.0] * 40], clocks, 585.0).steady


def test_a_gpu_that_was_off_between_two_rounds_was_not_throttled() -> None:
    # Some drivers tell a clock of zero while nothing runs.
    verdict = judge([[9.0] * 40], [585.0, 0.0] * 40, 585.0)
    assert verdict.steady, verdict.warnings
    assert judge([[9.0] * 40], [0.0] * 80, 585.0).clock_mhz is None


def test_a_clock_that_fell_and_came_back_was_throttled() -> None:
    verdict = judge([[9.0] * 40], [585.0] * 30 + [427.0] * 20 + [585.0] * 30, 585.0)
    assert verdict.warnings == ("throttled: its clock fell from 585 to 427 MHz between timed rounds",)
    assert verdict.clock_mhz is not None
    assert (verdict.clock_mhz.first, verdict.clock_mhz.last) == (585.0, 585.0)


def test_a_device_that_tells_no_clock_is_judged_by_its_latencies() -> None:
    falling = [10.0 * (1.0 + 0.5 * (i >= 40)) for i in range(80)]
    verdict = judge([falling, [x / 3 for x in falling]], [], None)
    assert verdict.clock_mhz is None
    assert verdict.drift == pytest.approx(1.5)
    assert verdict.warnings == ("latencies drifted: both networks took up to 1.50 times as long in some rounds",)
    assert summarise_clock([None, None]) is None


@pytest.mark.parametrize(("slower", "noticed"), [(1.04, False), (1.06, True)])
def test_a_drift_is_noticed_from_five_percent_on(slower: float, noticed: bool) -> None:
    drifting = [10.0 * (slower if i >= 40 else 1.0) + 0.001 * (i % 3) for i in range(80)]
    verdict = judge([drifting, [x / 3 for x in drifting]], [], None)
    assert verdict.drift == pytest.approx(slower, rel=1e-3)
    assert bool(verdict.warnings) == noticed


def test_a_drift_is_what_both_networks_have_in_common() -> None:
    # One of them twice as slow in half of the rounds: sqrt(2) in the geometric mean, 2 in the slower one.
    drift, _ = latency_drift([[10.0] * 40 + [20.0] * 40, [3.0] * 80])
    assert drift == pytest.approx(2**0.5)


def noisy(generator: random.Random, count: int, spread: float) -> Sequence[float]:
    """Skewed as real latencies are: most near the least, a few far above."""
    return [5.0 + generator.expovariate(1 / spread) for _ in range(count)]


def test_noise_alone_is_hardly_ever_taken_for_a_drift() -> None:
    generator = random.Random(1)
    noticed = sum(
        latency_drift([noisy(generator, 64, 2.0), noisy(generator, 64, 2.0)], seed=trial)[1] for trial in range(200)
    )
    # Chance passes all of 400 shuffles once in 401 trials; four or more of 200 would happen once in some 500 runs.
    assert noticed < 4


def test_too_few_rounds_say_nothing_about_drift() -> None:
    assert latency_drift([[1.0, 1.0, 5.0, 5.0, 9.0, 9.0, 9.0]]) == (None, False)
