"""Order statistics of latency samples, and a confidence interval for the speed-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structadmm.errors import UserError

BLOCK_ELEMENTS = 1 << 22  # bootstrap resamples are drawn in blocks of at most this many sample numbers (32 MiB)


@dataclass(frozen=True)
class Spread:
    """Summary of one network's latency samples, in the samples' unit."""

    samples: int
    minimum: float
    p10: float
    median: float
    mean: float
    p90: float
    p99: float


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster `pruned` is than `baseline`: median over rounds, with a 95 % confidence interval."""

    median: float
    ci95: tuple[float, float]


def checked_samples(samples: Sequence[float], what: str) -> NDArray[np.float64]:
    """The samples as an array, [N].

    Raises:
        UserError: there are none, or one is not a finite positive number: such a measurement has failed.
    """
    array = np.asarray(samples, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UserError(f"{what} has no latency samples: measure again")
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        raise UserError(f"{what} has {array[bad[0]]} ms as sample {bad[0]}, expected a positive number: measure again")
    return array


def spread(samples: Sequence[float], what: str) -> Spread:
    """Minimum, mean and percentiles (linear interpolation between order statistics) of latency samples.

    Raises:
        UserError: as `checked_samples`.
    """
    array = checked_samples(samples, what)
    p10, median, p90, p99 = np.percentile(array, [10, 50, 90, 99]).tolist()
    return Spread(array.size, float(array.min()), p10, median, float(array.mean()), p90, p99)


def paired_speed_up(
    baseline: Sequence[float], pruned: Sequence[float], *, resamples: int = 10_000, seed: int = 0
) -> SpeedUp:
    """Median over the rounds of (baseline / pruned of the same round), and the percentile interval of its bootstrap.

    The samples were taken in rounds of one pair each, in shuffled order, so a drift of clocks and temperature is common
    to a pair and cancels in its ratio. The ratio of the two medians has no such protection: where a phone steps its
    clock down halfway, one median may fall among the fast rounds and the other among the slow ones. On a device that
    holds still the two agree up to noise. Rounds are resampled as wholes; the interval is the percentile method of
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    Args:
        baseline: [N] latencies of the unpruned network.
        pruned: [N] latencies of the pruned network, `pruned[i]` taken beside `baseline[i]`.
        resamples: number of bootstrap resamples.
        seed: of the generator (PCG64) that draws them.

    Raises:
        UserError: a sample is no positive number, or the two do not pair up.
    """
    before, after = checked_samples(baseline, "baseline"), checked_samples(pruned, "pruned")
    if before.size != after.size:
        raise UserError(f"baseline has {before.size} samples and pruned {after.size}, expected pairs: measure again")
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK_ELEMENTS // before.size)
    ratios = before / after  # [N], one for each round
    medians = np.empty(resamples)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        chosen = generator.integers(before.size, size=(count, before.size))  # [count, N], numbers of pairs
        medians[start : start + count] = np.median(ratios[chosen], axis=1)
    low, high = np.percentile(medians, [2.5, 97.5]).tolist()
    return SpeedUp(float(np.median(ratios)), (low, high))
