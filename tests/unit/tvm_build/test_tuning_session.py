from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tvm_build.tuning.session
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.unit.tvm_build.fake_measurer import (
    GPU,
    PRECISION,
    FakeMeasurer,
    by_source,
    dense_tasks,
    ok,
    task,
)
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import Schedule, build_kernel, candidates, default_schedule
from tvm_build.ops import Conv2d, Dense, Operator
from tvm_build.tuning.candidate_bundle import write_candidate_bundle
from tvm_build.tuning.cost_model import CostModel, Floats
from tvm_build.tuning.database import TrialRecord, read_database
from tvm_build.tuning.expected import task_data
from tvm_build.tuning.measurer import CandidateOutcome, Measurer
from tvm_build.tuning.schedules import describe_schedule, read_schedule
from tvm_build.tuning.search import TaskSearch
from tvm_build.tuning.session import MAX_LOSSES, SessionResult, curve, run_session
from tvm_build.tuning.space import space
from tvm_build.tuning.tasks import Task
from tvm_build.winograd import parts

PATIENCE_S = 120.0


def run(
    database: Path,
    measurer: Measurer,
    trials: int,
    tasks: list[Task] | None = None,
    seed: int = 0,
    repeats: int = 1,
    network_bytes: int = 0,
) -> SessionResult:
    return run_session(
        tasks or dense_tasks(),
        database,
        measurer,
        gpu=GPU,
        precision=PRECISION,
        trials=trials,
        reporter=SilentReporter(),
        seed=seed,
        network_bytes=network_bytes,
        repeats=repeats,
        runs=15,
    )


def content(path: Path) -> list[TrialRecord]:
    return read_database(path)


def test_no_candidate_is_tried_twice_and_every_layer_starts_with_its_untuned_schedule(tmp_path: Path) -> None:
    result = run(tmp_path / "db.jsonl", FakeMeasurer(), 48)
    records = content(tmp_path / "db.jsonl")
    assert len(records) == result.new_trials == 48
    assert len({record.identity for record in records}) == 48
    for item in dense_tasks():
        first = next(record for record in records if record.task_key == item.key)
        assert read_schedule(first.schedule) == default_schedule(item.op, GPU, PRECISION)
    assert result.default_ms is not None
    assert result.curve_ms[-1] <= result.default_ms
    assert list(result.curve_ms) == sorted(result.curve_ms, reverse=True)


