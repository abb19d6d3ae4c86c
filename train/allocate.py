"""How many units each layer keeps so that the network meets a budget with the least damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.costs import Floats, Ints
from train.footprint_model import FootprintModel
from train.sensitivity import Damage

# A layer shrinks by this share of its units at a time until the budget is met; units are then given back one by one.
_CHUNKS = 48


@dataclass(frozen=True)
class Choices:
    """The counts that a constraint may keep.

    Attributes:
        alive: units before.
        least: the fewest that may stay.
        multiple: counts are multiples of this, or `alive`.
    """

    alive: int
    least: int
    multiple: int

    def lower(self, keep: int) -> Ints:
        """Counts below `keep`, falling, a chunk apart."""
        step = max(1, self.alive // (_CHUNKS * self.multiple)) * self.multiple
        first = (keep - 1) // self.multiple * self.multiple
        found = np.arange(first, self.least - 1, -step)
        if first >= self.least and found[-1] != self.lowest:
            found = np.append(found, self.lowest)
        return found

    def next_higher(self, keep: int) -> int:
        """The next count above `keep`; `keep` itself when all units are kept."""
        return min(self.alive, (keep // self.multiple + 1) * self.multiple)

    @property
    def lowest(self) -> int:
        """The least count allowed."""
        return min(self.alive, -(-self.least // self.multiple) * self.multiple)


def allocate(
    model: FootprintModel, damages: Sequence[Damage], choices: Sequence[Choices], keeps: Sequence[int], limit: float
) -> list[int] | None:
    """Remove units where damage per saving is least until the footprint is at most `limit`, then give back what fits.

    The damage is convex in the count, so that this is the greedy solution of the Lagrangian; savings are those of the
    network as pruned so far, because a removed filter makes its consumers cheaper.

    Args:
        model: of the footprint.
        damages: of each constraint.
        choices: of each constraint.
        keeps: where to start.
        limit: in the footprint's unit.

    Returns:
        Units to keep of each constraint; None when the least of all are more than `limit`.
    """
    found = list(keeps)
    size = model.total(found)
    best: dict[int, tuple[float, int, float]] = {}
    stale = set(range(len(found)))
    while size > limit:
        for index in stale:
            best.pop(index, None)
            move = _cheapest(model, damages[index], choices[index], found, index)
            if move is not None:
                best[index] = move
        if not best:
            return None
        chosen = min(best, key=lambda index: (best[index][0], index))
        _, found[chosen], saving = best[chosen]
        size -= saving
        stale = set(model.neighbours[chosen])
    _give_back(model, damages, choices, found, limit)
    return found


def _cheapest(
    model: FootprintModel, damage: Damage, choices: Choices, keeps: Sequence[int], index: int
) -> tuple[float, int, float] | None:
    """The (damage per saving, count, saving) of the best next count, or None when nothing more can be saved."""
    candidates = choices.lower(keeps[index])
    if len(candidates) == 0:
        return None
    # The nearest count is best unless a step of a cost table lies behind it.
    for tried in (candidates[:1], candidates):
        savings = model.savings(keeps, index, tried)
        ratios = _ratios(damage, keeps[index], tried, savings)
        place = int(ratios.argmin())
        if np.isfinite(ratios[place]):
            return float(ratios[place]), int(tried[place]), float(savings[place])
    return None


def _ratios(damage: Damage, keep: int, candidates: Ints, savings: Floats) -> Floats:
    harm = damage.at(candidates) - damage.at(np.array(keep))
    ratios: Floats = np.full(len(candidates), np.inf)
    np.divide(harm, savings, out=ratios, where=savings > 0)
    return ratios


def _give_back(
    model: FootprintModel, damages: Sequence[Damage], choices: Sequence[Choices], keeps: list[int], limit: float
) -> None:
    while True:
        room = limit - model.total(keeps)
        best: tuple[float, int, int] | None = None
        for index, (damage, choice) in enumerate(zip(damages, choices, strict=True)):
            higher = choice.next_higher(keeps[index])
            if higher == keeps[index]:
                continue
            growth = -float(model.savings(keeps, index, np.array([higher]))[0])
            if growth > room:
                continue
            relief = float(damage.at(np.array(keeps[index])) - damage.at(np.array(higher)))
            worth = relief / growth if growth > 0 else np.inf
            if best is None or worth > best[0]:
                best = worth, index, higher
        if best is None:
            return
        keeps[best[1]] = best[2]
