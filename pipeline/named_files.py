"""What lies in the files that a configuration names: a stage that was made from them is made again when they change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.run_directory import RunDirectory
from structadmm.errors import UserError
from structadmm.files import sha256_file


def named_files(section: BaseModel) -> dict[str, str | None]:
    """A fingerprint by path of every file that an option names, and of the train stage of every run.

    None where there is nothing: a finished run may be carried to another machine without what it was made from. Folders
    of data are left out; their files have checksums of their own, or are the user's to keep.
    """
    return {path.as_posix(): _content(path) for path in _paths(section.model_dump()) if not _is_data(path)}


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _paths(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _paths(part)


def _is_data(path: Path) -> bool:
    return path.is_dir() and not (path / "train").is_dir()


def _content(path: Path) -> str | None:
    if path.is_file():
        return sha256_file(path)
    try:
        return RunDirectory(path).content("train")
    except UserError:
        return None  # there is none, or it is not finished: the stage says so, if it needs it
