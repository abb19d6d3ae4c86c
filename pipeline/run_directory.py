"""A run directory: stages that are whole or absent, done once, and known by what they were made from.

`RUN/STAGE/` exists only when the stage finished. While it works it writes into `RUN/.STAGE.partial/`, which is renamed
at the end, so that a process killed at any instruction leaves a directory that the next run completes.
`RUN/STAGE/stage.json` records the inputs (configuration section, content of the files that it names and of the stages
before, versions) and the SHA-256 of every file: same inputs, same files, nothing to do.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structadmm.errors import UserError
from structadmm.files import read_json, sha256_file, write_json

RECORD = "stage.json"
SCHEMA = 1


GoesOn = Callable[[Mapping[str, Any], Mapping[str, Any], Path], bool]
"""From the inputs of an interrupted attempt, the new inputs and the attempt's directory: whether it can be finished."""


def _continues(record: Mapping[str, Any], inputs: Mapping[str, Any], partial: Path, goes_on: GoesOn) -> bool:
    return _same(record, inputs) or goes_on(record["inputs"], inputs, partial)


def _same(record: Mapping[str, Any], inputs: Mapping[str, Any]) -> bool:
    """Whether a stage was made from `inputs`, by this version or by one that did not know some options yet."""
    if record["fingerprint"] == fingerprint(inputs):
        return True
    old, new = _comparable(record["inputs"], inputs)
    return bool(_given(old) == _given(new))


