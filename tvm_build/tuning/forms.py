"""The ways to compute each layer: which tasks each of them consists of, and what they take together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from tvm_build.gpu import Gpu
from tvm_build.ops import Conv2d
from tvm_build.winograd import DIRECT

if TYPE_CHECKING:
    from tvm_build.tuning.tasks import Task

NEVER = float("inf")


def form_of(op: Conv2d) -> str:
    """A convolution in one launch, in words."""
    words = ["kept columns"] if op.columns is not None else []
    if op.shortcut is not None and op.shortcut.columns is not None:
        words.append("kept columns of the shortcut")
    return ", ".join(words) or DIRECT


class Forms:
    """Groups of identical layers, the forms of each group, and the tasks of each form.

    A task may be part of several groups: layers that differ in what comes after the sum share transform and product.

    Args:
        tasks: of one session.
        gpu: what lies between the launches of a form counts, too.
    """

    def __init__(self, tasks: Iterable[Task], gpu: Gpu) -> None:
        self._parts: dict[str, dict[str, list[str]]] = {}
        self._layers: dict[str, tuple[str, ...]] = {}
        self._untuned: dict[str, str] = {}
        self._gpu = gpu
        for task in tasks:
            for use in task.uses:
                self._parts.setdefault(use.group, {}).setdefault(use.form, []).append(task.key)
                self._layers[use.group] = use.layers
                if use.untuned:
                    self._untuned[use.group] = use.form

    @property
    def groups(self) -> tuple[str, ...]:
        """Every group."""
        return tuple(self._parts)

    def layers(self, group: str) -> tuple[str, ...]:
        """Names of a group's layers."""
        return self._layers[group]

    def times_ms(self, group: str, task_ms: Mapping[str, float]) -> dict[str, float]:
        """Milliseconds of one layer of the group in each form; infinity where a task has no time."""
        return {
            form: sum(task_ms.get(key, NEVER) for key in keys) + self._gpu.between_us(len(keys)) / 1e3
            for form, keys in self._parts[group].items()
        }

    def best_ms(self, group: str, task_ms: Mapping[str, float]) -> float:
        """Milliseconds of one layer of the group in its fastest form."""
        return min(self.times_ms(group, task_ms).values())

    def total_ms(self, task_ms: Mapping[str, float]) -> float | None:
        """All layers, each in its fastest form; None while one has no time."""
        total = sum(self.best_ms(group, task_ms) * len(self._layers[group]) for group in self._parts)
        return None if total == NEVER else total

    def untuned_ms(self, task_ms: Mapping[str, float]) -> float | None:
        """All layers in the form that a compilation without a database chooses; None while one has no time."""
        total = sum(self.untuned_layer_ms(group, task_ms) * len(layers) for group, layers in self._layers.items())
        return None if total == NEVER else total

    def untuned_layer_ms(self, group: str, task_ms: Mapping[str, float]) -> float:
        """Milliseconds of one layer in the form that a compilation without a database chooses."""
        return self.times_ms(group, task_ms)[self._untuned[group]]

    def nearness(self, group: str, form: str, task_ms: Mapping[str, float], hopeless: Collection[str] = ()) -> float:
        """How near a form is to the fastest other one: their times' ratio, at most 1; 1 while this cannot be said.

        Args:
            group: of identical layers.
            form: one of theirs.
            task_ms: of every task that has a time.
            hopeless: keys of tasks that will have none; a form with one of them is 0 near to any that has a time.
        """
        times = self.times_ms(group, task_ms)
        rival = min((ms for other, ms in times.items() if other != form), default=NEVER)
        if rival != NEVER and not set(hopeless).isdisjoint(self._parts[group][form]):
            return 0.0
        return 1.0 if NEVER in (rival, times[form]) else min(1.0, rival / times[form])
