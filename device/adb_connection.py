"""One connection to a phone's adb daemon: `adb_shell` below, streams with deadlines and bounds above.

`adb_shell` 0.4.4 supplies the handshake, the authorisation, the packet types and USB. Its lower layer is replaced where
it is not good enough for files that must arrive whole: its TCP transport ignores short writes and spins at the end of
the stream, its packet reader allocates whatever length a device claims, and it sums every payload in Python, which the
protocol has not asked for since version 0x01000001 (AOSP `adb.h`, `A_VERSION_SKIP_CHECKSUM`).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from adb_shell import constants, exceptions
from adb_shell.adb_device import AdbDevice, _AdbIOManager
from adb_shell.adb_message import AdbMessage
from adb_shell.hidden_helpers import _AdbTransactionInfo
from adb_shell.transport.base_transport import BaseTransport

_VERSION_WITHOUT_CHECKSUM = 0x01000001
_HEADER = struct.Struct("<6I")
_MAX_PAYLOAD = 1 << 20
IO_TIMEOUT_S = 20.0
"""How long a phone may take, unless told otherwise, to move one packet before it counts as gone."""


class LinkError(Exception):
    """The connection is of no more use: it broke, fell silent, or carried what is no adb. Its text is one line."""


class DeadlineError(Exception):
    """The deadline of an operation passed; the connection may still carry packets for it and has to be closed."""


class RefusedError(Exception):
    """The daemon does not offer the service that was asked for."""


class NotAuthorisedError(Exception):
    """The phone knows none of our keys, and nobody allowed one."""


class TcpTransport(BaseTransport):  # type: ignore[misc]
    """A TCP socket that writes whole buffers, notices the end of the stream, and keeps to its time-outs."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None

    def connect(self, transport_timeout_s: float | None) -> None:
        """Connect, with TCP keep-alive so that a vanished phone is noticed."""
        self._socket = socket.create_connection(self._address, timeout=transport_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def close(self) -> None:
        """Close; a closed transport stays closed until `connect`."""
        if self._socket:
            self._socket.close()
            self._socket = None

    def bulk_read(self, numbytes: int, transport_timeout_s: float | None) -> bytes:
        """Between 1 and `numbytes` bytes."""
        connection = self._require()
        readable, _, _ = select.select([connection], [], [], transport_timeout_s)
        if not readable:
            raise exceptions.TcpTimeoutException(f"nothing arrived within {transport_timeout_s:.1f} s")
        data = connection.recv(numbytes)
        if not data:
            raise ConnectionResetError("the phone closed the connection")
        return data

    def bulk_write(self, data: bytes | bytearray | memoryview, transport_timeout_s: float | None) -> int:
        """All of `data`."""
        connection = self._require()
        connection.settimeout(transport_timeout_s)
        connection.sendall(data)
        return len(data)

    def is_stale(self) -> bool:
        """Whether the phone has closed the connection while nobody looked."""
        if self._socket is None:
            return True
        try:
            return bool(select.select([self._socket], [], [], 0)[0]) and not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def _require(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("the connection is closed")
        return self._socket


def _checksum(payload: bytes | bytearray | memoryview) -> int:
    return int(np.frombuffer(payload, np.uint8).sum(dtype=np.uint64)) & 0xFFFFFFFF if payload else 0


class _PacketIO(_AdbIOManager):  # type: ignore[misc]
    """`adb_shell`'s packet layer with bounded reads and with checksums only where the daemon asks for them."""

    def __init__(self, transport: BaseTransport) -> None:
        super().__init__(transport)
        self.open_ids: set[int] = set()
        self._checksums = True

    def connect(self, *arguments: Any) -> Any:
        self._checksums = True
        return super().connect(*arguments)

    def _send(self, msg: Any, adb_info: Any) -> None:
        is_connect = msg.command == constants.ID_TO_WIRE[constants.CNXN]
        arg0 = _VERSION_WITHOUT_CHECKSUM if is_connect else msg.arg0
        check = _checksum(msg.data) if self._checksums else 0
        header = _HEADER.pack(msg.command, arg0, msg.arg1, len(msg.data), check, msg.magic)
        # Two transfers, not one: adbd reads the header from USB by itself.
        self._transport.bulk_write(header, adb_info.transport_timeout_s)
        if msg.data:
            self._transport.bulk_write(msg.data, adb_info.transport_timeout_s)

    def _read_packet_from_device(self, adb_info: Any) -> tuple[bytes, int, int, bytes]:
        # While a person decides, adb_shell raises only the transport's time-out.
        deadline = time.monotonic() + max(adb_info.read_timeout_s, adb_info.transport_timeout_s)
        while True:
            header = self._read_exactly(_HEADER.size, deadline)
            wire, arg0, arg1, length, check, magic = _HEADER.unpack(header)
            command = constants.WIRE_TO_ID.get(wire)
            if command is None or magic != wire ^ 0xFFFFFFFF or length > _MAX_PAYLOAD:
                raise LinkError(f"the other side does not speak adb (packet {header.hex()})")
            payload = self._read_exactly(length, deadline)
            if command == constants.CNXN:
                self._checksums = arg0 < _VERSION_WITHOUT_CHECKSUM
            elif self._checksums and command != constants.AUTH and _checksum(payload) != check:
                raise LinkError(f"a packet of {length} bytes arrived damaged")
            # A packet for a stream that nobody has open is dropped here; adb_shell would keep it for ever.
            if command in (constants.AUTH, constants.CNXN) or arg1 in self.open_ids:
                return command, arg0, arg1, payload

    def _read_exactly(self, size: int, deadline: float) -> bytes:
        blocks: list[bytes] = []
        missing = size
        while missing:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise exceptions.AdbTimeoutError(f"{missing} of {size} bytes of a packet did not arrive")
            block = self._transport.bulk_read(missing, remaining)
            blocks.append(block)
            missing -= len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)


class AdbConnection(AdbDevice):  # type: ignore[misc]
    """A connected phone. One thread at a time; any `LinkError` or `DeadlineError` means: close it and make another.

    Args:
        transport: TCP or USB.
        io_timeout_s: how long the phone may take to move one packet.
    """

    def __init__(self, transport: BaseTransport, io_timeout_s: float = IO_TIMEOUT_S) -> None:
        super().__init__(transport, io_timeout_s)
        self.io_timeout_s = io_timeout_s
        self._transport_below = transport
        self._next_stream = 1
        self._io_manager = _PacketIO(transport)

    def log_in(self, signer: Any, *, timeout_s: float, allow_s: float, on_prompt: Callable[[], None]) -> None:
        """Connect and be authorised.

        Args:
            signer: our key.
            timeout_s: seconds to wait for the daemon.
            allow_s: seconds to wait for a person to allow the key on the phone.
            on_prompt: called once, before that wait.

        Raises:
            LinkError: nobody answers, or not in adb's protocol.
            NotAuthorisedError: the key was not allowed in time.
        """
        prompted = False

        def prompt(_manager: Any) -> None:
            nonlocal prompted
            prompted = True
            on_prompt()

        try:
            self.connect(
                rsa_keys=[signer],
                transport_timeout_s=timeout_s,
                read_timeout_s=timeout_s,
                auth_timeout_s=allow_s,
                auth_callback=prompt,
            )
        except _TRANSPORT_ERRORS as error:
            self.close()
            if prompted and isinstance(error, _TIMEOUTS):
                raise NotAuthorisedError(_one_line(error)) from None
            raise LinkError(_one_line(error)) from None

    def open_stream(self, service: str, *, deadline: float) -> AdbStream:
        """Open a service such as `exec:ls` or `sync:`.

        Raises:
            RefusedError: the daemon does not offer it.
            LinkError: the connection broke.
            DeadlineError: `deadline` (monotonic seconds) passed.
        """
        local_id = self._next_stream
        self._next_stream += 1
        stream = AdbStream(self, local_id)
        self._io_manager.open_ids.add(local_id)
        stream.open(service.encode() + b"\0", deadline)
        return stream

    def is_stale(self) -> bool:
        """Whether the phone is known to have closed the connection; over USB that shows at the next use only."""
        return isinstance(self._transport_below, TcpTransport) and self._transport_below.is_stale()

    @property
    def max_payload(self) -> int:
        """Largest payload the daemon takes, bytes."""
        return min(int(self._maxdata), _MAX_PAYLOAD) or 4096

    def exchange(
        self, local_id: int, remote_id: int | None, packet: Any, expected: list[bytes], deadline: float
    ) -> Any:
        """Send `packet` (where there is one), then read until one of the `expected` commands comes for the stream."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise DeadlineError
        info = _AdbTransactionInfo(local_id, remote_id, min(remaining, self.io_timeout_s), remaining)
        try:
            if packet is not None:
                self._io_manager.send(packet, info)
            return self._io_manager.read(expected, info, allow_zeros=True) if expected else None
        except _TRANSPORT_ERRORS as error:
            if time.monotonic() >= deadline:
                raise DeadlineError from None
            raise LinkError(_one_line(error)) from None

    def drop_stream(self, local_id: int) -> None:
        """Forget a stream; what still arrives for it is thrown away."""
        self._io_manager.open_ids.discard(local_id)


class AdbStream:
    """One open service: bytes both ways, one packet at a time as the protocol demands."""

    def __init__(self, connection: AdbConnection, local_id: int) -> None:
        self._connection = connection
        self._local_id = local_id
        self._remote_id: int | None = None
        self._received: list[bytes] = []
        self._ended = False

    def open(self, destination: bytes, deadline: float) -> None:
        """Ask for the service; called by `AdbConnection.open_stream`."""
        packet = AdbMessage(constants.OPEN, self._local_id, 0, destination)
        command, remote_id, _, _ = self._exchange(packet, [constants.OKAY, constants.CLSE], deadline)
        if command == constants.CLSE:
            self._connection.drop_stream(self._local_id)
            raise RefusedError(destination[:-1].decode(errors="replace"))
        self._remote_id = remote_id

    def read(self, deadline: float) -> bytes:
        """The next bytes; empty at the end of the stream. The phone may pause as long as the deadline allows."""
        if self._received:
            return self._received.pop(0)
        while not self._ended:
            command, _, _, data = self._exchange(None, [constants.WRTE, constants.CLSE], deadline)
            if command == constants.CLSE:
                self._end(deadline)
                break
            self._exchange(AdbMessage(constants.OKAY, self._local_id, self._remote_id), [], deadline)
            if data:
                return bytes(data)
        return b""

    def write(self, data: bytes | bytearray | memoryview, deadline: float) -> None:
        """Send at most `max_payload` bytes and wait until the phone took them. What it says meanwhile waits for `read`.

        Raises:
            LinkError: the phone closed the stream.
        """
        packet: Any = AdbMessage(constants.WRTE, self._local_id, self._remote_id, data)
        while True:
            expected = [constants.OKAY, constants.WRTE, constants.CLSE]
            command, _, _, said = self._exchange(packet, expected, deadline)
            if command == constants.OKAY:
                return
            if command == constants.CLSE:
                self._end(deadline)
                raise LinkError("the phone closed the stream")
            self._received.append(bytes(said))
            packet = None
            self._exchange(AdbMessage(constants.OKAY, self._local_id, self._remote_id), [], deadline)

    @property
    def has_received(self) -> bool:
        """Whether `read` would return at once."""
        return bool(self._received)

    def close(self, deadline: float) -> None:
        """Close from our side and wait for the phone to agree."""
        if self._ended:
            return
        packet = AdbMessage(constants.CLSE, self._local_id, self._remote_id)
        self._exchange(packet, [constants.CLSE], deadline)
        self._ended = True
        self._connection.drop_stream(self._local_id)

    def _end(self, deadline: float) -> None:
        self._ended = True
        self._exchange(AdbMessage(constants.CLSE, self._local_id, self._remote_id), [], deadline)
        self._connection.drop_stream(self._local_id)

    def _exchange(self, packet: Any, expected: list[bytes], deadline: float) -> Any:
        return self._connection.exchange(self._local_id, self._remote_id, packet, expected, deadline)


_TIMEOUTS = (exceptions.AdbTimeoutError, exceptions.TcpTimeoutException, exceptions.UsbReadFailedError)
_TRANSPORT_ERRORS = (
    OSError,
    LinkError,
    struct.error,
    exceptions.AdbConnectionError,
    exceptions.AdbTimeoutError,
    exceptions.DeviceAuthError,
    exceptions.InvalidChecksumError,
    exceptions.InvalidCommandError,
    exceptions.InvalidResponseError,
    exceptions.TcpTimeoutException,
    exceptions.UsbDeviceNotFoundError,
    exceptions.UsbReadFailedError,
    exceptions.UsbWriteFailedError,
)


def _one_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