def test_a_session_in_parts_is_the_same_as_one_without_interruption(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    at_once = run(whole, FakeMeasurer(), 40)
    run(parts, FakeMeasurer(), 16)
    resumed = run(parts, FakeMeasurer(), 40)
    assert content(parts) == content(whole)
    assert (resumed.known_trials, resumed.new_trials) == (16, 24)
    assert resumed.curve_ms == at_once.curve_ms
    assert resumed.tasks == at_once.tasks


def test_a_finished_session_tries_nothing_more(tmp_path: Path) -> None:
    run(tmp_path / "db.jsonl", FakeMeasurer(), 16)
    again = FakeMeasurer()
    assert run(tmp_path / "db.jsonl", again, 16).new_trials == 0
    assert again.tried == 0


def test_trials_of_another_device_are_left_alone_and_not_counted(tmp_path: Path) -> None:
    run(tmp_path / "db.jsonl", FakeMeasurer(), 8)
    facts = FakeMeasurer().device_facts().model_copy(update={"driver_family": "qualcomm E031.40"})
    result = run(tmp_path / "db.jsonl", FakeMeasurer(facts=facts), 8)
    assert (result.known_trials, result.new_trials) == (0, 8)
    families = Counter(record.device.driver_family for record in content(tmp_path / "db.jsonl"))
    assert set(families.values()) == {8}


def test_trials_in_another_number_type_are_left_alone_and_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    run(path, FakeMeasurer(), 8)
    halves = [record.model_copy(update={"dtype": "float16"}) for record in content(path)]
    path.write_bytes(b"".join(record.line() for record in halves))
    result = run(path, FakeMeasurer(), 8)
    assert (result.known_trials, result.new_trials) == (0, 8)
    assert content(path)[:8] == halves


def test_the_curve_ends_with_the_sum_over_all_layers_identical_ones_included(tmp_path: Path) -> None:
    result = run(tmp_path / "db.jsonl", FakeMeasurer(), 32)
    best_ms = {found.task.layers: found.best_ms or 0.0 for found in result.tasks}
    assert set(best_ms) == {("fc1",), ("fc2", "fc3")}
    assert result.curve_ms[-1] == pytest.approx(best_ms["fc1",] + 2 * best_ms["fc2", "fc3"], rel=1e-12)


class Finals:
    """The untuned schedule of a small space looks slow at first, and another one does not stand a second trial."""

    def __init__(self, default_ms: float = 0.5, again: CandidateOutcome | None = None) -> None:
        self.first: bytes | None = None
        self._default_ms = default_ms
        self._again = again
        self._fastest: bytes | None = None

    def __call__(self, bundle: Path, number: int) -> CandidateOutcome:
        source = (bundle / "kernels.cl").read_bytes()
        if number == 1:
            self.first = source
            return ok(9.0)
        if source == self.first:
            return ok(self._default_ms)
        if number == 4:
            self._fastest = source
            return ok(0.9)
        if source == self._fastest and self._again is not None:
            return self._again
        return by_source(bundle, number)


SMALL = Dense(1, 32, 16)


def repetitions(database: Path) -> list[int]:
    return sorted(Counter(record.identity for record in content(database)).values())


def test_a_schedule_that_won_in_a_slow_minute_gives_way_to_the_untuned_one(tmp_path: Path) -> None:
    outcome = Finals()
    result = run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 12, [task(SMALL)], repeats=3)
    (found,) = result.tasks
    assert found.best == default_schedule(SMALL, GPU, PRECISION)
    assert (found.best_ms, found.default_ms, result.default_ms) == (0.5, 0.5, 0.5)
    assert (found.trials, result.new_trials, sum(result.statuses.values())) == (12, 12, 12)
    # Both were tried once more; that settled it.
    assert repetitions(tmp_path / "db.jsonl") == [1] * 10 + [2, 2]


def test_finalists_are_tried_as_often_as_told_and_not_again_by_the_next_session(tmp_path: Path) -> None:
    outcome = Finals(default_ms=1.0)
    first = run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 12, [task(SMALL)], repeats=3)
    assert (first.tasks[0].best_ms, first.tasks[0].default_ms) == (0.9, 1.0)
    assert repetitions(tmp_path / "db.jsonl") == [1] * 10 + [3, 3]
    again = FakeMeasurer(outcome)
    resumed = run(tmp_path / "db.jsonl", again, 12, [task(SMALL)], repeats=3)
    assert (again.tried, resumed.known_trials, resumed.new_trials) == (0, 12, 0)
    assert resumed.tasks == first.tasks


def test_an_untuned_schedule_of_a_slow_minute_is_tried_again_against_what_a_later_session_finds(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    finals = Finals(default_ms=9.0)
    slow = run(path, FakeMeasurer(finals), 12, [task(SMALL)], repeats=3).tasks[0]
    assert (slow.best_ms, slow.default_ms, repetitions(path)) == (0.9, 9.0, [1] * 10 + [3, 3])

    def faster(bundle: Path, number: int) -> CandidateOutcome:
        return ok(0.25 if (bundle / "kernels.cl").read_bytes() == finals.first else 0.5)

    found = run(path, FakeMeasurer(faster), 16, [task(SMALL)], repeats=3).tasks[0]
    assert (found.best, found.best_ms) == (default_schedule(SMALL, GPU, PRECISION), 0.25)
    # Nothing is new to the session after that.
    again = FakeMeasurer()
    run(path, again, 16, [task(SMALL)], repeats=3)
    assert again.tried == 0


@pytest.mark.parametrize("status", ["wrong", "crashed"])
def test_a_finalist_that_fails_is_replaced_by_the_next(tmp_path: Path, status: str) -> None:
    outcome = Finals(again=CandidateOutcome(status=status, message="why"), default_ms=8.0)  # type: ignore[arg-type]
    result = run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 12, [task(SMALL)], repeats=2)
    records = content(tmp_path / "db.jsonl")
    best = result.tasks[0].best
    assert best is not None
    tries = [record.status for record in records if read_schedule(record.schedule) == best]
    assert (tries, 1.0 <= result.tasks[0].best_ms < 2.0) == (["ok", "ok"], True)
    assert Counter(record.status for record in records) == {"ok": 12 + 2, status: 1}


