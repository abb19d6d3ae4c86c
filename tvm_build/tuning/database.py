"""The tuning database: JSON lines, one for each trial, appended and synced as trials end. docs/tuning.md describes it.

Every line stands for itself, so databases merge line by line, and a process that dies at any moment loses the trials in
flight: a line that was cut off at the end of the file is none.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from structadmm.errors import UserError
from structadmm.files import names_in_errors, sha256_file, write_bytes
from tvm_build.tuning.candidate_bundle import MAX_REST_BYTES
from tvm_build.tuning.measurer import CandidateOutcome, CandidateTimes, DeviceFacts
from tvm_build.tuning.schedules import read_schedule, schedule_line
from tvm_build.tuning.task_key import read_operator, task_line

SCHEMA = 1
UNTUNED = ", untuned"
"""Ends the name of a contest that the untuned network has won: its schedules and forms stay, whatever else is known."""

_DISTRUSTED = ("wrong", "crashed")


def network_digest(network: Path) -> str:
    """What a network is called in the names of its contests.

    Args:
        network: an ONNX file.
    """
    return sha256_file(network)[:12]


def class_of_weights(network_bytes: int) -> int:
    """The power of two that a network's weights are below, as far as they are read between a candidate's runs.

    What a launch takes depends on them, so times of one class alone can be held against each other.
    """
    return min(network_bytes, MAX_REST_BYTES).bit_length()


class TrialRecord(BaseModel):
    """One line.

    Attributes:
        schema_: 1 (`schema` in the file).
        device: where it ran.
        target: the GPU that kernels were built for.
        dtype: what they store and compute in.
        task: the operator, as `describe_operator` gives it.
        schedule: what was tried, as `describe_schedule` gives it.
        status: what became of it.
        times: of an "ok" one.
        message: of any other.
        contest: the comparison within a network that the times are from, its time and the network's digest; empty for a
            candidate that was measured by itself.
        contest_lines: how many lines that comparison has; a comparison with fewer of them was cut off and counts for
            nothing. None in databases of before this field, whose comparisons are whole.
        network_bytes: how many bytes of weights a candidate's network was taken to have, which decides what is read
            between its runs; None in a contest, and where it was not recorded.
        runs: of a candidate, behind its times; None likewise.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    device: DeviceFacts
    target: str
    dtype: str
    task: dict[str, Any]
    schedule: dict[str, Any]
    status: Literal["ok", "wrong", "build_failed", "crashed", "timed_out"]
    times: CandidateTimes | None = None
    message: str = ""
    contest: str = ""
    contest_lines: int | None = Field(default=None, ge=1)
    network_bytes: int | None = Field(default=None, ge=0)
    runs: int | None = Field(default=None, ge=1)

    @property
    def task_key(self) -> str:
        """Canonical line of the task."""
        return task_line(self.task)

    @property
    def identity(self) -> tuple[str, ...]:
        """What is tried once: device, target, dtype, task and schedule, in which contest if any, or among weights."""
        what = (self.target, self.dtype, self.task_key, schedule_line(self.schedule), self.contest)
        return (self.device.key, *what, str(self.weight_class))

    @property
    def weight_class(self) -> int | None:
        """`class_of_weights` of its network; None if that was not recorded."""
        return None if self.network_bytes is None else class_of_weights(self.network_bytes)

    @property
    def cost_ms(self) -> float | None:
        """What candidates are compared by.

        Alone it is the fastest run, since everything that disturbs makes one slower; those of a contest took turns, and
        what a network takes is the median.
        """
        if self.status != "ok" or self.times is None:
            return None
        return self.times.median_ms if self.contest else self.times.min_ms

    def line(self) -> bytes:
        """The record as it is written."""
        return (self.model_dump_json(by_alias=True, exclude_defaults=False) + "\n").encode()


def record_of(
    outcome: CandidateOutcome,
    *,
    device: DeviceFacts,
    target: str,
    dtype: str,
    task: dict[str, Any],
    schedule: dict[str, Any],
    network_bytes: int | None = None,
    runs: int | None = None,
) -> TrialRecord:
    """The record of an outcome that is not "lost"."""
    assert outcome.status != "lost"
    return TrialRecord(
        device=device,
        target=target,
        dtype=dtype,
        task=task,
        schedule=schedule,
        status=outcome.status,
        times=outcome.times,
        message=outcome.message,
        network_bytes=network_bytes,
        runs=runs,
    )


