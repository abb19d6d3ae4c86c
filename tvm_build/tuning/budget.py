"""Which task the next trials go to: where they are expected to save most of the network's time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tvm_build.tuning.search import TaskSearch

_WINDOW = 24
_RECENT = 0.3
# Trials so far divide the optimism about what is still to be found; a quarter of the time is what is hoped for.
_HOPE = 0.25


def expected_gain_ms(search: TaskSearch, rival_ms: float) -> float:
    """Milliseconds of an inference that one more trial of this task should save.

    The gradient, as task schedulers of auto-tuners estimate it: a share of what the last trials saved each, and the
    rest hope, which sinks as trials are spent.

    Args:
        search: the task's.
        rival_ms: the fastest other way to compute the same layers, infinity if there is none: a task that is far
            behind it must catch up before it saves anything.
    """
    now = search.best_ms
    if now == float("inf"):
        return search.task.predicted_us / 1e3 * search.task.count / (1 + search.trials)
    window = min(_WINDOW, search.trials - 1)
    before = search.history[-1 - window] if window else now
    recent = (before - now) / window if window and before != float("inf") else 0.0
    hope = _HOPE * now / search.trials
    behind = min(1.0, rival_ms / now) ** 4
    return search.task.count * behind * (_RECENT * recent + (1 - _RECENT) * hope)


def most_promising(searches: Sequence[TaskSearch]) -> TaskSearch:
    """The task that the next trials should go to; every task gets a first round."""
    untouched = [search for search in searches if search.trials == 0]
    if untouched:
        return max(untouched, key=lambda search: search.task.predicted_us * search.task.count)
    by_group: dict[str, list[TaskSearch]] = defaultdict(list)
    for search in searches:
        by_group[search.task.group].append(search)

    def gain(search: TaskSearch) -> float:
        rivals = [other.best_ms for other in by_group[search.task.group] if other is not search]
        return expected_gain_ms(search, min(rivals, default=float("inf")))

    return max(searches, key=gain)
