"""The adb transport's packets, as AOSP's `packages/modules/adb/protocol.txt` and `types.h` define them.

A packet is six little-endian 32-bit words (command, arg0, arg1, payload length, payload checksum, command ^ 0xffffffff)
and the payload. The checksum is the sum of the payload's bytes; from protocol version 0x01000001 on nobody computes it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

import numpy as np

HEADER = struct.Struct("<6I")
VERSION_WITH_CHECKSUM = 0x01000000
VERSION_WITHOUT_CHECKSUM = 0x01000001
MAX_PAYLOAD = 1 << 20  # since Android 9; 256 KiB before, 4 KiB in the first versions

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE, STLS, SYNC = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE", b"STLS", b"SYNC")
)
KNOWN_COMMANDS = {CNXN, AUTH, OPEN, OKAY, WRTE, CLSE, STLS, SYNC}

AUTH_TOKEN, AUTH_SIGNATURE, AUTH_RSAPUBLICKEY = 1, 2, 3


class ProtocolError(Exception):
    """The other side broke the protocol; a real adbd drops the connection."""


class ConnectionGoneError(Exception):
    """The connection ended, by the other side or by an injected fault."""


@dataclass(frozen=True)
class Packet:
    """One packet of the adb transport."""

    command: int
    arg0: int
    arg1: int
    payload: bytes | bytearray | memoryview = b""

    @property
    def name(self) -> str:
        """The command's four letters."""
        return self.command.to_bytes(4, "little").decode("latin-1")


def checksum(payload: bytes | bytearray | memoryview) -> int:
    """Sum of the payload's bytes, modulo 2**32."""
    if not payload:
        return 0
    return int(np.frombuffer(payload, np.uint8).sum(dtype=np.uint64)) & 0xFFFFFFFF


def encode_header(packet: Packet, *, with_checksum: bool) -> bytes:
    """The 24 bytes that precede the payload."""
    return HEADER.pack(
        packet.command,
        packet.arg0,
        packet.arg1,
        len(packet.payload),
        checksum(packet.payload) if with_checksum else 0,
        packet.command ^ 0xFFFFFFFF,
    )


class Readable(Protocol):
    """The receiving half of a socket."""

    def recv_into(self, view: memoryview, /) -> int:
        """Read between 1 byte and the whole view; 0 at the end of the stream."""


def receive_exactly(connection: Readable, size: int) -> bytearray:
    """Read `size` bytes, or raise `ConnectionGoneError` at the end of the stream."""
    data = bytearray(size)
    view = memoryview(data)
    position = 0
    while position < size:
        count = connection.recv_into(view[position:])
        if count == 0:
            raise ConnectionGoneError("end of stream")
        position += count
    return data


def receive_packet(connection: Readable, *, max_payload: int, verify_checksum: bool) -> Packet:
    """Read one packet and check all that a real adbd checks."""
    command, arg0, arg1, length, check, magic = HEADER.unpack(receive_exactly(connection, HEADER.size))
    if magic != command ^ 0xFFFFFFFF:
        raise ProtocolError(f"magic {magic:#x} does not belong to command {command:#x}")
    if command not in KNOWN_COMMANDS:
        raise ProtocolError(f"unknown command {command:#x}")
    if length > max_payload:
        raise ProtocolError(f"payload of {length} bytes, at most {max_payload} were agreed on")
    payload = receive_exactly(connection, length)
    if verify_checksum and checksum(payload) != check:
        raise ProtocolError(f"payload of {length} bytes has checksum {checksum(payload)}, the header says {check}")
    return Packet(command, arg0, arg1, payload)