def read_database(path: Path) -> list[TrialRecord]:
    """All records, in the order in which they were written.

    Raises:
        UserError: there is no such file, or a line other than a torn last one is no record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such tuning database: make one with `structadmm tune --out`") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a tuning database") from None
    lines = data.split(b"\n")
    # What follows the last line's end is empty, or what a process that died had written of its last record.
    complete = lines[:-1]
    return [_read_line(path, number, line) for number, line in enumerate(complete, start=1) if line.strip()]


def _read_line(path: Path, number: int, line: bytes) -> TrialRecord:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: line {number} is no tuning record ({line[:40]!r}): remove the line, or give another database"
        )
    if value.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: line {number} has schema {value.get('schema')!r}, this version reads {SCHEMA}: tune again"
        )
    try:
        record = TrialRecord.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: line {number}: {place}: {first['msg']}: remove the line") from None
    if (record.times is None) == (record.status == "ok"):
        raise UserError(f"{path}: line {number}: status {record.status!r} contradicts its times: remove the line")
    try:
        read_operator(record.task)
        read_schedule(record.schedule)
    except UserError as error:
        raise UserError(f"{path}: line {number}: {error}: remove the line, or give another database") from None
    return record


def merge_databases(paths: Iterable[Path], out: Path) -> int:
    """Write the records of all databases into one, each trial once, and return the number of trials.

    A trial that is in several becomes one of `distinct_trials`; what was seen in contests goes along.

    Raises:
        UserError: a database is absent or malformed, none has a trial, or a session is writing `out`; nothing is
            written then.
    """
    paths = list(paths)
    with _locked(out) if out.exists() else nullcontext():
        merged = distinct_trials(record for path in paths for record in read_database(path))
        trials = sum(not record.contest for record in merged)
        if not trials:
            raise UserError(f"{', '.join(map(str, paths))}: no trial to merge: let `structadmm tune` run first")
        write_bytes(out, b"".join(record.line() for record in merged))
    return trials


def distinct_trials(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """One record for each trial, in the order of the first ones; of a trial that was repeated, what `decisive` says."""
    found: dict[tuple[str, ...], TrialRecord] = {}
    for record in records:
        known = found.get(record.identity)
        found[record.identity] = record if known is None else decisive(known, record)
    return list(found.values())


def usable_records(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """What compilation may follow: each trial once, and of contests those that are whole.

    A schedule that a trial found wrong, or that crashed, is taken from no other trial, and from no contest: that looks
    at one network's output alone.
    """
    distinct = distinct_trials(records)
    lines = Counter(map(_contest, distinct))
    distrusted = {each.identity[:5] for each in distinct if not each.contest and each.status in _DISTRUSTED}

    def counts(record: TrialRecord) -> bool:
        whole = lines[_contest(record)] >= (record.contest_lines or 0)
        return whole and (record.cost_ms is None or record.identity[:5] not in distrusted)

    return list(filter(counts, distinct))


def _contest(record: TrialRecord) -> tuple[str, ...]:
    return (*record.identity[:3], record.contest)


def decisive(known: TrialRecord, record: TrialRecord) -> TrialRecord:
    """Which of two results of one trial counts: what was wrong or crashed once is not trusted, else the fastest."""
    for found in (record, known):
        if found.status in _DISTRUSTED:
            return found
    if known.cost_ms is None:
        return record
    return known if record.cost_ms is None or record.cost_ms >= known.cost_ms else record


class DatabaseWriter:
    """Appends records; they are on the disk when `append` returns."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def append(self, *records: TrialRecord) -> None:
        """Write records, in one piece as far as the system lets it."""
        data = b"".join(record.line() for record in records)
        with names_in_errors(self._path):
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)


@contextmanager
def open_database(path: Path) -> Iterator[tuple[list[TrialRecord], DatabaseWriter]]:
    """The records that are there, and a writer; the file is made if it is absent, and nobody else may write meanwhile.

    Raises:
        UserError: the file is malformed, cannot be written, or another session writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, os.O_CREAT) as descriptor:
        records = read_database(path)
        _drop_torn_line(path, descriptor)
        yield records, DatabaseWriter(descriptor, path)


@contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor of the file that `path` names, which nobody else writes or replaces meanwhile."""
    descriptor = _lock(path, flags)
    while not _is_named(descriptor, path):  # merging has replaced the file between opening and locking
        os.close(descriptor)
        descriptor = _lock(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o666)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): give another --out") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UserError(f"another session is writing {path}: wait for it, or give another --out") from None
    return descriptor


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _drop_torn_line(path: Path, descriptor: int) -> None:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.ftruncate(descriptor, end)
        os.fsync(descriptor)
