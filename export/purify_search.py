"""Which thresholds of purification pay: every pair is tried, and its price in accuracy measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from export.fixed_point import shrink_fully
from export.purify import Purified, purify
from structadmm.graph.count import count
from structadmm.graph.ir import Graph


@dataclass(frozen=True)
class Trial:
    """One point of the trade-off.

    Attributes:
        eta: emptiness threshold; None for the network as it was.
        sigma: importance threshold; None for the network as it was.
        emptied: units that purification emptied.
        accuracy: top-1 in percent on the images given, without retraining.
        conv_params: of the network shrunk after it.
        macs: likewise.
        within_budget: whether the accuracy fell by no more than was allowed.
    """

    eta: float | None
    sigma: float | None
    emptied: int
    accuracy: float
    conv_params: int
    macs: int
    within_budget: bool


@dataclass(frozen=True)
class PurifySearch:
    """What was tried and what was taken.

    Attributes:
        purified: the best network within the budget.
        chosen: its trial; the first trial if nothing was worth it.
        trials: from mild to severe, the untouched network first. Pairs of thresholds that empty the same units are
            tried once.
    """

    purified: Purified
    chosen: Trial
    trials: tuple[Trial, ...]

    def record(self) -> dict[str, Any]:
        """For `export.json`."""
        return {
            "emptied": self.purified.emptied,
            "chosen": asdict(self.chosen),
            "trials": [asdict(trial) for trial in self.trials],
        }


def search_purification(
    graph: Graph,
    state: Mapping[str, Tensor],
    *,
    etas: Sequence[float],
    sigmas: Sequence[float],
    accuracy: Callable[[Mapping[str, Tensor]], float],
    max_accuracy_drop: float,
) -> PurifySearch:
    """Try every pair of thresholds and take the one with the fewest MACs that stays within the budget.

    Args:
        graph: the network.
        state: its tensors; not modified.
        etas: emptiness thresholds.
        sigmas: importance thresholds.
        accuracy: top-1 in percent of a state, on images that are not the test set: a threshold chosen on the test set
            would flatter the result.
        max_accuracy_drop: points that may be lost.
    """
    untouched = Purified(dict(state), {})
    before = accuracy(state)
    seen: dict[frozenset[tuple[str, int]], None] = {frozenset(): None}
    found = [(_trial(graph, untouched, None, None, before, before, max_accuracy_drop), untouched)]
    for sigma in sorted(sigmas):
        for eta in sorted(etas, reverse=True):
            purified = purify(graph, state, eta=eta, sigma=sigma)
            emptied = frozenset((group, unit) for group, units in purified.emptied.items() for unit in units)
            if emptied in seen:
                continue
            seen[emptied] = None
            after = accuracy(purified.state)
            found.append((_trial(graph, purified, eta, sigma, after, before, max_accuracy_drop), purified))
    affordable = [item for item in found if item[0].within_budget]
    chosen, purified = min(affordable, key=lambda item: (item[0].macs, item[0].conv_params, item[0].emptied))
    return PurifySearch(purified, chosen, tuple(trial for trial, _ in found))


def _trial(
    graph: Graph,
    purified: Purified,
    eta: float | None,
    sigma: float | None,
    accuracy: float,
    before: float,
    allowed: float,
) -> Trial:
    _, smaller = shrink_fully(graph, purified.state)
    counts = count(smaller.graph, smaller.state)
    emptied = sum(map(len, purified.emptied.values()))
    # One image of n is 100 / n points: the comparison is exact in multiples of that, up to float64's rounding.
    within = before - accuracy <= allowed + 1e-9
    return Trial(eta, sigma, emptied, accuracy, counts.conv_params, counts.macs, within)
