"""A measurer that runs nothing: every candidate takes a time that follows from its source, or fails as told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tvm_build.gpu import gpu_by_name
from tvm_build.ops import Dense, Operator
from tvm_build.precision import FLOAT32
from tvm_build.tuning.measurer import CandidateOutcome, CandidateTimes, DeviceFacts
from tvm_build.tuning.task_key import operator_key
from tvm_build.tuning.tasks import Task, Use
from tvm_build.winograd import DIRECT

GPU = gpu_by_name("adreno-640")
PRECISION = FLOAT32
FACTS = DeviceFacts(
    gpu="adreno-640",
    driver_family="qualcomm E031.37",
    driver="OpenCL 2.0 QUALCOMM build: ... Compiler E031.37.12.01",
    kind="phone",
    type="gpu",
    fp16=True,
)


def ok(ms: float) -> CandidateOutcome:
    return CandidateOutcome(status="ok", times=CandidateTimes(min_ms=ms, median_ms=ms, p90_ms=ms), device=FACTS.key)


def by_source(bundle: Path, number: int) -> CandidateOutcome:
    """Between 1 and 2 ms."""
    del number
    digest = hashlib.sha256((bundle / "kernels.cl").read_bytes()).digest()
    return ok(1 + int.from_bytes(digest[:4], "little") / 2**32)


class FakeMeasurer:
    def __init__(
        self,
        outcome: Callable[[Path, int], CandidateOutcome] = by_source,
        facts: DeviceFacts = FACTS,
        workers: int = 1,
        at_once: int = 1,
    ) -> None:
        self.tried = 0
        self._outcome = outcome
        self._facts = facts
        self._workers = workers
        self._at_once = at_once

    def device_facts(self) -> DeviceFacts:
        return self._facts

    def workers(self) -> int:
        return self._workers

    def measure(self, bundles: Iterable[Path]) -> Iterator[tuple[int, CandidateOutcome]]:
        """`at_once` of them are under way, and the last to start ends first."""
        waiting: list[tuple[int, Path]] = []
        for position, bundle in enumerate(bundles):
            waiting.append((position, bundle))
            while len(waiting) >= self._at_once:
                yield self._end(waiting)
        while waiting:
            yield self._end(waiting)

    def _end(self, waiting: list[tuple[int, Path]]) -> tuple[int, CandidateOutcome]:
        position, bundle = waiting.pop()
        self.tried += 1
        return position, self._outcome(bundle, self.tried)

    def close(self) -> None:
        pass


def task(op: Operator, *layers: str, group: str = "") -> Task:
    layers = layers or ("layer",)
    return Task(op, layers, (Use(group or operator_key(op), DIRECT, layers, untuned=True),), 10.0)


def dense_tasks() -> list[Task]:
    """Kernels that build in milliseconds; each has some dozens of schedules."""
    return [task(Dense(1, 128, 40), "fc1"), task(Dense(1, 64, 24, activation="relu"), "fc2", "fc3")]
