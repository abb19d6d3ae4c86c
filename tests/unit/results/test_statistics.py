from __future__ import annotations

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from results.statistics import paired_speed_up, spread
from structadmm.errors import UserError


def percentile_by_definition(samples: list[float], percent: float) -> float:
    """Linear interpolation between the two order statistics around rank (N - 1) * percent / 100."""
    ordered = sorted(samples)
    rank = (len(ordered) - 1) * percent / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40))
def test_the_spread_is_what_the_definitions_of_its_figures_say(samples: list[float]) -> None:
    summary = spread(samples, "x")
    rounding = 1e-9  # relative: a handful of float64 operations
    assert summary.samples == len(samples)
    assert summary.minimum == min(samples)
    assert summary.median == pytest.approx(statistics.median(samples), rel=rounding)
    assert summary.mean == pytest.approx(statistics.fmean(samples), rel=rounding)
    for figure, percent in ((summary.p10, 10), (summary.p90, 90), (summary.p99, 99)):
        assert figure == pytest.approx(percentile_by_definition(samples, percent), rel=rounding)


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [1.0, 0.0], [-1.0], [float("inf")]])
def test_a_sample_that_is_no_latency_is_an_error_and_never_a_number(bad: list[float]) -> None:
    with pytest.raises(UserError, match="pruned"):
        spread(bad, "pruned")


def test_samples_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(UserError, match="2 samples and pruned 1"):
        paired_speed_up([1.0, 2.0], [1.0])


def test_the_speed_up_is_the_median_of_the_rounds_ratios() -> None:
    assert paired_speed_up([9.0, 10.0, 30.0], [2.0, 5.0, 4.0]).median == 9.0 / 2.0


def test_a_clock_that_steps_down_halfway_moves_no_ratio() -> None:
    # The medians alone would say 6 / 4: one lies among the fast rounds, the other among the slow ones.
    assert paired_speed_up([6.0, 6.0, 6.0, 12.0, 12.0], [2.0, 2.0, 4.0, 4.0, 4.0]).median == 3.0


def test_a_constant_ratio_has_an_interval_of_no_width_however_the_clock_drifts() -> None:
    drift = np.linspace(1.0, 3.0, 31)
    speed_up = paired_speed_up((6.0 * drift).tolist(), (2.0 * drift).tolist(), resamples=1000)
    assert speed_up.ci95 == pytest.approx((3.0, 3.0), rel=1e-12)  # one division of float64


def test_the_interval_is_that_of_all_resamples_counted_one_by_one() -> None:
    baseline, pruned = [4.0, 5.0, 6.0, 9.0], [2.0, 2.0, 2.5, 3.0]
    every_ratio = sorted(
        statistics.median(baseline[i] / pruned[i] for i in chosen) for chosen in itertools.product(range(4), repeat=4)
    )
    low, high = paired_speed_up(baseline, pruned, resamples=200_000).ci95
    # 256 equally likely resamples make a step function: the Monte-Carlo quantile falls on it or beside it by the
    # sampling error of 200 000 draws, 0.04 percentage points, taken five times.
    assert percentile_by_definition(every_ratio, 2.3) <= low <= percentile_by_definition(every_ratio, 2.7)
    assert percentile_by_definition(every_ratio, 97.3) <= high <= percentile_by_definition(every_ratio, 97.7)


def test_it_is_the_interval_of_95_percent_and_of_no_other() -> None:
    # Of 31 rounds with the ratios 1 to 31, the median of a resample is at most r with the probability that 16 or more
    # of 31 draws are at most r: exactly that of a binomial. The nearest steps to 2.5 % are 2.0 and 4.8 %.
    rounds = 31
    ratios = range(1, rounds + 1)

    def at_most(rank: int) -> float:
        share, most = rank / rounds, range(rounds // 2 + 1, rounds + 1)
        return sum(math.comb(rounds, k) * share**k * (1 - share) ** (rounds - k) for k in most)

    expected = [next(r for r in ratios if at_most(r) >= percent) for percent in (0.025, 0.975)]
    assert expected != [next(r for r in ratios if at_most(r) >= percent) for percent in (0.05, 0.95)]
    found = paired_speed_up([float(r) for r in ratios], [1.0] * rounds, resamples=20_000)
    assert list(found.ci95) == expected


def coverage(drift_amplitude: float) -> float:
    """Share of 300 simulated measurements whose interval holds the true speed-up."""
    generator = random.Random(0)
    covered, trials, true_ratio = 0, 300, 2.5
    for trial in range(trials):
        drift = [1.0 + drift_amplitude * math.sin(i / 9.0 + trial) for i in range(60)]
        baseline = [10.0 * true_ratio * d * generator.lognormvariate(0.0, 0.05) for d in drift]
        pruned = [10.0 * d * generator.lognormvariate(0.0, 0.05) for d in drift]
        low, high = paired_speed_up(baseline, pruned, resamples=1000, seed=trial).ci95
        covered += low <= true_ratio <= high
    return covered / trials


def test_without_drift_the_interval_covers_the_true_speed_up_about_as_often_as_it_promises() -> None:
    # Binomial(300, 0.95) has a standard deviation of 1.3 %; the percentile method on medians of 60 errs to the wide
    # side.
    assert 0.92 <= coverage(0.0) <= 0.99


def test_drift_common_to_both_changes_nothing_about_that() -> None:
    assert 0.92 <= coverage(0.3) <= 0.99


def test_the_same_samples_and_seed_give_the_same_interval_whatever_the_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = random.Random(0)
    baseline, pruned = ([generator.uniform(low, low + 1) for _ in range(36)] for low in (4.0, 1.0))
    whole = paired_speed_up(baseline, pruned, resamples=1000, seed=7)
    monkeypatch.setattr("results.statistics.BLOCK_ELEMENTS", 245)
    assert paired_speed_up(baseline, pruned, resamples=1000, seed=7) == whole
    assert paired_speed_up(baseline, pruned, resamples=1000, seed=8) != whole
