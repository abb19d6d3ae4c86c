"""Train several experiments side by side, each in a process of its own, those first that others start from.

One network of CIFAR's size does not fill a large GPU, and a night on a shared machine ends at a fixed hour: several
runs share the device, all of them stop with a checkpoint when the time is up, and the same command goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.run_config import load_run_config
from structadmm.errors import StructadmmError, UserError
from structadmm.progress import Reporter

POLL_S = 0.2
CHECKPOINT_S = 120.0
"""For the checkpoint that a SIGTERM asks for; whoever takes longer is killed and loses what followed the last epoch."""


class UnfinishedError(StructadmmError):
    """The time is up and runs are left; the message says how to go on. The status is that of a temporary failure."""

    exit_status = 75


@dataclass(frozen=True)
class Job:
    """One experiment to train.

    Attributes:
        name: of its configuration.
        config: its file.
        run: its run directory.
        after: names of the jobs whose weights it starts from.
    """

    name: str
    config: Path
    run: Path
    after: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.run.with_name(f"{self.run.name}.log")


def plan_jobs(configs: Sequence[Path], runs: Path, overrides: Sequence[str] = ()) -> list[Job]:
    """A job for each configuration; one that starts or distils from another's run waits for that one.

    Raises:
        UserError: a configuration is wrong, two have one name, or they wait for each other.
    """
    loaded = [load_run_config(path, overrides) for path in configs]
    directories = {config.name: runs / config.name for config in loaded}
    if len(directories) < len(loaded):
        names = [config.name for config in loaded]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two configurations are named {twice!r}: give each a name of its own")
    jobs = []
    for path, config in zip(configs, loaded, strict=True):
        distill = config.train.distill
        weights = (config.train.model.weights, None if distill is None else distill.weights)
        sources = {folder for path in weights if path is not None for folder in path.resolve().parents}
        if config.train.after is not None:
            sources.add(config.train.after.resolve())
        after = tuple(name for name, run in directories.items() if run.resolve() in sources)
        jobs.append(Job(config.name, path, directories[config.name], after))
    _refuse_circles(jobs)
    return jobs


def _refuse_circles(jobs: Sequence[Job]) -> None:
    settled: set[str] = set()
    while len(settled) < len(jobs):
        ready = {job.name for job in jobs if job.name not in settled and settled.issuperset(job.after)}
        if not ready:
            names = ", ".join(job.name for job in jobs if job.name not in settled)
            raise UserError(
                f"{names} start from each other's weights: take one's train.after, train.model.weights or "
                "train.distill.weights out"
            )
        settled |= ready


def train_jobs(
    jobs: Sequence[Job],
    *,
    at_once: int,
    minutes: float | None,
    reporter: Reporter,
    overrides: Sequence[str] = (),
) -> None:
    """Bring the train stage of every job up to date.

    A job that fails takes along those that start from it, and no other.

    Args:
        jobs: from `plan_jobs`.
        at_once: processes at a time; on a CPU they divide its cores among themselves.
        minutes: after these, every process writes a checkpoint and ends; None: no limit.
        reporter: shows the last line of each.
        overrides: `section.key=value`, for every configuration.

    Raises:
        UnfinishedError: the time is up.
        StructadmmError: a job failed; names the first, its reason and its log.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
    done: list[Job] = []
    failed: dict[Job, int] = {}
    with _ended_with_checkpoints(running), reporter.task("train-all", len(jobs)) as task:
        while running or _startable(waiting, done):
            if deadline is not None and time.monotonic() > deadline:
                break
            for job in _startable(waiting, done)[: at_once - len(running)]:
                waiting.remove(job)
                running[job] = _start(job, overrides, at_once)
                reporter.say(f"{job.name}: started, its log is {job.log}")
            for job, process in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[job]
                if status == 0:
                    done.append(job)
                else:
                    failed[job] = status
                reporter.say(f"{job.name}: {'trained' if status == 0 else 'failed'}: {_last_line(job.log)}")
                task.advance(1)
            task.advance(0, note="; ".join(f"{job.name}: {_last_line(job.log)}" for job in running))
            time.sleep(POLL_S)
    if failed:
        job, status = next(iter(failed.items()))
        left = "".join(f"; {other.name} was not trained: {_why_not(other, jobs, failed)}" for other in waiting)
        raise StructadmmError(f"{job.name} failed with status {status} ({_last_line(job.log)}; see {job.log}){left}")
    if len(done) < len(jobs):
        left = f"{len(running)} with a checkpoint" + (f", {len(waiting)} not started" if waiting else "")
        raise UnfinishedError(
            f"{len(done)} of {len(jobs)} runs are trained after {minutes:g} minutes, {left}: the same command goes on"
        )


def _startable(waiting: Sequence[Job], done: Sequence[Job]) -> list[Job]:
    trained = {job.name for job in done}
    return [job for job in waiting if trained.issuperset(job.after)]


def _why_not(job: Job, jobs: Sequence[Job], failed: Collection[Job]) -> str:
    hopeless = {other.name for other in failed}
    for _ in jobs:  # what starts from one that starts from one that failed, and so on
        hopeless |= {other.name for other in jobs if hopeless.intersection(other.after)}
    return "it starts from another's weights" if job.name in hopeless else "the time was up"


def _start(job: Job, overrides: Sequence[str], at_once: int) -> subprocess.Popen[bytes]:
    job.run.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "structadmm", "train", str(job.run), "--config", str(job.config)]
    for override in overrides:
        command += ["--set", override]
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    with job.log.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,  # Ctrl-C comes to this process alone, which then asks for checkpoints
        )


@contextmanager
def _ended_with_checkpoints(running: dict[Job, subprocess.Popen[bytes]]) -> Iterator[None]:
    """Leave no process behind, however the context ends; what is removed from `running` has ended by itself."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signals = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, leave) for number in signals}
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # the checkpoints are being written
        for process in running.values():
            process.terminate()
        until = time.monotonic() + CHECKPOINT_S
        for process in running.values():
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(log: Path) -> str:
    """The last line that a process printed, shortened."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 2000))
        lines = stream.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing yet")
    return last if len(last) <= 160 else f"{last[:159]}…"
