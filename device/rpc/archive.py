"""A bundle as one piece of bytes, for its way through TVM's RPC: a ZIP file without compression, small and flat."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

from structadmm.errors import UserError

MAX_ARCHIVE_BYTES = 64 << 20
"""A candidate is one layer with its weights and one sample."""

_MAX_FILES = 64
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def pack_bundle(bundle: Path) -> bytes:
    """All files of a bundle directory.

    Raises:
        UserError: it is no flat directory of plain files, or larger than `MAX_ARCHIVE_BYTES`.
    """
    if not bundle.is_dir():
        raise UserError(f"{bundle} is not a bundle directory: give the path of a .clbundle")
    paths = sorted(bundle.iterdir())
    if len(paths) > _MAX_FILES or not all(path.is_file() and _NAME.fullmatch(path.name) for path in paths):
        raise UserError(f"{bundle} is not a flat directory of at most {_MAX_FILES} files: compile it again")
    if sum(path.stat().st_size for path in paths) > MAX_ARCHIVE_BYTES * 0.99:
        raise UserError(
            f"{bundle} is larger than {MAX_ARCHIVE_BYTES >> 20} MiB, the most that a server takes as a candidate: try "
            "it on a device of this machine, with --device instead of --tracker"
        )
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_STORED) as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    return data.getvalue()


def unpack_bundle(data: bytes, directory: Path) -> None:
    """Write what `pack_bundle` made, or nothing at all, into an empty directory.

    Names are plain and stored sizes add up to no more than `data`, so nothing lands elsewhere and nothing swells.

    Raises:
        UserError: it is anything else.
    """
    files: dict[str, bytes] = {}
    try:
        if len(data) > MAX_ARCHIVE_BYTES:
            raise UserError(f"an archive of {len(data)} bytes: expected at most {MAX_ARCHIVE_BYTES}")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if not 1 <= len(members) <= _MAX_FILES or sum(member.file_size for member in members) > len(data):
                raise UserError(f"an archive of {len(members)} files that claim more than it holds: send it again")
            for member in members:
                plain = _NAME.fullmatch(member.filename) and member.compress_type == zipfile.ZIP_STORED
                if not plain or member.filename in files:
                    raise UserError(f"the archive's file {member.filename[:60]!r} is not plain: send it again")
                files[member.filename] = archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"the archive is damaged ({error}): send it again") from None
    for name, content in files.items():
        (directory / name).write_bytes(content)
