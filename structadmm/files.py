"""Files that are whole or absent: a reader never sees a half-written one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from structadmm.errors import UserError

_CANNOT_WRITE = frozenset({errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS})


def cache_dir() -> Path:
    """Per-user directory for compiled runners and downloaded data (`STRUCTADMM_CACHE` overrides it)."""
    chosen = os.environ.get("STRUCTADMM_CACHE")
    path = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("structadmm"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def refuse_folder(path: Path) -> None:
    """Say at once, not after the work, that a file cannot be written where a folder is.

    Raises:
        UserError: `path` is a folder.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, expected a file to write: name one in it")


def refuse_unwritable(path: Path) -> None:
    """Say at once, not after the work, that a file cannot be written; makes the folder that it goes into.

    Raises:
        UserError: `path` is a folder, or nothing can be written beside it.
    """
    refuse_folder(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another place") from None


def disk_problem(error: Exception) -> str | None:
    """What to tell of a full disk, or of a place that may not be written; None if `error` is about something else."""
    if not isinstance(error, OSError) or error.errno not in _CANNOT_WRITE:
        return None
    denied = error.errno == errno.EACCES
    if denied and error.filename is None:
        return None  # a socket's, say
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space, or " if full else "see to its permissions, or " if denied else ""
    return (
        f"{error.filename or 'a file'} cannot be {'used' if denied else 'written'} "
        f"({error.strerror}): {remedy}name another place (the cache's is STRUCTADMM_CACHE)"
    )


@contextmanager
def names_in_errors(path: Path) -> Iterator[None]:
    """Let the error of a disk name `path`, where it names a temporary sibling (`.NAME.*`) or no file at all."""
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE and (error.filename is None or f".{path.name}." in str(error.filename)):
            error.filename = str(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it is synced and renamed over `path`, else removed.

    Raises:
        UserError: `path` is a folder.
        OSError: it cannot be written.
    """
    refuse_folder(path)
    with names_in_errors(path), _temporary_sibling(path) as temporary:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes private files; what a run directory holds follows the user's umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)


@contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(out: Path, last: str) -> Iterator[Path]:
    """Yield a temporary sibling of the folder `out`; on success move its files into `out`, else leave `out` alone.

    Args:
        out: created where needed; files of other names that it holds stay.
        last: the file that is moved after all others, and removed before: where it is, all are of one piece.

    Raises:
        UserError: `out` is a file, or cannot be written.
        OSError: the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder to write into: choose another one")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another folder") from None
    try:
        with names_in_errors(out):
            yield staged
            out.mkdir(exist_ok=True)
            (out / last).unlink(missing_ok=True)
            for path in sorted(staged.iterdir(), key=lambda path: path.name == last):
                path.replace(out / path.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8) atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON. NaN and infinity are refused: no reader agrees on them."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *, schema: int) -> dict[str, Any]:
    """Read a JSON object whose `schema` field equals `schema`.

    Raises:
        UserError: the file is absent, is not a JSON object, or has another schema.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run the stage that writes it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): restore it or run its stage again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object: run its stage again")
    if value.get("schema") != schema:
        raise UserError(f"{path} has schema {value.get('schema')!r}, this version reads {schema}: run its stage again")
    return value
