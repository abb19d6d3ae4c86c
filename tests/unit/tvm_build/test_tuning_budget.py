from __future__ import annotations

import pytest

from tests.unit.tvm_build.fake_measurer import GPU, PRECISION
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.ops import Dense
from tvm_build.tuning.budget import expected_gain_ms, most_promising
from tvm_build.tuning.forms import Forms
from tvm_build.tuning.search import PATIENCE, TaskSearch
from tvm_build.tuning.tasks import Task, Use

_ANY = DenseSchedule()


def search(features: int, form: str = "direct", group: str = "layer", count: int = 1) -> TaskSearch:
    """Of a task of its own, part of one form of one group of `count` layers."""
    layers = tuple(f"{group}{number}" for number in range(count))
    use = Use(group, form, layers, untuned=form == "direct")
    return TaskSearch(Task(Dense(1, features, 4), layers, (use,), predicted_us=1000.0), GPU, PRECISION)


def tried(found: TaskSearch, *costs_ms: float | None) -> TaskSearch:
    for cost_ms in costs_ms:
        found.record(_ANY, cost_ms)
    return found


def gains_ms(*searches: TaskSearch) -> list[float]:
    forms = Forms([each.task for each in searches], GPU)
    task_ms = {each.task.key: each.best_ms for each in searches}
    hopeless = {each.task.key for each in searches if each.is_hopeless}
    return [expected_gain_ms(each, forms, task_ms, hopeless) for each in searches]


def test_a_task_whose_last_trials_have_saved_much_is_expected_to_save_more() -> None:
    falling = tried(search(8, group="a"), 4.0, 3.0, 2.0, 1.0)
    flat = tried(search(12, group="b"), 1.0, 1.0, 1.0, 1.0)
    gains = gains_ms(falling, flat)
    assert gains[0] == pytest.approx(0.3 * 1.0 + 0.7 * 0.25 / 4)
    assert gains[1] == pytest.approx(0.7 * 0.25 / 4)
    assert most_promising([flat, falling], Forms([falling.task, flat.task], GPU), {}) is falling


def test_hope_sinks_with_trials_and_grows_with_the_layers() -> None:
    few, many = tried(search(8, group="a"), 1.0), tried(search(12, group="b"), *[1.0] * 10)
    twice = tried(search(16, group="c", count=2), 1.0)
    gains = gains_ms(few, many, twice)
    assert gains[0] == pytest.approx(10 * gains[1])
    assert gains[2] == pytest.approx(2 * gains[0])


def test_a_form_that_is_far_behind_is_expected_to_save_next_to_nothing() -> None:
    behind, ahead = tried(search(8, "Winograd"), 4.0), tried(search(12), 1.0)
    (slow, fast), (alone,) = gains_ms(behind, ahead), gains_ms(tried(search(8, "Winograd"), 4.0))
    assert slow == pytest.approx(alone / 4**4)
    assert fast == pytest.approx(alone / 4)


def test_what_only_fails_is_given_up_where_the_layer_has_another_form() -> None:
    failing = tried(search(8, "Winograd"), *[None] * PATIENCE)
    sibling = tried(search(12, "Winograd"), 0.1)
    assert min(gains_ms(failing, sibling)) > 0
    assert gains_ms(failing, sibling, tried(search(16), 9.0))[:2] == [0.0, 0.0]
    hopeful = tried(search(20, "Winograd"), *[None] * (PATIENCE - 1))
    assert min(gains_ms(hopeful, sibling, tried(search(16), 9.0))) > 0


def test_forms_that_cannot_be_completed_leave_the_budget_to_the_others() -> None:
    """Ten layers whose Winograd product fails always: what is spent on it is what shows that, and no more."""
    direct = [search(8 + 4 * number, group=f"g{number}") for number in range(10)]
    products = [search(108 + 4 * number, "Winograd", f"g{number}") for number in range(10)]
    transforms = [search(208 + 4 * number, "Winograd", f"g{number}") for number in range(10)]
    searches = [*direct, *products, *transforms]
    forms = Forms([each.task for each in searches], GPU)
    for _ in range(2000 // 8):
        task_ms = {each.task.key: each.best_ms for each in searches}
        hopeless = {each.task.key for each in searches if each.is_hopeless}
        chosen = most_promising(searches, forms, task_ms, hopeless)
        tried(chosen, *[None if chosen in products else 1.0] * 8)
    assert {each.trials for each in products} == {PATIENCE}
    assert sum(each.trials for each in transforms) < 200
    assert sum(each.trials for each in direct) > 1400
