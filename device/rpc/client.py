"""The tuner's end of a TVM RPC session, which takes nothing from a server but answers.

In TVM's protocol both ends are alike: TVM's own client (`rpc.Connect`) lets a server call functions, load libraries and
write files here, as a client may there. A tuner needs three requests and their answers, so these are spoken here, and
whatever else a server sends ends the session. Nothing waits without end.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from device.rpc.handshake import greet_server, receive_exactly
from device.rpc.keepalive import notice_who_vanishes
from device.rpc.packets import (
    PROTOCOL_VERSION,
    STRINGS,
    Code,
    PacketError,
    PacketReader,
    TypeIndex,
    arguments,
    byte_array,
    packet,
    string,
    text,
)

_MAX_ANSWER_BYTES = 4 << 20
_STALL_S = 60.0
"""However slow a network is, within this time something gets through."""

_BLOCK_BYTES = 1 << 16
_CONNECT_S = 10.0
_START_S = 60.0
"""For the server to start a session's process on a busy machine."""


class ClientError(Exception):
    """The session is over: the server is gone, did not answer in time, or sent what is no answer."""


class RpcClient:
    """One session, for one thread, except for `close`; nothing is connected before `open`."""

    def __init__(self, host: str, port: int, match_key: str) -> None:
        self._host, self._port, self._match_key = host, port, match_key
        self._socket: socket.socket | None = None
        self._closed = False
        self._in_call = threading.Lock()
        self._handles: dict[str, int] = {}

    def open(self) -> None:
        """Connect and start the session.

        Raises:
            ClientError: nobody is there, or nobody who knows the match key.
        """
        with self._one_call():
            try:
                sock = self._connect()
            except (OSError, ValueError, OverflowError) as error:  # host and port are what somebody registered
                raise ClientError(f"cannot connect ({getattr(error, 'strerror', None) or error})") from None
            greet_server(sock, self._match_key, _START_S)
            self._ask(packet(Code.INIT_SERVER, text(PROTOCOL_VERSION), arguments()), _START_S)

    def call(self, name: str, *values: str | bytes, timeout_s: float) -> str:
        """Call one of the server's functions.

        Args:
            name: of the function.
            values: its arguments.
            timeout_s: for the answer, from when everything was sent.

        Returns:
            its answer, which must be a string.

        Raises:
            ClientError: there was no answer.
        """
        encoded = [string(value) if isinstance(value, str) else byte_array(value) for value in values]
        with self._one_call():
            if name not in self._handles:
                answer = self._ask(packet(Code.GET_GLOBAL_FUNCTION, arguments(string(name))), _START_S)
                answer.count(1)
                self._handles[name] = answer.handle()
            call = struct.pack("<Q", self._handles[name])
            answer = self._ask(packet(Code.CALL_FUNCTION, call, arguments(*encoded)), timeout_s)
            # A string comes as two: what TVM takes it for, then its letters.
            if answer.count(2) != 2 or answer.integer("<i") != TypeIndex.INT:
                raise PacketError("an answer that is no string")
            answer.integer("<q")
            value = answer.one_of(STRINGS, _MAX_ANSWER_BYTES)
            answer.expect_end()
            return value.decode("utf-8", errors="replace")

    def close(self) -> None:
        """Hang up, at once; also from another thread, whose wait ends."""
        self._closed = True
        sock = self._socket
        if sock is not None:
            # Not `close`, which would leave a thread that waits for an answer waiting.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            with self._in_call:
                sock.close()

    def _connect(self) -> socket.socket:
        family, kind, protocol, _, address = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)[0]
        self._socket = sock = socket.socket(family, kind, protocol)
        sock.settimeout(_CONNECT_S)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_who_vanishes(sock)
        return sock

    @contextmanager
    def _one_call(self) -> Iterator[None]:
        with self._in_call:
            try:
                yield
            except PacketError as error:
                raise ClientError(f"it sent {error}: is it a `structadmm rpc serve` of this version?") from None
            except TimeoutError:
                raise ClientError("no answer in time") from None
            except OSError as error:
                raise ClientError(f"the connection ended ({error.strerror or error})") from None

    def _ask(self, request: bytes, timeout_s: float) -> PacketReader:
        """Send a packet; gives the arguments of the answer."""
        sock = self._socket
        if sock is None or self._closed:
            raise ConnectionError("closed here")
        rest = memoryview(request)
        sock.settimeout(_STALL_S)
        while rest:
            rest = rest[sock.send(rest[:_BLOCK_BYTES]) :]
        deadline = time.monotonic() + timeout_s
        (size,) = struct.unpack("<Q", receive_exactly(sock, 8, deadline))
        if size > _MAX_ANSWER_BYTES:
            raise PacketError(f"a packet of {size} bytes, expected at most {_MAX_ANSWER_BYTES}")
        answer = PacketReader(receive_exactly(sock, size, deadline))
        code = answer.integer("<i")
        if code == Code.EXCEPTION:
            answer.count(1)
            said = answer.one_of(STRINGS, _MAX_ANSWER_BYTES).decode("utf-8", errors="replace")
            raise ClientError(f"it said: {' '.join(said.split())[-300:]}")
        if code != Code.RETURN:
            raise PacketError(f"a packet with code {code}, which is no answer")
        return answer
