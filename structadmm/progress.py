"""How long work tells a person that it is alive, without knowing who is watching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One unit of long work in progress."""

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Record `amount` more steps done; `note` (a loss, a file name) is shown beside the bar."""


class Reporter(Protocol):
    """Where a stage says what it is doing. Stages take one; the command line supplies it."""

    def say(self, line: str) -> None:
        """Show one line that stays on the screen."""

    def task(self, description: str, total: int | None = None) -> AbstractContextManager[Task]:
        """Show work of `total` steps (None: unknown) for as long as the context is open."""


class _SilentTask:
    def advance(self, amount: int = 1, note: str | None = None) -> None:
        del amount, note


class SilentReporter:
    """Says nothing: for tests, libraries and `--json`."""

    def say(self, line: str) -> None:
        """Drop `line`."""
        del line

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        """Yield a task that shows nothing."""
        del description, total
        yield _SilentTask()
