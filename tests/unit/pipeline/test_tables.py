"""Tables on standard output."""

from __future__ import annotations

import pytest

from pipeline.tables import print_table


def test_a_wide_table_keeps_a_row_on_a_line_whatever_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = [f"some words of column {number}" for number in range(12)]
    print_table(words, [words], left=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 3
    for word in words:
        assert word in lines[0]
        assert word in lines[2]


def test_a_cell_is_taken_literally(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["layer"], [["[bold]conv[/bold] :smile:"]])
    assert "[bold]conv[/bold] :smile:" in capsys.readouterr().out
