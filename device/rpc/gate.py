"""Lets through what a tuning client says in TVM's RPC protocol, and nothing else.

TVM's RPC server trusts its clients by design: besides calling any registered function, the protocol carries raw
addresses, so that a client can read and write the server's memory, call any address and free any handle. A device
server needs few kinds of packets. Each is read here to its last byte before TVM's server sees it, and any other ends
the session.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

from device.rpc.packets import STRINGS, STRINGS_AND_BYTES, Code, PacketError, PacketReader, arguments, none, packet

_MAX_NAME_BYTES = 200
_MAX_ARGUMENTS = 4
_RELEASED = packet(Code.RETURN, arguments(none()))


class Gate:
    """The packets of one session, checked.

    Args:
        functions: name -> handle of each function that may be called; they live as long as the session.
        max_packet: largest packet in bytes.
        reply: sends to the client what is answered here.
    """

    def __init__(self, functions: Mapping[str, int], *, max_packet: int, reply: Callable[[bytes], object]) -> None:
        self._functions = dict(functions)
        self._max_packet = max_packet
        self._reply = reply
        self._started = False
        self._given: set[int] = set()

    def next_packet(self, receive: Callable[[int], bytes]) -> bytes:
        """Read one packet for TVM's server and return it whole.

        A release is answered here and goes no further: how many references TVM gave is its own secret (a look-up that
        it refuses gives none), and one release too many would free a function.

        Args:
            receive: gives exactly so many bytes, or none at all where the client has hung up.

        Returns:
            The packet with its length before it; empty when the client has hung up.

        Raises:
            PacketError: it is none that a tuning client sends.
        """
        while True:
            head = receive(8)
            if not head:
                return b""
            (size,) = struct.unpack("<Q", head)
            if not 4 <= size <= self._max_packet:
                raise PacketError(f"a packet of {size} bytes, expected 4 to {self._max_packet}")
            body = receive(size)
            if not body:
                return b""
            if self._check(PacketReader(body)) != Code.FREE_HANDLE:
                return head + body
            self._reply(_RELEASED)

    def _check(self, read: PacketReader) -> int:
        code = read.integer("<i")
        if code not in (Code.INIT_SERVER, Code.SHUTDOWN) and not self._started:
            raise PacketError(f"a packet with code {code} before its session was started")
        if code == Code.INIT_SERVER:
            if self._started:
                raise PacketError("a second start of its session")
            read.text()  # the protocol's version, which TVM compares
            if read.integer("<i"):
                raise PacketError("a session of another kind than the plain one")
            self._started = True
        elif code == Code.GET_GLOBAL_FUNCTION:
            if read.count(_MAX_ARGUMENTS) != 1:
                raise PacketError("a function's name that is not one string")
            name = read.one_of(STRINGS, _MAX_NAME_BYTES).decode("utf-8", errors="replace")
            if name not in self._functions:
                raise PacketError(f"the function {name!r}: this server has {', '.join(self._functions)}")
            self._given.add(self._functions[name])
        elif code == Code.CALL_FUNCTION:
            self._expect_given(read.integer("<Q"))
            for _ in range(read.count(_MAX_ARGUMENTS)):
                read.one_of(STRINGS_AND_BYTES, self._max_packet)
        elif code == Code.FREE_HANDLE:
            if read.count(_MAX_ARGUMENTS) != 1:
                raise PacketError("a release of something that is no handle")
            self._expect_given(read.handle())
        elif code != Code.SHUTDOWN:
            raise PacketError(f"a packet with code {code}")
        read.expect_end()
        return code

    def _expect_given(self, handle: int) -> None:
        if handle not in self._given:
            raise PacketError("a handle that this session was not given")
