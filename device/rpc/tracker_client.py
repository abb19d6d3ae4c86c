"""A connection to TVM's RPC tracker with time-outs, which TVM's own client does not have."""

from __future__ import annotations

import contextlib
import json
import secrets
import select
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from device.errors import DeviceError
from device.rpc.address import Address

_TRACKER_MAGIC = 0x2F271
_MAX_REPLY_BYTES = 16 << 20
_TIMEOUT_S = 10.0
_PING_EVERY_S = 10.0


class TrackerCode(IntEnum):
    """`tvm.rpc.base.TrackerCode`: a message is [code, argument, ...] as JSON after its length."""

    SUCCESS = 0
    PING = 1
    PUT = 3
    REQUEST = 4
    UPDATE_INFO = 5
    SUMMARY = 6
    GET_PENDING_MATCHKEYS = 7


class TrackerError(DeviceError):
    """There is no tracker, it went away, or it is something else."""


@dataclass(frozen=True)
class Ticket:
    """The right to open one session with one server."""

    host: str
    port: int
    match_key: str


@dataclass(frozen=True)
class RegisteredServer:
    """A server as the tracker tells of it.

    Attributes:
        key: under which it may be asked for.
        about: what a bridge of this project says about itself; empty for another TVM server.
    """

    key: str
    host: str
    port: int
    about: dict[str, Any]


@dataclass(frozen=True)
class TrackerSummary:
    """Everything registered.

    Attributes:
        free: key -> servers waiting for a session.
        pending: key -> clients waiting for a server.
    """

    servers: tuple[RegisteredServer, ...]
    free: dict[str, int]
    pending: dict[str, int]


