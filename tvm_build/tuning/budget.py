"""Which task the next trials go to: where they are expected to save most of the network's time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tvm_build.tuning.forms import Forms
from tvm_build.tuning.search import TaskSearch

_WINDOW = 24
_RECENT = 0.3
# Trials so far divide the optimism about what is still to be found; a quarter of the time is what is hoped for.
_HOPE = 0.25


def expected_gain_ms(
    search: TaskSearch, forms: Forms, task_ms: Mapping[str, float], hopeless: Collection[str] = ()
) -> float:
    """Milliseconds of an inference that one more trial of this task should save.

    The gradient, as task schedulers of auto-tuners estimate it: a share of what the last trials saved each, and the
    rest hope, which sinks as trials are spent.

    Args:
        search: the task's.
        forms: of all tasks. A form that is far behind another one must catch up before it saves anything.
        task_ms: of every task that has a time.
        hopeless: keys of tasks that are not expected to have one.
    """
    layers = sum(
        len(use.layers) * forms.nearness(use.group, use.form, task_ms, hopeless) ** 4 for use in search.task.uses
    )
    now = search.best_ms
    if now == float("inf"):
        return layers * search.task.predicted_us / 1e3 / (1 + search.trials)
    window = min(_WINDOW, search.trials - 1)
    before = search.history[-1 - window] if window else now
    recent = (before - now) / window if window and before != float("inf") else 0.0
    hope = _HOPE * now / search.trials
    return layers * (_RECENT * recent + (1 - _RECENT) * hope)


def most_promising(
    searches: Sequence[TaskSearch], forms: Forms, task_ms: Mapping[str, float], hopeless: Collection[str] = ()
) -> TaskSearch:
    """The task that the next trials should go to.

    Every task gets a first round, and those that an untuned compilation launches get it first.

    Args:
        searches: to choose from.
        forms: of all tasks.
        task_ms: of every task that has a time.
        hopeless: keys of tasks that are not expected to have one.
    """
    untouched = [search for search in searches if search.trials == 0]
    if untouched:
        launched = [search for search in untouched if any(use.untuned for use in search.task.uses)]
        return max(launched or untouched, key=lambda search: search.task.predicted_us * search.task.count)
    return max(searches, key=lambda search: expected_gain_ms(search, forms, task_ms, hopeless))
