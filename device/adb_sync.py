"""Files over adb's `sync:` service, version 1 (AOSP `adb/SYNC.TXT`), which every Android release has.

`adb_shell` has the same, but it loses a failure that the phone reports in the middle of a push (it waits for an OKAY
and drops the packet that says "No space left on device"), and it believes any length that the phone announces.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator
from typing import BinaryIO

from device.adb_connection import AdbConnection, AdbStream, DeadlineError, LinkError

_CHUNK = 64 * 1024  # SYNC_DATA_MAX
_REQUEST = struct.Struct("<4sI")
_STAT = struct.Struct("<4sIII")
_MAX_MESSAGE = 4096


class SyncError(Exception):
    """The phone refused a file operation, in its own words."""


class SyncSession:
    """An open `sync:` stream. Time-outs are per packet: a slow link is not an error, a silent one is."""

    def __init__(self, stream: AdbStream, max_payload: int, packet_timeout_s: float) -> None:
        self._stream = stream
        self._packet_timeout_s = packet_timeout_s
        self._chunks_per_packet = max(1, max_payload // (_CHUNK + _REQUEST.size))
        self._chunk = min(_CHUNK, max_payload - _REQUEST.size)
        self._buffer = bytearray()

    def stat(self, path: str) -> tuple[int, int, int]:
        """Mode, size (modulo 2**32) and modification time of a file; mode 0 where there is none."""
        self._request(b"STAT", path)
        name, mode, size, modified = _STAT.unpack(self._take(_STAT.size))
        if name != b"STAT":
            raise LinkError(f"expected STAT of the phone, got {name!r}")
        return mode, size, modified

    def send(self, source: BinaryIO, path: str, mode: int, on_progress: Callable[[int], None]) -> None:
        """Write a file on the phone; a connection that breaks leaves it partial.

        Args:
            source: what to send, from its present position to its end.
            path: where to, absolute.
            mode: permission bits.
            on_progress: called with the bytes that the phone has taken since the last call.

        Raises:
            SyncError: the phone could not write it.
        """
        self._request(b"SEND", f"{path},{0o100000 | mode}")
        packet = bytearray(self._chunks_per_packet * (self._chunk + _REQUEST.size))
        view = memoryview(packet)
        while True:
            filled = sent = 0
            for _ in range(self._chunks_per_packet):
                start = filled + _REQUEST.size
                count = _read_full(source, view[start : start + self._chunk])
                if count == 0:
                    break
                _REQUEST.pack_into(packet, filled, b"DATA", count)
                filled = start + count
                sent += count
            if not filled:
                break
            self._write(view[:filled])
            on_progress(sent)
        self._write(_REQUEST.pack(b"DONE", int(time.time()) & 0xFFFFFFFF))
        self._expect_okay()

    def receive(self, path: str, *, max_bytes: int) -> Iterator[bytes]:
        """The content of a file on the phone, block by block.

        Raises:
            SyncError: the phone could not read it, or it holds more than `max_bytes`.
        """
        self._request(b"RECV", path)
        total = 0
        while True:
            name, length = _REQUEST.unpack(self._take(_REQUEST.size))
            if name == b"DONE":
                return
            if name == b"FAIL":
                self._raise_failure(length)
            if name != b"DATA" or length > _CHUNK:
                raise LinkError(f"expected a block of a file, the phone sent {name!r} with length {length}")
            total += length
            if total > max_bytes:
                raise SyncError(f"it holds more than {max_bytes} bytes")
            yield self._take(length)

    def _request(self, name: bytes, argument: str) -> None:
        data = argument.encode()
        self._write(_REQUEST.pack(name, len(data)) + data)

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._stream.write(data, self._soon())
        except LinkError:
            if self._stream.has_received:
                self._expect_okay()  # the phone may have said why before it closed the stream
            raise
        if self._stream.has_received:
            self._expect_okay()  # in the middle of a file this can only be a failure

    def _expect_okay(self) -> None:
        name, length = _REQUEST.unpack(self._take(_REQUEST.size))
        if name == b"FAIL":
            self._raise_failure(length)
        if name != b"OKAY":
            raise LinkError(f"expected OKAY of the phone, got {name!r}")

    def _raise_failure(self, length: int) -> None:
        text = self._take(min(length, _MAX_MESSAGE)).decode(errors="replace")
        raise SyncError("".join(letter if letter.isprintable() else "?" for letter in text))

    def _soon(self) -> float:
        return time.monotonic() + self._packet_timeout_s

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self._stream.read(self._soon())
            if not data:
                raise LinkError("the phone closed the file transfer")
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


@contextlib.contextmanager
def sync_session(connection: AdbConnection) -> Iterator[SyncSession]:
    """Open `sync:` for one transfer and close it; after an error the connection is left to be closed as a whole."""
    timeout_s = connection.io_timeout_s
    try:
        stream = connection.open_stream("sync:", deadline=time.monotonic() + timeout_s)
        yield SyncSession(stream, connection.max_payload, timeout_s)
        stream.close(time.monotonic() + timeout_s)
    except DeadlineError:
        raise LinkError(f"nothing arrived within {timeout_s:g} s") from None


def _read_full(source: BinaryIO, view: memoryview) -> int:
    """Fill `view` from a file as far as it goes."""
    filled = 0
    while filled < len(view):
        count = source.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            break
        filled += count
    return filled
