"""Finalists compared where they will run: in the network, taking turns, by the device's clock.

A candidate that is measured alone meets caches, clocks and neighbours other than in an inference, and at another time
than its rivals. So whole networks are compiled that differ in their layers' schedules and forms, and profiled in turns;
what each launch takes in them is what its schedule takes. A layer then follows what was fastest here
(`tvm_build.tuning.tuned`), whichever network that was part of.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from structadmm.errors import InvariantError, StructadmmError
from structadmm.progress import Reporter
from tvm_build.compile import compile_onnx
from tvm_build.gpu import Gpu
from tvm_build.kernels import Schedule
from tvm_build.lowered import KernelLaunch
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, WinogradInput, WinogradOutput
from tvm_build.precision import Precision
from tvm_build.tuning.contenders import contenders
from tvm_build.tuning.database import UNTUNED, TrialRecord, network_digest
from tvm_build.tuning.measurer import CandidateTimes, DeviceFacts
from tvm_build.tuning.schedules import describe_schedule, schedule_line
from tvm_build.tuning.task_key import describe_operator, operator_key

ROUNDS = 10
"""Turns of each network; a launch's time is the median over all of its runs."""

_TUNED = (Conv2d, Dense, GlobalAverage, WinogradInput, WinogradOutput)

Profile = Callable[[Path], Sequence[float]]
"""Median milliseconds of each launch of a bundle, in launch order, once its output was found right.

It raises a `StructadmmError` where the bundle fails.
"""


@dataclass(frozen=True)
class Contest:
    """What came out.

    Attributes:
        networks: that were compared to the end, the untuned one among them.
        records: for the database, one for each launch's task and schedule; none where there was nothing to compare.
        verdict: of the untuned network's launches, to be written instead where the network as a whole shows that
            nothing was gained: launches add up to more than their times.
    """

    networks: int
    records: tuple[TrialRecord, ...]
    verdict: tuple[TrialRecord, ...] = ()


@dataclass
class _Seen:
    op: Operator
    schedule: Schedule
    samples_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Entry:
    bundle: Path
    launches: tuple[KernelLaunch, ...]
    tasks: tuple[tuple[str, str] | None, ...]
    turns_ms: list[Sequence[float]] = field(default_factory=list)

    def take_turn(self, times_ms: Sequence[float]) -> None:
        if len(times_ms) != len(self.launches):
            raise InvariantError(f"{len(times_ms)} times of {len(self.launches)} launches")
        self.turns_ms.append(times_ms)

    def add_to(self, seen: dict[tuple[str, str], _Seen]) -> None:
        for task, launch, *samples_ms in zip(self.tasks, self.launches, *self.turns_ms, strict=True):
            if task is not None:
                assert launch.op is not None
                seen.setdefault(task, _Seen(launch.op, launch.schedule)).samples_ms.extend(samples_ms)


def hold_contest(
    network: Path,
    records: Sequence[TrialRecord],
    profile: Profile,
    *,
    source: str,
    device: DeviceFacts,
    gpu: Gpu,
    precision: Precision,
    scratch: Path,
    reporter: Reporter,
    fatal: tuple[type[Exception], ...] = (),
    rounds: int = ROUNDS,
) -> Contest:
    """Compile the contenders of a network, let them take turns, and make records of their launches.

    A contender that fails is left out, whatever it has shown before; where all of them fail, the untuned network wins.

    Args:
        network: an ONNX file.
        records: trials of this device, target and dtype, each once.
        profile: runs a bundle on the device.
        source: the database's name.
        device: goes into the records.
        gpu: what is compiled for.
        precision: of the kernels.
        scratch: where bundles are written.
        reporter: hears of the rounds.
        fatal: errors of `profile` that say nothing of a contender.
        rounds: turns of each network.

    Raises:
        UserError: the network cannot be compiled.
        StructadmmError: what `profile` raises of the untuned network, or if it is `fatal`.
    """
    entries = _entries(network, records, source, gpu, precision, scratch)
    if len(entries) == 1:
        return Contest(1, ())
    left = list(entries)
    with reporter.task("comparing in the network", total=rounds * len(entries)) as progress:
        for number in range(rounds):
            start = number % len(entries)  # nobody always follows the same one
            for entry in entries[start:] + entries[:start]:
                progress.advance()
                if entry not in left:
                    continue
                try:
                    times_ms = profile(entry.bundle)
                except StructadmmError as error:
                    if entry is entries[0] or isinstance(error, fatal):
                        raise
                    left.remove(entry)
                    reporter.say(f"one way to compile {network.name} is left out of the comparison: {error}")
                else:
                    entry.take_turn(times_ms)
    seen: dict[tuple[str, str], _Seen] = {}
    for entry in left:
        entry.add_to(seen)
    contest = f"{datetime.now(UTC).isoformat(timespec='seconds')} {network_digest(network)}"
    found = {task: _record(each, device, gpu, precision) for task, each in seen.items()}
    untuned = [found[task] for task in dict.fromkeys(entries[0].tasks) if task is not None]
    verdict = _of(contest + UNTUNED, untuned)
    return Contest(len(left), _of(contest, found.values()) if len(left) > 1 else verdict, verdict)


def _of(contest: str, records: Collection[TrialRecord]) -> tuple[TrialRecord, ...]:
    update = {"contest": contest, "contest_lines": len(records)}
    return tuple(record.model_copy(update=update) for record in records)


def _entries(
    network: Path, records: Sequence[TrialRecord], source: str, gpu: Gpu, precision: Precision, scratch: Path
) -> list[_Entry]:
    """The untuned network and the contenders, each of those that are alike once."""
    entries: dict[tuple[tuple[str, str] | None, ...], _Entry] = {}
    for number, tuned in enumerate((None, *contenders(records, source, gpu, precision))):
        bundle = scratch / f"contender{number}.clbundle"
        summary = compile_onnx(network, bundle, target=gpu.name, dtype=precision.name, tuned=tuned)
        entry = _Entry(bundle, summary.lowered, tuple(map(_task, summary.lowered)))
        entries.setdefault(entry.tasks, entry)
    return list(entries.values())


def _task(launch: KernelLaunch) -> tuple[str, str] | None:
    """Key of the task and line of the schedule; None for what a session does not tune."""
    if not isinstance(launch.op, _TUNED):
        return None
    return operator_key(launch.op), schedule_line(describe_schedule(launch.schedule))


def _record(seen: _Seen, device: DeviceFacts, gpu: Gpu, precision: Precision) -> TrialRecord:
    samples = sorted(seen.samples_ms)
    return TrialRecord(
        device=device,
        target=gpu.name,
        dtype=precision.name,
        task=describe_operator(seen.op),
        schedule=describe_schedule(seen.schedule),
        status="ok",
        times=CandidateTimes(
            min_ms=samples[0],
            median_ms=statistics.median(samples),
            p90_ms=samples[min(len(samples) - 1, round(0.9 * (len(samples) - 1)))],
        ),
    )