def _comparable(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sets of inputs with the `files` that both know: one that is not there cannot have changed."""
    before, after = old.get("files") or {}, new.get("files") or {}
    both = [path for path in before if before[path] is not None and after.get(path) is not None]
    return (
        {**old, "files": {path: before[path] for path in both}},
        {**new, "files": {path: after[path] for path in both}},
    )


def changed_file(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """A file among the `files` of two sets of inputs that is no longer what it was; None if there is none."""
    before, after = (inputs["files"] for inputs in _comparable(old, new))
    return next((path for path in before if before[path] != after[path]), None)


def _given(value: Any) -> Any:
    """Without the options that are not given."""
    if isinstance(value, Mapping):
        return {key: _given(part) for key, part in value.items() if part is not None}
    return [_given(part) for part in value] if isinstance(value, list | tuple) else value


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, the same for equal values whatever their key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


@dataclass(frozen=True)
class RunDirectory:
    """The stages of one run. Build it with `open_run_directory`, which holds the lock and clears up after a kill."""

    path: Path

    def stage_dir(self, stage: str) -> Path:
        """Where the finished stage lies."""
        return self.path / stage

    def partial_dir(self, stage: str) -> Path:
        """Where the stage works until it is finished."""
        return self.path / f".{stage}.partial"

    def content(self, stage: str) -> str:
        """Fingerprint of a finished stage's files.

        Raises:
            UserError: the stage is not finished.
        """
        record = self._record(self.stage_dir(stage))
        if record is None:
            raise UserError(f"{self.path} has no finished {stage} stage: run `structadmm run` on it first")
        return fingerprint(record["files"])

    def why_run(self, stage: str, inputs: dict[str, Any]) -> str | None:
        """Why the stage must run, in a few words, or None: it is finished and was made from these very inputs.

        Raises:
            UserError: a file of the finished stage is not what the stage wrote.
        """
        record = self._record(self.stage_dir(stage))
        if record is None:
            partial = self._record(self.partial_dir(stage))
            return "was interrupted" if partial is not None else "has not run yet"
        if not _same(record, inputs):
            return _difference(record["inputs"], inputs)
        found = _file_digests(self.stage_dir(stage))
        altered = sorted(
            name for name in record["files"].keys() | found.keys() if record["files"].get(name) != found.get(name)
        )
        if altered:
            raise UserError(
                f"{self.stage_dir(stage) / altered[0]} is not what the {stage} stage wrote: restore it, "
                f"or make the stage again with --from {stage}"
            )
        return None

    def begin(self, stage: str, inputs: dict[str, Any], goes_on: GoesOn | None) -> Path:
        """An output directory for the stage: empty, or what an interrupted attempt left that it goes on from."""
        partial = self.partial_dir(stage)
        record = self._record(partial)
        if goes_on is None or record is None or not _continues(record, inputs, partial, goes_on):
            _remove_tree(partial)
        inputs = self._with_known_files(stage, inputs)
        partial.mkdir(exist_ok=True)
        for leftover in partial.rglob(".*.tmp"):  # of an atomic write that was killed
            leftover.unlink()
        _write_record(partial, stage, inputs, complete=False)
        return partial

    def complete(self, stage: str, inputs: dict[str, Any]) -> None:
        """Make the stage's output directory the finished stage, in place of the one that was there."""
        inputs = self._with_known_files(stage, inputs)
        _write_record(self.partial_dir(stage), stage, inputs, complete=True)
        self._promote(stage)

    def refuse_to_drop(self, stage: str, inputs: dict[str, Any], goes_on: GoesOn) -> None:
        """Keep what an interrupted attempt at a resumable stage left from being replaced by one with other inputs.

        Raises:
            UserError: the stage must run, and there is such an attempt that has come as far as writing a file.
        """
        partial = self.partial_dir(stage)
        record = self._record(partial)
        if record is None or _continues(record, inputs, partial, goes_on) or self.why_run(stage, inputs) is None:
            return
        if any(path.is_file() and path != partial / RECORD and path.suffix != ".tmp" for path in partial.rglob("*")):
            raise UserError(
                f"{partial} holds an unfinished {stage} stage made from something else "
                f"({_difference(record['inputs'], inputs)}): restore that to go on with it, choose another run "
                f"directory, or start over with `structadmm {stage} {self.path} --force`"
            )

    def discard_repetition(self, stage: str, inputs: dict[str, Any]) -> None:
        """Forget an interrupted attempt to make the finished stage again; one with other inputs stays."""
        record = self._record(self.partial_dir(stage))
        if record is None or _same(record, inputs):
            self.discard_partial(stage)

    def discard_partial(self, stage: str) -> None:
        """Forget what an interrupted attempt left."""
        _remove_tree(self.partial_dir(stage))

    def recover(self, stages: tuple[str, ...]) -> None:
        """Finish the renames that a killed process had begun."""
        for stage in stages:
            partial = self._record(self.partial_dir(stage))
            if partial is not None and partial["complete"]:
                self._promote(stage)
            _remove_tree(self._old_dir(stage))

    def _promote(self, stage: str) -> None:
        """Two renames; between them the stage is absent and its complete partial directory says what to do."""
        old = self._old_dir(stage)
        if self.stage_dir(stage).exists():
            _remove_tree(old)
            self.stage_dir(stage).rename(old)
        self.partial_dir(stage).rename(self.stage_dir(stage))
        _sync_directory(self.path)
        _remove_tree(old)

    def _with_known_files(self, stage: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """`inputs`, and of files that are not there any more what they were when the interrupted attempt had them."""
        record = self._record(self.partial_dir(stage))
        known = {} if record is None else record["inputs"].get("files") or {}
        if "files" not in inputs or not known:
            return inputs
        return {**inputs, "files": {path: value or known.get(path) for path, value in inputs["files"].items()}}

    def _old_dir(self, stage: str) -> Path:
        return self.path / f".{stage}.old"

    @staticmethod
    def _record(directory: Path) -> dict[str, Any] | None:
        """The directory's stage record; None where there is none (a kill can fall before it is written)."""
        path = directory / RECORD
        return read_json(path, schema=SCHEMA) if path.exists() else None


@contextmanager
def open_run_directory(path: Path, stages: tuple[str, ...]) -> Iterator[RunDirectory]:
    """Create `path` where needed, lock it against other processes, and put right what a killed one left.

    Raises:
        UserError: the path is a file, cannot be written, or another process is using it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"{path} cannot hold a run ({error.strerror}): choose another --out") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(f"{path} is in use by process {owner}: wait for it, or choose another --out") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        directory = RunDirectory(path)
        directory.recover(stages)
        yield directory
    finally:
        os.close(handle)


def _write_record(directory: Path, stage: str, inputs: dict[str, Any], *, complete: bool) -> None:
    write_json(
        directory / RECORD,
        {
            "schema": SCHEMA,
            "stage": stage,
            "complete": complete,
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "files": _file_digests(directory) if complete else {},
        },
    )


def _file_digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file under `directory` but the stage record, by relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / RECORD)
    return {path.relative_to(directory).as_posix(): sha256_file(path) for path in files}


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """What changed between two sets of stage inputs, the first few entries."""
    sides = _comparable(old, new)
    before, after = (dict(_leaves({key: part for key, part in side.items() if part})) for side in sides)
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            place = key.removeprefix("config.")
            if place.startswith(("upstream.", "files.")):
                changes.append(f"{place.partition('.')[2]} has changed")
            else:
                changes.append(f"{place}: {before.get(key, 'unset')} -> {after.get(key, 'unset')}")
    more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
    return ", ".join(changes[:2]) + more


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _remove_tree(path: Path) -> None:
    """Delete a stage directory, its record first: a half-deleted one is never taken for one to resume from."""
    if path.exists():
        (path / RECORD).unlink(missing_ok=True)
        shutil.rmtree(path)


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
