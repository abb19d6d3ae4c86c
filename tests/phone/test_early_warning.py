"""A run that will need a phone says at once that it is not there, and trains all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import run_command_line
from tests.emulated_phone import EmulatedPhone

# Its training ends at once, with a line of its own.
CONFIG = """name = "x"
[train.model]
entry = "no_such_net"
[[train.rounds]]
structure = "filter"
sparsity = 0.5
"""


def _lines(capsys: pytest.CaptureFixture[str], tmp_path: Path, *options: str) -> list[str]:
    config = tmp_path / "x.toml"
    config.write_text(CONFIG)
    assert run_command_line(["run", str(config), "--out", str(tmp_path / "run"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "unknown model" in lines[-1]  # as far as training
    return lines[:-1]


def test_a_phone_that_does_not_answer_is_told_in_one_line_before_training_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTADMM_ADBKEY", str(key))
    warning, training = _lines(capsys, tmp_path, "--device", "adb:127.0.0.1:1")
    assert warning.startswith("warning: adb:127.0.0.1:1 is not needed before the measure stage, but does not answer")
    assert "is offline" in warning
    assert training.startswith("train:")


def test_a_phone_that_answers_is_not_warned_of(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    key: Path,
    phone: EmulatedPhone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STRUCTADMM_ADBKEY", str(key))
    [training] = _lines(capsys, tmp_path, "--device", f"adb:{phone.serial}")
    assert training.startswith("train:")
    # Asked for no service: a run must not disturb a phone that it does not need yet.
    assert phone.opened_services == []
