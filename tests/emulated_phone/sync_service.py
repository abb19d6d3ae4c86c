"""The `sync:` service, AOSP `adb/SYNC.TXT` and `daemon/file_sync_service.cpp`: requests of an ID, a length and data."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from tests.emulated_phone.connection import Stream
from tests.emulated_phone.wire import ConnectionGoneError

if TYPE_CHECKING:
    from tests.emulated_phone.phone import EmulatedPhone

DATA_MAX = 64 * 1024
_REQUEST = struct.Struct("<4sI")
_STAT_V1 = struct.Struct("<4sIII")
_DENT_V1 = struct.Struct("<4sIIII")
_STAT_V2 = struct.Struct("<4sIQQIIIIQqqq")
_PATH_MAX = 1024


class SyncService:
    """Serves one `sync:` stream until QUIT."""

    def __init__(self, phone: EmulatedPhone, stream: Stream) -> None:
        self._phone = phone
        self._stream = stream
        self._buffer = bytearray()

    def serve(self) -> None:
        """Answer requests; a request that is not understood ends the stream with FAIL, as in adbd."""
        requests = {b"STAT": self._stat, b"LIST": self._list, b"SEND": self._send, b"RECV": self._receive}
        if "stat_v2" in self._phone.features:
            requests |= {b"STA2": self._stat_v2, b"LST2": self._lstat_v2}
        if "ls_v2" in self._phone.features:
            requests[b"LIS2"] = self._list_v2
        while True:
            name, length = _REQUEST.unpack(self._take(_REQUEST.size))
            if name == b"QUIT":
                return
            if length > _PATH_MAX:
                self._fail("path too long")
                return
            argument = os.fsdecode(bytes(self._take(length)))
            if name not in requests:
                self._fail(f"unknown command {name.decode('latin-1')}")
                return
            requests[name](argument)

    def _take(self, size: int) -> bytes | bytearray:
        while len(self._buffer) < size:
            data = self._stream.read()
            if not data:
                raise ConnectionGoneError("sync stream closed")
            self._buffer += data
        taken = self._buffer[:size]
        del self._buffer[:size]
        return taken

    def _fail(self, reason: str) -> None:
        text = reason.encode()
        self._stream.write(_REQUEST.pack(b"FAIL", len(text)) + text)

    def _stat(self, path: str) -> None:
        try:
            status = self._phone.files.host_path(path).lstat()
        except OSError:
            self._stream.write(_STAT_V1.pack(b"STAT", 0, 0, 0))
        else:
            self._stream.write(_STAT_V1.pack(b"STAT", status.st_mode, _low(status.st_size), _low(status.st_mtime)))

    def _stat_v2(self, path: str) -> None:
        self._stream.write(_pack_stat_v2(b"STA2", self._phone.files.host_path(path), follow=True))

    def _lstat_v2(self, path: str) -> None:
        self._stream.write(_pack_stat_v2(b"LST2", self._phone.files.host_path(path), follow=False))

    def _entries(self, path: str) -> list[tuple[bytes, Path]]:
        directory = self._phone.files.host_path(path)
        try:
            inside = [(os.fsencode(entry.name), entry) for entry in sorted(directory.iterdir())]
        except OSError:
            return []  # adbd answers an unreadable directory by an empty list
        return [(b".", directory), (b"..", directory.parent), *inside]

    def _list(self, path: str) -> None:
        for name, entry in self._entries(path):
            status = entry.lstat()
            header = _DENT_V1.pack(b"DENT", status.st_mode, _low(status.st_size), _low(status.st_mtime), len(name))
            self._stream.write(header + name)
        self._stream.write(_DENT_V1.pack(b"DONE", 0, 0, 0, 0))

    def _list_v2(self, path: str) -> None:
        for name, entry in self._entries(path):
            self._stream.write(_pack_stat_v2(b"DNT2", entry, follow=False) + struct.pack("<I", len(name)) + name)
        self._stream.write(_STAT_V2.pack(b"DONE", *[0] * 11) + struct.pack("<I", 0))

    def _receive(self, path: str) -> None:
        try:
            with self._phone.files.host_path(path).open("rb") as source:
                while chunk := source.read(DATA_MAX):
                    self._stream.write(_REQUEST.pack(b"DATA", len(chunk)) + chunk)
        except OSError as error:
            self._fail(f"open failed: {error.strerror}")
            return
        self._stream.write(_REQUEST.pack(b"DONE", 0))

    def _send(self, argument: str) -> None:
        path, comma, mode_text = argument.rpartition(",")
        if not comma or not mode_text.isdigit():
            self._fail("missing mode in ID_SEND")
            raise ConnectionGoneError("adbd closes the stream after a malformed SEND")
        try:
            self._store(self._phone.files.writable_path(path), int(mode_text))
        except OSError as error:
            # adbd reports at once and then reads on, so that a host which only writes is not blocked for ever.
            self._fail(f"couldn't write to '{path}': {os.strerror(error.errno or errno.EIO)}")
            self._drain()

    def _store(self, target: Path, mode: int) -> None:
        """Write what follows to `target`, in place as adbd does: a broken connection leaves a partial file."""
        if stat.S_ISLNK(mode):
            raise OSError(errno.EPERM, "links are not emulated")
        if target.is_dir():
            raise OSError(errno.EISDIR, "is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        corrupt = False
        with target.open("wb") as sink:
            while True:
                name, length = _REQUEST.unpack(self._take(_REQUEST.size))
                if name == b"DONE":
                    break
                if name != b"DATA" or length > DATA_MAX:
                    self._fail(f"unexpected {name.decode('latin-1')} of {length} bytes")
                    raise ConnectionGoneError("adbd closes the stream after such a packet")
                data = self._take(length)
                if data and not corrupt and self._phone.faults.take_flag("corrupt_push"):
                    corrupt = True
                    data[len(data) // 2] ^= 0x10  # type: ignore[index]
                self._phone.files.spend(length)
                sink.write(data)
        target.chmod(stat.S_IMODE(mode) & 0o777)
        os.utime(target, (length, length))
        self._stream.write(_REQUEST.pack(b"OKAY", 0))

    def _drain(self) -> None:
        while True:
            name, length = _REQUEST.unpack(self._take(_REQUEST.size))
            if name == b"DONE":
                return
            if name != b"DATA":
                raise ConnectionGoneError(f"{name!r} in the middle of a file")
            self._take(length)


def _low(value: float) -> int:
    """The field is 32 bits wide; adbd truncates."""
    return int(value) & 0xFFFFFFFF


def _pack_stat_v2(name: bytes, path: Path, *, follow: bool) -> bytes:
    try:
        status = path.stat() if follow else path.lstat()
    except OSError as error:
        return _STAT_V2.pack(name, error.errno or errno.EIO, *[0] * 10)
    return _STAT_V2.pack(
        name,
        0,
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        status.st_size,
        int(status.st_atime),
        int(status.st_mtime),
        int(status.st_ctime),
    )
