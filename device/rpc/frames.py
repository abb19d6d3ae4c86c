"""Messages between this project's own processes over a socket pair: a JSON object and, after it, plain bytes."""

from __future__ import annotations

import json
import socket
import struct
import time
from typing import Any

_HEADER = struct.Struct("<IQ")
_MAX_OBJECT_BYTES = 4 << 20


class FrameError(Exception):
    """The other process ended, or sent what is no message."""


class FrameTimeoutError(FrameError):
    """The other process did not send a whole message in time."""


class Frames:
    """One end of a socket pair.

    Args:
        sock: this end; closed by `close`.
        max_payload: largest number of plain bytes that is taken: the other process may be in the hands of a stranger.
    """

    def __init__(self, sock: socket.socket, *, max_payload: int) -> None:
        self.socket = sock
        self._max_payload = max_payload

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Send one message.

        Raises:
            FrameError: the other process has ended.
        """
        text = json.dumps(message, allow_nan=False).encode()
        try:
            self.socket.settimeout(None)
            self.socket.sendall(_HEADER.pack(len(text), len(payload)) + text + payload)
        except OSError as error:
            raise FrameError(f"the other process is gone ({error.strerror})") from None

    def receive(self, timeout_s: float | None = None) -> tuple[dict[str, Any], bytes]:
        """The next message and its plain bytes.

        Args:
            timeout_s: for all of it; None waits for as long as the other process lives.

        Raises:
            FrameTimeoutError: it did not come in time.
            FrameError: the other process has ended, or sent too much, or no JSON object.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        object_bytes, payload_bytes = _HEADER.unpack(self._exactly(_HEADER.size, deadline))
        if object_bytes > _MAX_OBJECT_BYTES or payload_bytes > self._max_payload:
            raise FrameError(f"a message of {object_bytes} + {payload_bytes} bytes is too large")
        text = self._exactly(object_bytes, deadline)
        payload = self._exactly(payload_bytes, deadline)
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise FrameError("a message is no JSON object")
        return message, payload

    def close(self) -> None:
        """Hang up."""
        self.socket.close()

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                self.socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
                block = self.socket.recv(min(size - len(data), 1 << 20))
            except TimeoutError:
                raise FrameTimeoutError("no whole message in time") from None
            except OSError as error:
                raise FrameError(f"the other process is gone ({error.strerror})") from None
            if not block:
                raise FrameError("the other process has ended")
            data += block
        return bytes(data)
