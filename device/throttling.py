"""Was the device in one state throughout, and ours alone? Read from its clock, the latencies' drift, a host's load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device.contention import contention_warning

BLOCKS = 8
MIN_ROUNDS_PER_BLOCK = 4
CLOCK_DROP = 0.03  # neighbouring steps of a GPU's clock are 10 % and more apart
DRIFT = 0.05  # a drift that common timings on a quiet device stay below
_SHUFFLES = 400


@dataclass(frozen=True)
class ClockSummary:
    """A clock over the timed rounds, MHz; medians over eighths of the time, so that one odd reading says nothing."""

    first: float
    last: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Steadiness:
    """Whether latencies of different rounds may be compared with each other.

    Attributes:
        steady: nothing was noticed.
        warnings: what was, one line each.
        clock_mhz: None where the device does not tell its clock.
        drift: slowest eighth of the rounds over the fastest, by medians; None for too few rounds.
        others_share: of the processors' time that went to other programs; None where that is not known.
    """

    steady: bool
    warnings: tuple[str, ...]
    clock_mhz: ClockSummary | None
    drift: float | None
    others_share: float | None = None


def judge(
    samples_ms: Sequence[Sequence[float]],
    clock_mhz: Sequence[float | None],
    max_clock_mhz: float | None,
    others_share: float | None = None,
) -> Steadiness:
    """Look at a finished measurement.

    Args:
        samples_ms: for each bundle its latencies in round order, [N] each.
        clock_mhz: readings of the clock, evenly spread over the same time; None: not readable then.
        max_clock_mhz: the highest clock the device allows itself, where it says so.
        others_share: of the processors' time that other programs took meanwhile, where the device is a processor.
    """
    clock = summarise_clock(clock_mhz)
    warnings = []
    if clock and clock.lowest < (1 - CLOCK_DROP) * clock.highest:
        warnings.append(
            f"throttled: its clock fell from {clock.highest:.0f} to {clock.lowest:.0f} MHz between timed rounds"
        )
    elif clock and max_clock_mhz and clock.highest < (1 - CLOCK_DROP) * max_clock_mhz:
        warnings.append(
            f"its clock never rose above {clock.highest:.0f} of {max_clock_mhz:.0f} MHz: it was warm already, or its "
            "governor held it there"
        )
    drift, noticed = latency_drift(samples_ms)
    if noticed and drift is not None:
        warnings.append(f"latencies drifted: both networks took up to {drift:.2f} times as long in some rounds")
    if (contended := contention_warning(others_share)) is not None:
        warnings.append(contended)
    return Steadiness(not warnings, tuple(warnings), clock, drift, others_share)


def summarise_clock(clock_mhz: Sequence[float | None]) -> ClockSummary | None:
    """The clock's course; None where it was never readable."""
    known = np.array([value for value in clock_mhz if value is not None and value > 0])
    if known.size == 0:
        return None
    medians = [float(np.median(part)) for part in np.array_split(known, min(BLOCKS, known.size))]
    return ClockSummary(medians[0], medians[-1], min(medians), max(medians))


def latency_drift(samples_ms: Sequence[Sequence[float]], *, seed: int = 0) -> tuple[float | None, bool]:
    """How far the rounds drifted, and whether that is more than chance.

    A round's own slowness is the geometric mean of its latencies: what hits all bundles alike. The rounds are cut into
    eighths in their order; the drift is the highest median of an eighth over the lowest. Noise alone makes it exceed 1,
    so it is noticed only where it is at least `DRIFT` and the eighths differ in rank (Kruskal and Wallis 1952) by more
    than those of every one of 400 shuffles of the same rounds.

    Args:
        samples_ms: for each bundle its latencies in round order.
        seed: of the shuffles.

    Returns:
        (drift, noticed); the drift is None for fewer than 8 rounds.
    """
    slowness: NDArray[np.float64] = np.log(np.asarray(samples_ms, dtype=np.float64)).mean(axis=0)  # [N]
    blocks = min(BLOCKS, slowness.size // MIN_ROUNDS_PER_BLOCK)
    if blocks < 2:
        return None, False

    medians = [np.median(part) for part in np.array_split(slowness, blocks)]
    drift = float(np.exp(max(medians) - min(medians)))
    if drift < 1 + DRIFT:
        return drift, False
    ordered = np.sort(slowness)
    ranks = np.searchsorted(ordered, slowness, "left") + np.searchsorted(ordered, slowness, "right") - slowness.size

    def differ(values: NDArray[np.int64]) -> float:
        """Kruskal and Wallis's H but for constants: ranks are centred on zero."""
        return sum(float(part.sum()) ** 2 / part.size for part in np.array_split(values, blocks))

    found, generator = differ(ranks), np.random.default_rng(seed)
    return drift, all(differ(generator.permutation(ranks)) < found for _ in range(_SHUFFLES))