def test_a_space_that_comes_to_its_end_ends_the_session(tmp_path: Path) -> None:
    tasks = [task(Dense(1, 8, 4))]
    result = run(tmp_path / "db.jsonl", FakeMeasurer(), 1000, tasks)
    everything = set(map(str, space(tasks[0].op, GPU).everything()))
    assert {str(read_schedule(record.schedule)) for record in content(tmp_path / "db.jsonl")} == everything
    assert result.new_trials == len(everything)


def test_the_best_of_a_small_space_is_found_whatever_fails(tmp_path: Path) -> None:
    def outcome(bundle: Path, number: int) -> CandidateOutcome:
        bad = ("wrong", "crashed", "timed_out", "build_failed")
        return by_source(bundle, number) if number % 2 else CandidateOutcome(status=bad[number // 2 % 4], message="why")  # type: ignore[arg-type]

    result = run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 1000, [task(Dense(1, 32, 16))])
    costs = [record.cost_ms for record in content(tmp_path / "db.jsonl") if record.cost_ms is not None]
    assert result.tasks[0].best_ms == min(costs)
    assert set(result.statuses) == {"ok", "wrong", "crashed", "timed_out", "build_failed"}


def test_many_workers_that_end_out_of_order_lose_nothing(tmp_path: Path) -> None:
    result = run(tmp_path / "db.jsonl", FakeMeasurer(workers=6, at_once=5), 48)
    records = content(tmp_path / "db.jsonl")
    assert result.new_trials == len(records) == len({record.identity for record in records}) == 48
    by_schedule = {(record.task_key, str(record.schedule)): record.cost_ms for record in records}
    alone = tmp_path / "alone.jsonl"
    run(alone, FakeMeasurer(), 48)
    common = [record for record in content(alone) if (record.task_key, str(record.schedule)) in by_schedule]
    assert len(common) > 10
    assert all(by_schedule[record.task_key, str(record.schedule)] == record.cost_ms for record in common)


def test_a_candidate_whose_device_went_away_is_tried_again(tmp_path: Path) -> None:
    def outcome(bundle: Path, number: int) -> CandidateOutcome:
        return CandidateOutcome(status="lost", message="gone") if number in (3, 4, 9) else by_source(bundle, number)

    result = run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 1000, [task(Dense(1, 32, 16))])
    assert result.statuses == {"ok": len(list(space(Dense(1, 32, 16), GPU).everything()))}


def test_a_candidate_that_takes_the_device_away_every_time_is_its_fault_in_the_end(tmp_path: Path) -> None:
    guilty: list[bytes] = []

    def outcome(bundle: Path, number: int) -> CandidateOutcome:
        source = (bundle / "kernels.cl").read_bytes()
        guilty.extend([source] if number == 2 else [])
        return CandidateOutcome(status="lost", message="gone") if source in guilty else by_source(bundle, number)

    measurer = FakeMeasurer(outcome)
    result = run(tmp_path / "db.jsonl", measurer, 1000, [task(Dense(1, 32, 16))])
    assert result.statuses["crashed"] == 1
    assert measurer.tried == result.new_trials + MAX_LOSSES - 1
    (record,) = (record for record in content(tmp_path / "db.jsonl") if record.status == "crashed")
    assert "went away 3 times" in record.message


