from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.progress import BarReporter, LineReporter


def test_a_quick_task_leaves_no_line_in_a_log() -> None:
    stream = io.StringIO()
    reporter = LineReporter(Console(file=stream))
    with reporter.task("quick", 3) as task:
        task.advance()
    assert stream.getvalue() == ""


def test_a_long_task_leaves_a_line_now_and_then_and_one_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("pipeline.progress.time.monotonic", lambda: now)
    stream = io.StringIO()
    reporter = LineReporter(Console(file=stream))
    with reporter.task("training", 10) as task:
        for step in range(10):
            now += 3.0
            task.advance(note=f"loss {step}")
    lines = [line.strip() for line in stream.getvalue().splitlines()]
    assert lines == [
        "training: 1/10 after 3 s loss 0",
        "training: 5/10 after 15 s loss 4",
        "training: 9/10 after 27 s loss 8",
        "training: 10/10 after 30 s loss 9",
    ]


def test_lines_with_brackets_are_shown_as_they_are() -> None:
    stream = io.StringIO()
    LineReporter(Console(file=stream)).say("[train] seed [0]")
    assert stream.getvalue() == "[train] seed [0]\n"


def test_nested_bars_end_with_the_outermost_task() -> None:
    stream = io.StringIO()
    reporter = BarReporter(Console(file=stream, force_terminal=True, width=100))
    with reporter.task("outer", 2) as outer:
        with reporter.task("inner") as inner:
            inner.advance(note="[note]")
        outer.advance()
        reporter.say("a line that stays")
    assert "a line that stays" in stream.getvalue()
    assert not reporter._progress.live.is_started
