"""Which schedule of a task to try next: the cost model's choice among mutants and random ones, sometimes chance's."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from tvm_build.gpu import Gpu
from tvm_build.kernels import Schedule, default_schedule
from tvm_build.precision import Precision
from tvm_build.tuning.cost_model import CostModel
from tvm_build.tuning.schedules import describe_schedule, schedule_line
from tvm_build.tuning.space import Space, space
from tvm_build.tuning.tasks import Task

EPSILON = 0.15
"""Share of the trials that are drawn at random, whatever the cost model says of them."""

PATIENCE = 32
"""Trials without a success after which a task is not expected to have one."""

_SMALL_SPACE = 600
_POOL = 400
_PARENTS = 8
_NEIGHBOURS = 24
_LISTED_FIRST = 6


@dataclass
class TaskSearch:
    """The search of one task: what was tried, what was best, what comes next.

    Attributes:
        task: what is tuned.
        history: lowest milliseconds after each trial so far, by what was known then; infinity before the first success.
        best: the fastest schedule, None before the first success.
        default_ms: what the schedule takes that an untuned compilation chooses; None until it was measured.
    """

    task: Task
    gpu: Gpu
    precision: Precision
    seed: int = 0
    history: list[float] = field(default_factory=list)
    best: Schedule | None = None
    default_ms: float | None = None

    def __post_init__(self) -> None:
        self.space: Space = space(self.task.op, self.gpu, self.precision)
        self.default: Schedule = default_schedule(self.task.op, self.gpu, self.precision)
        self._generator = random.Random(0)
        self._costs: dict[str, tuple[Schedule, float | None]] = {}
        self._under_way: set[str] = set()
        self._again: list[Schedule] = []
        self._best_ms = float("inf")

    @property
    def best_ms(self) -> float:
        """Lowest milliseconds; infinity before the first success."""
        return self._best_ms

    @property
    def trials(self) -> int:
        """Finished ones."""
        return len(self.history)

    @property
    def is_hopeless(self) -> bool:
        """Whether so many trials failed that another one is not worth its time where the layer has another form."""
        return self.best is None and self.trials >= PATIENCE

    def record(self, schedule: Schedule, cost_ms: float | None) -> None:
        """Take up an outcome; None for a candidate that failed."""
        line = _line(schedule)
        self._under_way.discard(line)
        self._costs[line] = (schedule, cost_ms)
        if schedule == self.default:
            self.default_ms = cost_ms
        if cost_ms is not None and cost_ms < self._best_ms:
            self.best, self._best_ms = schedule, cost_ms
        self.history.append(self._best_ms)

    def correct(self, schedule: Schedule, cost_ms: float | None) -> None:
        """Take up what repeating a trial has shown; None where its schedule is not trusted any more."""
        self._costs[_line(schedule)] = (schedule, cost_ms)
        if schedule == self.default:
            self.default_ms = cost_ms
        works = [(cost, found) for found, cost in self._costs.values() if cost is not None]
        self._best_ms, self.best = min(works, key=lambda item: item[0], default=(float("inf"), None))

    def finalists(self) -> list[Schedule]:
        """The fastest schedule and the untuned one, where these differ and both work."""
        if self.best is None or self.best == self.default or self.default_ms is None:
            return []
        return [self.default, self.best]

    def give_back(self, schedule: Schedule) -> None:
        """Its device went away: it comes first again."""
        self._under_way.discard(_line(schedule))
        self._again.append(schedule)

    def propose(self, count: int, model: CostModel) -> list[Schedule]:
        """Up to `count` schedules that were never tried; fewer, or none, where the space comes to its end."""
        # Chance depends on what was tried, not on how often this process was asked: a resumed session goes on alike.
        self._generator = random.Random(f"{self.seed} {self.trials} {self.task.key}")
        chosen = self._take(self._again, count)
        self._again = [schedule for schedule in self._again if schedule not in chosen]
        if not self._costs and len(chosen) < count:
            chosen += self._first(count - len(chosen), model)
        if len(chosen) < count:
            chosen += self._guided(count - len(chosen), model)
        return chosen

    def _first(self, count: int, model: CostModel) -> list[Schedule]:
        """The schedule of an untuned compilation, what the analytic model likes best, and random ones."""
        listed = sorted(self.space.listed, key=lambda s: float(model.costs(self.task.op, [s])[0]))
        chosen = self._take([self.default, *listed[:_LISTED_FIRST]], max(1, count // 2))
        return chosen + self._take(self._random(), count - len(chosen))

    def _guided(self, count: int, model: CostModel) -> list[Schedule]:
        pool = self._pool()
        if not pool:
            return []
        order = [pool[index] for index in np.argsort(model.costs(self.task.op, pool), kind="stable")]
        chance = sum(self._generator.random() < EPSILON for _ in range(count))
        chosen = self._take(order, count - chance)
        chosen += self._take(self._random(), chance)
        return chosen + self._take(order, count - len(chosen))

    def _pool(self) -> list[Schedule]:
        """Untried schedules: all of a small space, else neighbours of the best ones, listed ones and random ones."""
        if self.space.size() <= _SMALL_SPACE:
            return self._new(self.space.everything())
        successes = [(cost, line) for line, (_, cost) in self._costs.items() if cost is not None]
        pool: dict[str, Schedule] = {}
        for _, line in sorted(successes)[:_PARENTS]:
            near = self._new(self.space.neighbours(self._costs[line][0], self._generator))
            pool.update({_line(schedule): schedule for schedule in near[:_NEIGHBOURS]})
        pool.update({_line(schedule): schedule for schedule in self._new(self.space.listed)})
        for schedule in self._random():
            pool[_line(schedule)] = schedule
            if len(pool) >= _POOL:
                break
        return list(pool.values())

    def _random(self) -> Iterable[Schedule]:
        for _ in range(20 * _POOL):
            schedule = self.space.sample(self._generator)
            if schedule is not None and self._is_new(schedule):
                yield schedule

    def _take(self, schedules: Iterable[Schedule], count: int) -> list[Schedule]:
        """The first `count` new ones, which are under way from now on."""
        taken: list[Schedule] = []
        if count <= 0:
            return taken
        for schedule in schedules:
            if self._is_new(schedule):
                self._under_way.add(_line(schedule))
                taken.append(schedule)
                if len(taken) == count:
                    break
        return taken

    def _new(self, schedules: Iterable[Schedule]) -> list[Schedule]:
        return [schedule for schedule in schedules if self._is_new(schedule)]

    def _is_new(self, schedule: Schedule) -> bool:
        line = _line(schedule)
        return line not in self._costs and line not in self._under_way


def _line(schedule: Schedule) -> str:
    return schedule_line(describe_schedule(schedule))
