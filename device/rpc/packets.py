"""The packets of TVM's RPC protocol, as far as a device server and its tuner use them.

The layout is that of `rpc_reference.h`, protocol 0.8.0: a length (uint64), a code (int32), arguments.
"""

from __future__ import annotations

import struct
from enum import IntEnum

PROTOCOL_VERSION = b"0.8.0"


class PacketError(Exception):
    """A packet is none that a device server and its tuner exchange."""


class Code(IntEnum):
    """`RPCCode`, as far as it is used."""

    SHUTDOWN = 1
    INIT_SERVER = 2
    CALL_FUNCTION = 3
    RETURN = 4
    EXCEPTION = 5
    GET_GLOBAL_FUNCTION = 9
    FREE_HANDLE = 10


class TypeIndex(IntEnum):
    """`TVMFFITypeIndex`, as far as it is used."""

    NONE = 0
    INT = 1
    OPAQUE_POINTER = 4
    RAW_STRING = 8
    BYTE_ARRAY = 9
    SMALL_STRING = 11
    SMALL_BYTES = 12
    STRING = 65
    BYTES = 66


STRINGS = frozenset({TypeIndex.RAW_STRING, TypeIndex.SMALL_STRING, TypeIndex.STRING})
STRINGS_AND_BYTES = STRINGS | {TypeIndex.BYTE_ARRAY, TypeIndex.SMALL_BYTES, TypeIndex.BYTES}

_NESTED = {TypeIndex.SMALL_STRING, TypeIndex.SMALL_BYTES, TypeIndex.STRING, TypeIndex.BYTES}
"""Written with a type index of their own before the length."""


def packet(code: Code, *parts: bytes) -> bytes:
    """A whole packet, its length before it."""
    return struct.pack("<Qi", 4 + sum(map(len, parts)), code) + b"".join(parts)


def text(value: bytes) -> bytes:
    """A length and so many bytes."""
    return struct.pack("<Q", len(value)) + value


def arguments(*values: bytes) -> bytes:
    """Arguments, each encoded by one of the functions below."""
    return struct.pack("<i", len(values)) + b"".join(values)


def string(value: str) -> bytes:
    """One argument."""
    return struct.pack("<i", TypeIndex.RAW_STRING) + text(value.encode())


def byte_array(value: bytes) -> bytes:
    """One argument."""
    return struct.pack("<i", TypeIndex.BYTE_ARRAY) + text(value)


def none() -> bytes:
    """One argument."""
    return struct.pack("<i", TypeIndex.NONE)


class PacketReader:
    """A packet's bytes after its length, read from the front; each method raises `PacketError` for anything else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self, layout: str) -> int:
        """A number as `struct` lays it out."""
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def text(self) -> bytes:
        """A length and so many bytes."""
        return self._take(self.integer("<Q"))

    def count(self, most: int) -> int:
        """How many arguments follow."""
        count = self.integer("<i")
        if not 0 <= count <= most:
            raise PacketError(f"{count} arguments")
        return count

    def one_of(self, kinds: frozenset[TypeIndex], max_bytes: int) -> bytes:
        """One argument, which must be a string or bytes of one of these kinds."""
        kind = self.integer("<i")
        if kind not in kinds:
            raise PacketError(f"an argument of type {kind}: expected a string{' or bytes' if kinds > STRINGS else ''}")
        if kind in _NESTED:
            inner = self.integer("<I")
            if inner not in (TypeIndex.STRING, TypeIndex.BYTES) or inner not in kinds:
                raise PacketError(f"an object of type {inner}: expected a string or bytes")
        value = self.text()
        if len(value) > max_bytes:
            raise PacketError(f"an argument of {len(value)} bytes")
        return value

    def handle(self) -> int:
        """One argument, which must be a handle."""
        kind = self.integer("<i")
        if kind != TypeIndex.OPAQUE_POINTER:
            raise PacketError(f"an argument of type {kind}: expected a handle")
        return self.integer("<Q")

    def expect_end(self) -> None:
        """Nothing follows."""
        if self._at != len(self._data):
            raise PacketError(f"{len(self._data) - self._at} bytes after the last argument")

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise PacketError("a packet that ends early")
        self._at += size
        return self._data[self._at - size : self._at]
