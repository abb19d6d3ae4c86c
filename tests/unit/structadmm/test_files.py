"""A disk that takes nothing leaves no file behind, and its error names what was to be written."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors import SafetensorError

from structadmm.files import atomic_path, staged_folder, write_json
from train.checkpoint import save_tensors


def full_disk(*_arguments: Any, **_options: Any) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left on device") as told:
        write_json(path, {})
    assert told.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_file_in_a_read_only_folder_is_told_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*, prefix: str, suffix: str, dir: Path) -> NoReturn:  # noqa: A002 - as tempfile has it
        raise OSError(errno.EROFS, "Read-only file system", f"{dir}/{prefix}a1b2{suffix}")

    monkeypatch.setattr("tempfile.mkstemp", read_only)
    with pytest.raises(OSError, match="Read-only") as told, atomic_path(tmp_path / "x.json"):
        pass
    assert told.value.filename == str(tmp_path / "x.json")


def test_a_full_disk_under_a_folder_names_the_folder_and_leaves_it_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="No space") as told, staged_folder(out, last="last") as staged:
        raise OSError(errno.ENOSPC, "No space left on device", str(staged / "network.onnx"))
    assert told.value.filename == str(out)
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as told, atomic_path(tmp_path / "x.json"):
        (tmp_path / "absent").read_bytes()
    assert told.value.filename == str(tmp_path / "absent")


def test_a_full_disk_is_an_error_of_the_disk_in_safetensors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"

    def fails(*_arguments: Any, **_options: Any) -> NoReturn:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("train.checkpoint.save_file", fails)
    with pytest.raises(OSError, match="No space left on device") as told:
        save_tensors(path, {"w": torch.zeros(1)})
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(path))
