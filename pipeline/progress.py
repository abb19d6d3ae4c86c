"""Progress on a person's terminal: bars where there is one, plain lines where there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TaskID as RichTaskId

from structadmm.progress import Reporter, Task


def console_reporter() -> Reporter:
    """A reporter for standard error, so that standard output stays free for results."""
    console = Console(stderr=True, highlight=False)
    return BarReporter(console) if console.is_terminal else LineReporter(console)


class BarReporter:
    """Bars that vanish when their task ends; tasks may nest."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self._open_tasks = 0

    def say(self, line: str) -> None:
        """Print `line` above the bars."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Show a bar for as long as the context is open."""
        if self._open_tasks == 0:
            self._progress.start()
        self._open_tasks += 1
        identity = self._progress.add_task(description, total=total, note="")
        try:
            yield _Bar(self._progress, identity)
        finally:
            self._progress.remove_task(identity)
            self._open_tasks -= 1
            if self._open_tasks == 0:
                self._progress.stop()


class _Bar:
    def __init__(self, progress: Progress, identity: RichTaskId) -> None:
        self._progress = progress
        self._identity = identity

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        if note is None:
            self._progress.advance(self._identity, amount)
        else:
            self._progress.update(self._identity, advance=amount, note=note)


class LineReporter:
    """For logs: a line when a task has run for a while, then one now and then, and one at its end."""

    FIRST_LINE_S = 2.0
    LINE_EVERY_S = 10.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        """Print `line`."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Print lines about the task for as long as the context is open."""
        lines = _Lines(self, description, total)
        yield lines
        lines.finish()


class _Lines:
    def __init__(self, reporter: LineReporter, description: str, total: int | None) -> None:
        self._reporter = reporter
        self._description = description
        self._total = total
        self._done = 0
        self._note = ""
        self._started = time.monotonic()
        self._next_line = self._started + LineReporter.FIRST_LINE_S
        self._unsaid = True

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        self._done += amount
        self._unsaid = True
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LineReporter.LINE_EVERY_S
            self._print(now)

    def finish(self) -> None:
        now = time.monotonic()
        if now - self._started >= LineReporter.FIRST_LINE_S and self._unsaid:
            self._print(now)

    def _print(self, now: float) -> None:
        self._unsaid = False
        amount = f" {self._done}/{self._total}" if self._total else (f" {self._done}" if self._done else "")
        note = f" {self._note}" if self._note else ""
        self._reporter.say(f"  {self._description}:{amount} after {now - self._started:.0f} s{note}")