class TrackerClient:
    """One connection; what a server registers lasts as long as it does.

    Attributes:
        connected: whether it has not been closed here.

    Raises:
        TrackerError: nothing listens there, or something that is no tracker.
    """

    def __init__(self, address: Address, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._open(timeout_s)

    def _open(self, timeout_s: float) -> None:
        self.connected = False
        self._requested = False
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        try:
            self._socket = socket.create_connection((self.address.host, self.address.port), timeout=timeout_s)
        except OSError as error:
            why = error.strerror or str(error)
            raise TrackerError(
                f"no RPC tracker at {self.address} ({why}): start one with `structadmm rpc tracker`, or correct "
                "--tracker"
            ) from None
        try:
            self._send(struct.pack("<i", _TRACKER_MAGIC))
            if self._receive(4, timeout_s) != struct.pack("<i", _TRACKER_MAGIC):
                raise TrackerError(f"what answers at {self.address} is no TVM RPC tracker: correct --tracker")
        except BaseException:
            self._socket.close()
            raise
        self.connected = True

    def __enter__(self) -> TrackerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up: the tracker forgets what was registered or asked for over this connection."""
        self.connected = False
        with contextlib.suppress(OSError):
            self._socket.close()

    def reconnect(self, *, timeout_s: float) -> None:
        """Connect anew to a tracker that hung up; it knows nothing of us any more.

        Args:
            timeout_s: how long it may take to answer.

        Raises:
            TrackerError: it is not back.
        """
        self.close()
        self._open(timeout_s)

    def fileno(self) -> int:
        """For `select`: readable between calls means that the tracker hung up."""
        return self._socket.fileno()

    def local_address(self) -> tuple[socket.AddressFamily, str]:
        """Family and host of our end: what the tracker takes for a server's address that does not say its own."""
        return self._socket.family, str(self._socket.getsockname()[0])

    def announce(self, key: str, host: str | None, port: int, about: dict[str, Any]) -> None:
        """Say that a server of `key` exists; may be said again with news.

        Args:
            key: see `device.rpc.address.check_key`.
            host: where it listens; None: where the tracker sees this connection come from.
            port: and there.
            about: shown to whoever asks the tracker.
        """
        info = {"key": f"server:{key}", "addr": [host, port], "structadmm": about}
        self._expect_success([TrackerCode.UPDATE_INFO, info])

    def offer(self, key: str, host: str | None, port: int) -> str:
        """Offer one session; returns the match key that the client who gets it will show.

        Args:
            key: as for `announce`.
            host: likewise.
            port: likewise.
        """
        match_key = f"{key}:{secrets.token_hex(16)}"
        self._expect_success([TrackerCode.PUT, key, [port, match_key], host])
        return match_key

    def unclaimed(self) -> list[str]:
        """Match keys offered over this connection that no client has got yet."""
        value = self._call([TrackerCode.GET_PENDING_MATCHKEYS])
        if not isinstance(value, list):
            raise self._misunderstood(value)
        return [str(match_key) for match_key in value]

    def summary(self) -> TrackerSummary:
        """All servers and queues."""
        value = self._call([TrackerCode.SUMMARY])
        try:
            queues, infos = value[1]["queue_info"], list(value[1]["server_info"])
            free = {str(key): int(queue["free"]) for key, queue in queues.items()}
            pending = {str(key): int(queue["pending"]) for key, queue in queues.items()}
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise self._misunderstood(value) from None
        servers = [server for info in infos if (server := _server(info))]
        return TrackerSummary(tuple(sorted(servers, key=lambda s: (s.key, s.host, s.port))), free, pending)

    def request(self, key: str, *, wait_s: float, priority: int = 1) -> Ticket | None:
        """Ask for a server, once; may be called again to go on waiting.

        Whoever waits hears nothing, also of a tracker that has forgotten this connection: it is asked now and then
        whether it is there.

        Returns:
            None: all of them are still busy after `wait_s`.

        Raises:
            TrackerError: the tracker is gone, does not answer, or answers nonsense.
        """
        if not self._requested:
            self._send_json([TrackerCode.REQUEST, key, "", priority])
            self._requested = True
            self._heard_at = time.monotonic()
        deadline = time.monotonic() + wait_s
        while True:
            now = time.monotonic()
            if self._pinged_at is None and now - self._heard_at > _PING_EVERY_S:
                self._send_json([TrackerCode.PING])
                self._pinged_at = now
            if self._pinged_at is not None and now - self._pinged_at > self._timeout_s:
                raise TrackerError(f"the tracker at {self.address} does not answer: is it running?")
            if not select.select([self._socket], [], [], max(min(deadline - now, _PING_EVERY_S), 0.0))[0]:
                if time.monotonic() >= deadline:
                    return None
                continue
            value = self._receive_json()
            self._heard_at = time.monotonic()
            if value != TrackerCode.SUCCESS:
                break
            self._pinged_at = None
        self._requested = False
        if self._pinged_at is not None:
            self._receive_json()
            self._pinged_at = None
        try:
            code, (host, port, match_key) = value
            if code != TrackerCode.SUCCESS:
                raise self._misunderstood(value)
            str(match_key).encode()  # what is no text was made up by nobody who serves
            return Ticket(str(host), int(port), str(match_key))
        except (TypeError, ValueError, OverflowError):
            raise self._misunderstood(value) from None

    def _expect_success(self, message: list[Any]) -> None:
        value = self._call(message)
        if value != TrackerCode.SUCCESS:
            raise self._misunderstood(value)

    def _misunderstood(self, value: Any) -> TrackerError:
        return TrackerError(f"the tracker at {self.address} answered {str(value)[:60]!r}: is its TVM another version?")

    def _call(self, message: list[Any]) -> Any:
        self._send_json(message)
        return self._receive_json()

    def _send_json(self, message: list[Any]) -> None:
        data = json.dumps(message).encode()
        self._send(struct.pack("<i", len(data)) + data)

    def _receive_json(self) -> Any:
        (size,) = struct.unpack("<i", self._receive(4))
        if not 0 < size <= _MAX_REPLY_BYTES:
            raise TrackerError(f"the tracker at {self.address} sent a message of {size} bytes: is it a tracker?")
        try:
            return json.loads(self._receive(size))
        except (ValueError, RecursionError):
            raise TrackerError(f"the tracker at {self.address} sent no JSON: is it a tracker?") from None

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._gone(error) from None

    def _receive(self, size: int, timeout_s: float | None = None) -> bytes:
        data = bytearray()
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while len(data) < size:
            try:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                block = self._socket.recv(size - len(data))
            except OSError as error:
                raise self._gone(error) from None
            finally:
                self._socket.settimeout(self._timeout_s)
            if not block:
                raise TrackerError(f"the tracker at {self.address} hung up: is it running, and a tracker?")
            data += block
        return bytes(data)

    def _gone(self, error: OSError) -> TrackerError:
        why = error.strerror or str(error)
        return TrackerError(f"the tracker at {self.address} does not answer ({why}): is it running?")


def _server(info: Any) -> RegisteredServer | None:
    """A server from what it said itself; None for what is none: the others are there all the same."""
    try:
        host, port = info["addr"]
        about = info.get("structadmm")
        return RegisteredServer(
            str(info["key"]).removeprefix("server:"), str(host), int(port), about if isinstance(about, dict) else {}
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
