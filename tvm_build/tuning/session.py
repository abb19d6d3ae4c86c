"""A tuning session: trials spent where they save most, each on the disk before the next, resumed at any time."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from structadmm.progress import Reporter
from structadmm.progress import Task as Progress
from tvm_build.emit import emit_opencl
from tvm_build.gpu import Gpu
from tvm_build.kernels import Schedule, build_kernel
from tvm_build.precision import Precision
from tvm_build.tuning.budget import most_promising
from tvm_build.tuning.candidate_bundle import write_candidate_bundle
from tvm_build.tuning.cost_model import CostModel
from tvm_build.tuning.database import DatabaseWriter, TrialRecord, class_of_weights, decisive, open_database, record_of
from tvm_build.tuning.expected import TaskData, task_data
from tvm_build.tuning.forms import NEVER, Forms
from tvm_build.tuning.measurer import CandidateOutcome, DeviceFacts, Measurer
from tvm_build.tuning.schedules import describe_schedule, read_schedule, schedule_line
from tvm_build.tuning.search import TaskSearch
from tvm_build.tuning.task_key import describe_operator
from tvm_build.tuning.tasks import Task

MAX_LOSSES = 3
"""A candidate during which the device went away so often is taken to be the reason."""

REPEATS = 3
"""Trials of finalists that settle which is faster."""

_BATCH = 8
_CURVE = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class TaskResult:
    """What is known about one task in the end.

    Attributes:
        task: which.
        trials: in the database, earlier sessions' included.
        default_ms: with the schedule of an untuned compilation; None if it did not work.
        best_ms: with the best one; None if nothing worked.
        best: that schedule.
    """

    task: Task
    trials: int
    default_ms: float | None
    best_ms: float | None
    best: Schedule | None


@dataclass(frozen=True)
class LayerResult:
    """What is known about identical layers.

    Attributes:
        layers: their names.
        untuned_ms: milliseconds of one of them as a compilation without a database computes it; None without a time.
        forms_ms: and in each form whose tasks all have a time, with their best schedules.
    """

    layers: tuple[str, ...]
    untuned_ms: float | None
    forms_ms: Mapping[str, float]

    @property
    def form(self) -> str | None:
        """The fastest; None if none has a time."""
        return min(self.forms_ms, key=lambda form: self.forms_ms[form], default=None)


@dataclass(frozen=True)
class SessionResult:
    """What came out of a session.

    Attributes:
        device: where it ran.
        tasks: the most expensive first.
        known_trials: of these tasks on this device, from earlier sessions.
        new_trials: of this one.
        statuses: how many of the new ones ended how.
        curve_ms: sum over all layers after each trial since every layer has a time, earlier sessions' included.
        default_ms: sum over all layers, as a compilation without a database computes them; None while one of them has
            no time.
        layers: each group of identical layers, and what it takes in each form.
    """

    device: DeviceFacts
    tasks: tuple[TaskResult, ...]
    known_trials: int
    new_trials: int
    statuses: dict[str, int]
    curve_ms: tuple[float, ...]
    default_ms: float | None
    layers: tuple[LayerResult, ...]


def run_session(
    tasks: Sequence[Task],
    database: Path,
    measurer: Measurer,
    *,
    gpu: Gpu,
    precision: Precision,
    trials: int,
    reporter: Reporter,
    seed: int = 0,
    network_bytes: int = 0,
    repeats: int = 1,
    runs: int | None = None,
) -> SessionResult:
    """Tune until the database holds `trials` trials of these tasks, or nothing is left to try.

    Machines have slow minutes, in which whatever is measured loses against what was measured before. In the end each
    task's fastest schedule and its untuned one are therefore tried again, in turns.

    Args:
        tasks: of `extract_tasks`.
        database: made if it is absent, continued if it is there; each trial is on the disk when it has ended.
        measurer: where candidates run.
        gpu: what kernels are built for.
        precision: of the kernels.
        trials: in all sessions together, so that the same command finishes what was interrupted; those for networks of
            another `class_of_weights` are not among them.
        reporter: hears the best time so far.
        seed: of the search's chances.
        network_bytes: weights of the whole network, of which all but the candidate's own are read between its runs.
        repeats: how often a task's fastest schedule and its untuned one are tried in one session, where the former was
            not tried so often in an earlier one; they count as one trial.
        runs: of each candidate, for the record.

    Raises:
        UserError: the database is malformed or in use, or no device is left; what has ended until then is kept.
    """
    device = measurer.device_facts()
    with (
        open_database(database) as (records, writer),
        tempfile.TemporaryDirectory(prefix="structadmm-tune-") as scratch,
    ):
        session = _Session(
            gpu=gpu,
            precision=precision,
            measurer=measurer,
            device=device,
            writer=writer,
            searches=[TaskSearch(task, gpu, precision, seed) for task in tasks],
            forms=Forms(tasks, gpu),
            model=CostModel(gpu, precision, seed),
            scratch=Path(scratch),
            network_bytes=network_bytes,
            runs=runs,
        )
        known = session.resume(records)
        with reporter.task("tuning", total=trials) as progress:
            progress.advance(min(known, trials), note=session.note())
            done = known
            while done < trials:
                batch = session.propose(trials - done)
                if not batch:
                    reporter.say(f"every schedule of every layer has been tried, after {done} trials")
                    break
                done += session.run(batch, progress)
        session.confirm(repeats, reporter)
        return session.result(known, done - known)


@dataclass(frozen=True)
class _Candidate:
    search: TaskSearch
    schedule: Schedule

    @property
    def identity(self) -> str:
        return self.search.task.key + schedule_line(describe_schedule(self.schedule))


@dataclass
class _Session:
    gpu: Gpu
    precision: Precision
    measurer: Measurer
    device: DeviceFacts
    writer: DatabaseWriter
    searches: list[TaskSearch]
    forms: Forms
    model: CostModel
    scratch: Path
    network_bytes: int
    runs: int | None
    data: dict[str, TaskData] = field(default_factory=dict)
    losses: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    curve_ms: list[float] = field(default_factory=list)
    exhausted: set[str] = field(default_factory=set)
    recorded: int = 0
    trials: dict[str, TrialRecord] = field(default_factory=dict)
    # How often earlier sessions tried a candidate, and how often this one tried it again.
    tried_before: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)

    def resume(self, records: Sequence[TrialRecord]) -> int:
        """Learn what earlier sessions found on this device; returns the number of their trials of these tasks."""
        by_key = {search.task.key: search for search in self.searches}
        context = (self.device.key, self.gpu.name, self.precision.name)
        comparable = (None, class_of_weights(self.network_bytes))
        for record in records:
            right = record.identity[:3] == context and not record.contest and record.weight_class in comparable
            if right and record.task_key in by_key:
                self.tried_before[self._take(record)] += 1
        for record in self.trials.values():
            self._learn(by_key[record.task_key], read_schedule(record.schedule), record.cost_ms)
        return len(self.trials)

    def propose(self, trials: int) -> list[_Candidate]:
        """The next round: some of one task, and of further ones until every worker has something to do."""
        wanted = min(trials, max(_BATCH, 2 * self.measurer.workers()))
        batch: list[_Candidate] = []
        searches = [search for search in self.searches if search.task.key not in self.exhausted]
        hopeless = {search.task.key for search in self.searches if search.is_hopeless}
        while searches and len(batch) < wanted:
            search = most_promising(searches, self.forms, self._task_ms(), hopeless)
            searches.remove(search)
            found = search.propose(min(_BATCH, wanted - len(batch)), self.model)
            if not found:
                self.exhausted.add(search.task.key)
            batch += [_Candidate(search, schedule) for schedule in found]
        return batch

    def run(self, batch: Sequence[_Candidate], progress: Progress) -> int:
        """Try a batch; returns how many trials of it are in the database now."""
        before = self.recorded
        sent: list[tuple[_Candidate, Path]] = []
        for position, outcome in self.measurer.measure(self._bundles(batch, sent, progress)):
            candidate, bundle = sent[position]
            self._ended(candidate, outcome, progress)
            shutil.rmtree(bundle)
        return self.recorded - before

    def confirm(self, repeats: int, reporter: Reporter) -> None:
        """Try finalists in turns until each was tried `repeats` times; a loser's place is taken by the next fastest.

        What an earlier session tried counts for nothing, it may have been in another minute; but a schedule that has
        won there, and still is the fastest, needs no confirmation.
        """
        while batch := [candidate for search in self.searches for candidate in self._unconfirmed(search, repeats)]:
            with reporter.task("confirming", total=len(batch)) as progress:
                self.run(batch, progress)

    def _unconfirmed(self, search: TaskSearch, repeats: int) -> list[_Candidate]:
        finalists = [_Candidate(search, schedule) for schedule in search.finalists()]
        if finalists and self.tried_before[finalists[-1].identity] >= repeats:
            return []
        return [candidate for candidate in finalists if self.repeated[candidate.identity] < repeats - 1]

    def _bundles(
        self, batch: Sequence[_Candidate], sent: list[tuple[_Candidate, Path]], progress: Progress
    ) -> Iterator[Path]:
        """The bundles of a batch; what cannot even be built has ended here."""
        for candidate in batch:
            bundle = self.scratch / f"{self.recorded}-{len(sent)}.clbundle"
            try:
                self._build(candidate, bundle)
            except Exception as error:  # a schedule that trips our kernels or TVM is one bad trial, whatever it raises
                message = " ".join(f"{type(error).__name__}: {error}".split())[:500]
                self._ended(candidate, CandidateOutcome(status="build_failed", message=message), progress)
                continue
            sent.append((candidate, bundle))
            yield bundle

    def _build(self, candidate: _Candidate, bundle: Path) -> None:
        task = candidate.search.task
        if task.key not in self.data:
            self.data[task.key] = task_data(task.op)
        data = self.data[task.key]
        built = build_kernel(task.op, data.constants, self.gpu, candidate.schedule, self.precision)
        kernel = emit_opencl(built.func)
        write_candidate_bundle(
            bundle, built, kernel, data, self.gpu.name, self.precision, network_bytes=self.network_bytes
        )

    def _ended(self, candidate: _Candidate, outcome: CandidateOutcome, progress: Progress) -> None:
        if outcome.status == "lost":
            self.losses[candidate.identity] += 1
            if self.losses[candidate.identity] < MAX_LOSSES:
                if candidate.identity not in self.trials:
                    candidate.search.give_back(candidate.schedule)
                return
            message = f"the device went away {MAX_LOSSES} times while it ran; {outcome.message}"
            outcome = outcome.model_copy(update={"status": "crashed", "message": message})
        record = record_of(
            outcome,
            device=self.device,
            target=self.gpu.name,
            dtype=self.precision.name,
            task=describe_operator(candidate.search.task.op),
            schedule=describe_schedule(candidate.schedule),
            network_bytes=self.network_bytes,
            runs=self.runs,
        )
        self.writer.append(record)
        self.recorded += 1
        is_first = candidate.identity not in self.trials
        self._take(record)
        if is_first:
            self.statuses[record.status] += 1
            self._learn(candidate.search, candidate.schedule, record.cost_ms)
        else:
            self.repeated[candidate.identity] += 1
            candidate.search.correct(candidate.schedule, self.trials[candidate.identity].cost_ms)
        progress.advance(note=self.note())

    def _take(self, record: TrialRecord) -> str:
        """Keep a record, or what it says together with those of the same trial; returns the candidate's identity."""
        identity = record.task_key + schedule_line(record.schedule)
        known = self.trials.get(identity)
        self.trials[identity] = record if known is None else decisive(known, record)
        return identity

    def _learn(self, search: TaskSearch, schedule: Schedule, cost_ms: float | None) -> None:
        search.record(schedule, cost_ms)
        self.model.learn(search.task.op, schedule, cost_ms)
        total = self._total_ms()
        if total is not None:
            self.curve_ms.append(total)

    def _total_ms(self) -> float | None:
        """Sum over all layers, each in its fastest form with its best schedules; None while a layer has no time."""
        return self.forms.total_ms(self._task_ms())

    def _task_ms(self) -> dict[str, float]:
        return {search.task.key: search.best_ms for search in self.searches}

    def note(self) -> str:
        """The best time so far, and how it sank."""
        if not self.curve_ms:
            return ""
        now, first = self.curve_ms[-1], self.curve_ms[0]
        failed = sum(count for status, count in self.statuses.items() if status != "ok")
        return f"{curve(self.curve_ms)} layers {now:.3f} ms, at first {first:.3f}; {failed} failed"

    def result(self, known: int, new: int) -> SessionResult:
        """What the command shows."""
        results = [
            TaskResult(
                task=search.task,
                trials=search.trials,
                default_ms=search.default_ms,
                best_ms=None if search.best is None else search.best_ms,
                best=search.best,
            )
            for search in self.searches
        ]
        default_ms = {search.task.key: search.default_ms or NEVER for search in self.searches}
        layers = []
        for group in self.forms.groups:
            times = self.forms.times_ms(group, self._task_ms())
            names = self.forms.layers(group)
            untuned_ms = self.forms.untuned_layer_ms(group, default_ms)
            forms_ms = {form: ms for form, ms in times.items() if ms != NEVER}
            layers.append(LayerResult(names, None if untuned_ms == NEVER else untuned_ms, forms_ms))
        return SessionResult(
            device=self.device,
            tasks=tuple(results),
            known_trials=known,
            new_trials=new,
            statuses=dict(self.statuses),
            curve_ms=tuple(self.curve_ms),
            default_ms=self.forms.untuned_ms(default_ms),
            layers=tuple(layers),
        )


def curve(values: Sequence[float], width: int = 12) -> str:
    """A falling series as a line of blocks, its last value at the right."""
    points = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    low, high = min(points), max(points)
    span = high - low or 1.0
    return "".join(_CURVE[round((point - low) / span * (len(_CURVE) - 2)) + 1] for point in points)
