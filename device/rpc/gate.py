"""Lets through what a tuning client says in TVM's RPC protocol, and nothing else.

TVM's RPC server trusts its clients by design: besides calling any registered function, the protocol carries raw
addresses, so that a client can read and write the server's memory, call any address and free any handle. A device
server needs four kinds of packets. Each is read here to its last byte before TVM's server sees it, and any other ends
the session. The layout is that of `rpc_reference.h`, protocol 0.8.0: a length (uint64), a code (int32), arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum

_MAX_NAME_BYTES = 200
_MAX_ARGUMENTS = 4


class RefusedPacketError(Exception):
    """A client sent what a tuning client does not send."""


class Code(IntEnum):
    """`RPCCode`, as far as it is let through."""

    SHUTDOWN = 1
    INIT_SERVER = 2
    CALL_FUNCTION = 3
    GET_GLOBAL_FUNCTION = 9
    FREE_HANDLE = 10


class TypeIndex(IntEnum):
    """`TVMFFITypeIndex`, as far as it is let through."""

    OPAQUE_POINTER = 4
    RAW_STRING = 8
    BYTE_ARRAY = 9
    SMALL_STRING = 11
    SMALL_BYTES = 12
    STRING = 65
    BYTES = 66


_NESTED = {TypeIndex.SMALL_STRING, TypeIndex.SMALL_BYTES, TypeIndex.STRING, TypeIndex.BYTES}
"""Written with a type index of their own before the length."""


class Gate:
    """The packets of one session, checked.

    Args:
        functions: name -> handle of each function that may be called.
        max_packet: largest packet in bytes.
    """

    def __init__(self, functions: Mapping[str, int], *, max_packet: int) -> None:
        self._functions = dict(functions)
        self._max_packet = max_packet
        self._held = dict.fromkeys(functions.values(), 0)
        """How often a client has got each handle and not given it back: one more release would free it."""

    def next_packet(self, receive: Callable[[int], bytes]) -> bytes:
        """Read one packet and return it whole.

        Args:
            receive: gives exactly so many bytes, or none at all where the client has hung up.

        Returns:
            The packet with its length before it; empty when the client has hung up.

        Raises:
            RefusedPacketError: it is none that a tuning client sends.
        """
        head = receive(8)
        if not head:
            return b""
        (size,) = struct.unpack("<Q", head)
        if not 4 <= size <= self._max_packet:
            raise RefusedPacketError(f"a packet of {size} bytes, expected 4 to {self._max_packet}")
        body = receive(size)
        if not body:
            return b""
        self._check(_Reader(body))
        return head + body

    def _check(self, packet: _Reader) -> None:
        code = packet.integer("<i")
        if code == Code.INIT_SERVER:
            packet.text()  # the protocol's version, which TVM compares
            if packet.integer("<i"):
                raise RefusedPacketError("a session of another kind than the plain one")
        elif code == Code.GET_GLOBAL_FUNCTION:
            name = self._only_string(packet)
            if name not in self._functions:
                raise RefusedPacketError(f"the function {name!r}: this server has {', '.join(self._functions)}")
            self._held[self._functions[name]] += 1
        elif code == Code.CALL_FUNCTION:
            self._known(packet.integer("<Q"))
            for _ in range(self._count(packet)):
                packet.string_or_bytes(self._max_packet)
        elif code == Code.FREE_HANDLE:
            if self._count(packet) != 1 or packet.integer("<i") != TypeIndex.OPAQUE_POINTER:
                raise RefusedPacketError("a release of something that is no handle")
            self._held[self._known(packet.integer("<Q"))] -= 1
        elif code != Code.SHUTDOWN:
            raise RefusedPacketError(f"a packet with code {code}")
        packet.expect_end()

    def _known(self, handle: int) -> int:
        if self._held.get(handle, 0) < 1:
            raise RefusedPacketError("a handle that this session was not given")
        return handle

    def _count(self, packet: _Reader) -> int:
        count = packet.integer("<i")
        if not 0 <= count <= _MAX_ARGUMENTS:
            raise RefusedPacketError(f"{count} arguments")
        return count

    def _only_string(self, packet: _Reader) -> str:
        if self._count(packet) != 1:
            raise RefusedPacketError("a function's name that is not one string")
        return packet.string_or_bytes(_MAX_NAME_BYTES).decode("utf-8", errors="replace")


class _Reader:
    """A packet's bytes, read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self, layout: str) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def text(self) -> bytes:
        """A length and so many bytes."""
        return self._take(self.integer("<Q"))

    def string_or_bytes(self, max_bytes: int) -> bytes:
        """One argument, which must be a string or bytes."""
        kind = self.integer("<i")
        if kind not in set(TypeIndex) - {TypeIndex.OPAQUE_POINTER}:
            raise RefusedPacketError(f"an argument of type {kind}: strings and bytes are taken")
        if kind in _NESTED:
            inner = self.integer("<I")
            if inner not in (TypeIndex.STRING, TypeIndex.BYTES):
                raise RefusedPacketError(f"an object of type {inner}: strings and bytes are taken")
        value = self.text()
        if len(value) > max_bytes:
            raise RefusedPacketError(f"an argument of {len(value)} bytes")
        return value

    def expect_end(self) -> None:
        if self._at != len(self._data):
            raise RefusedPacketError(f"{len(self._data) - self._at} bytes after the last argument")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise RefusedPacketError("a packet that ends early")
        self._at += size
        return self._data[self._at - size : self._at]