def test_when_no_device_is_left_the_session_ends_and_keeps_what_it_has(tmp_path: Path) -> None:
    def outcome(bundle: Path, number: int) -> CandidateOutcome:
        if number == 11:
            raise UserError("no device is left")
        return by_source(bundle, number)

    with pytest.raises(UserError, match="no device is left"):
        run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 48)
    assert len(content(tmp_path / "db.jsonl")) == 10


def test_an_interrupt_keeps_everything(tmp_path: Path) -> None:
    def outcome(bundle: Path, number: int) -> CandidateOutcome:
        if number == 6:
            raise KeyboardInterrupt
        return by_source(bundle, number)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "db.jsonl", FakeMeasurer(outcome), 48)
    assert len(content(tmp_path / "db.jsonl")) == 5
    assert run(tmp_path / "db.jsonl", FakeMeasurer(), 48).new_trials == 43


def test_sigkill_loses_the_trial_in_flight_and_a_restart_continues(tmp_path: Path) -> None:
    database = tmp_path / "db.jsonl"
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tests.unit.tvm_build import fake_measurer as fake
        from tests.unit.tvm_build.test_tuning_session import run

        def outcome(bundle, number):
            if number == 13:
                time.sleep(3600)
            return fake.by_source(bundle, number)

        run(Path(sys.argv[1]), fake.FakeMeasurer(outcome), 32)
    """)
    process = subprocess.Popen([sys.executable, "-c", script, str(database)])
    deadline = time.monotonic() + PATIENCE_S
    while not database.exists() or database.read_bytes().count(b"\n") < 12:
        assert time.monotonic() < deadline, "the session did not come as far as its twelfth trial"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = content(database)
    assert len(before) == 12
    result = run(database, FakeMeasurer(), 32)
    after = content(database)
    assert (result.known_trials, result.new_trials) == (12, 20)
    assert after[:12] == before
    assert len({record.identity for record in after}) == len(after) == 32


def test_the_search_finds_in_few_trials_what_the_cost_model_can_learn() -> None:
    """A landscape with one rule, fat tiles are fast, in a space of thousands: chance alone would not find its best."""
    cpu = gpu_by_name("opencl-cpu")
    op = Conv2d(1, 64, 16, 16, 64, (3, 3), padding=(1, 1, 1, 1))
    search = TaskSearch(task(op), cpu, PRECISION)
    model = CostModel(cpu, PRECISION)

    def cost_ms(schedule: object) -> float:
        fields = describe_schedule(schedule)
        cells = fields["pixels"] * fields["rows"] * fields["vectors"] * fields["lanes"]
        return 10.0 / cells + 0.01 * fields["split"] + 0.005 * fields["local"]

    generator = random.Random(1)
    drawn = [found for found in (search.space.sample(generator) for _ in range(4000)) if found is not None]
    lowest = min(map(cost_ms, drawn))
    while search.trials < 64:
        for schedule in search.propose(8, model):
            search.record(schedule, cost_ms(schedule))
            model.learn(op, schedule, cost_ms(schedule))
    assert search.best_ms <= 1.05 * lowest
    by_chance = float(np.median([min(map(cost_ms, generator.sample(drawn, 64))) for _ in range(50)]))
    assert search.best_ms < by_chance


def test_some_trials_are_left_to_chance() -> None:
    """Of a small space the model ranks all; 15 % of what is chosen is not what it likes best."""
    op = Dense(1, 128, 256)
    everything = list(space(op, GPU).everything())

    class Planted(CostModel):
        def costs(self, op: Operator, schedules: Sequence[Schedule]) -> Floats:
            return np.array([float(everything.index(schedule)) for schedule in schedules])

    model = Planted(GPU, PRECISION)
    by_chance = []
    for seed in range(8):
        search = TaskSearch(task(op), GPU, PRECISION, seed)
        search.record(everything[-1], 1.0)
        chosen = search.propose(16, model)
        assert len(set(chosen)) == 16
        by_chance.append(sum(schedule not in everything[:16] for schedule in chosen))
    assert 0.05 < sum(by_chance) / (8 * 16) < 0.25


def test_what_failed_is_taken_to_be_slow() -> None:
    op = Dense(1, 128, 256)
    model = CostModel(GPU, PRECISION)
    everything = list(space(op, GPU).everything())
    works = {schedule: schedule.split < 8 for schedule in everything}
    for number, schedule in enumerate(everything):
        model.learn(op, schedule, 1.0 + number % 3 / 10 if works[schedule] else None)
    costs = dict(zip(everything, model.costs(op, everything), strict=True))
    assert min(costs[each] for each in everything if not works[each]) > 2
    assert max(costs[each] for each in everything if works[each]) < 2


def test_candidates_are_built_for_a_network_of_the_given_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def write(*arguments: Any, network_bytes: int) -> None:
        given.append(network_bytes)
        write_candidate_bundle(*arguments, network_bytes=network_bytes)

    monkeypatch.setattr(tvm_build.tuning.session, "write_candidate_bundle", write)
    run(tmp_path / "db.jsonl", FakeMeasurer(), 8, network_bytes=1 << 20)
    assert given == [1 << 20] * 8


def test_trials_among_many_more_weights_are_left_alone_and_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "db.jsonl"
    run(path, FakeMeasurer(), 8, network_bytes=1 << 20)
    assert {(record.network_bytes, record.runs) for record in content(path)} == {(1 << 20, 15)}
    assert run(path, FakeMeasurer(), 8, network_bytes=(1 << 20) + 1).new_trials == 0
    other = run(path, FakeMeasurer(), 8, network_bytes=1 << 22)
    assert (other.known_trials, other.new_trials) == (0, 8)
    # A database of before trials said so is gone on with.
    old = [record.model_copy(update={"network_bytes": None, "runs": None}) for record in content(path)[:8]]
    path.write_bytes(b"".join(record.line() for record in old))
    assert run(path, FakeMeasurer(), 8, network_bytes=1 << 22).known_trials == 8


@pytest.mark.parametrize("target", ["opencl-cpu", "adreno-640"])
def test_whatever_the_space_offers_can_be_built(target: str) -> None:
    gpu = gpu_by_name(target)
    generator = random.Random(0)
    kept = tuple(column for column in range(8 * 9) if column % 3)
    for op in (
        Conv2d(1, 8, 5, 7, 10, (3, 3), padding=(1, 1, 1, 1), has_residual=True),
        Conv2d(1, 8, 6, 6, 12, (3, 3), padding=(1, 1, 1, 1), columns=kept),
        Conv2d(1, 8, 6, 6, 8, (3, 3), padding=(1, 1, 1, 1), groups=8),
        Dense(1, 40, 10, input_is_c4=True, pooled_pixels=4),
        *parts(Conv2d(1, 8, 8, 8, 10, (3, 3), padding=(1, 1, 1, 1), has_residual=True), 2).launches,
        *parts(Conv2d(1, 8, 6, 7, 10, (3, 3)), 4).launches,
    ):
        constants = task_data(op).constants
        wide = space(op, gpu)
        drawn = [found for found in (wide.sample(generator) for _ in range(2000)) if found is not None][:6]
        assert set(map(str, candidates(op, gpu))) <= {str(found) for found in wide.listed}
        assert drawn
        for schedule in drawn:
            assert build_kernel(op, constants, gpu, schedule).schedule == schedule
            assert read_schedule(json.loads(json.dumps(describe_schedule(schedule)))) == schedule


def test_schedules_of_another_version_are_named() -> None:
    described = describe_schedule(default_schedule(Dense(1, 8, 8), GPU))
    with pytest.raises(UserError, match="unknown schedule 'LaterSchedule'"):
        read_schedule(described | {"kind": "LaterSchedule"})
    with pytest.raises(UserError, match="no field 'swizzle'"):
        read_schedule(described | {"swizzle": 1})
    with pytest.raises(UserError, match="split"):
        read_schedule(described | {"split": "8"})


def test_the_curve_falls_from_left_to_right() -> None:
    assert curve([4.0, 3.0, 2.0, 1.0], width=4) == "█▆▃▁"
    assert curve([2.0], width=3) == "▁▁▁"
    assert ok(1.0).times is not None
