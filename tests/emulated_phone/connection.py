"""One host's connection: handshake, authorisation, and streams multiplexed with a window of one packet each way."""

from __future__ import annotations

import contextlib
import secrets
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.emulated_phone import wire
from tests.emulated_phone.wire import ConnectionGoneError, Packet, ProtocolError

if TYPE_CHECKING:
    from tests.emulated_phone.phone import EmulatedPhone

_OUTGOING_LIMIT = 1 << 20  # like adbd's socket buffer: a service blocks once this much waits for the host's OKAY


class Stream:
    """A byte stream that the host opened. `read` and `write` are for the service's thread."""

    def __init__(self, connection: Connection, local_id: int, remote_id: int) -> None:
        self.local_id = local_id
        self.remote_id = remote_id
        self._connection = connection
        self._changed = threading.Condition()
        self._incoming: bytes | bytearray | memoryview | None = None
        self._outgoing = bytearray()
        self._awaiting_okay = False
        self._closed = False
        self.on_close: Callable[[], None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the host closed the stream or the connection is gone."""
        return self._closed

    def read(self) -> bytes | bytearray | memoryview:
        """The next packet's payload; empty once the stream is closed. Taking it allows the host to send another."""
        with self._changed:
            while self._incoming is None:
                if self._closed:
                    return b""
                self._changed.wait()
            data, self._incoming = self._incoming, None
        with contextlib.suppress(ConnectionGoneError):
            self._connection.send(Packet(wire.OKAY, self.local_id, self.remote_id))
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes for the host; blocks while too many wait.

        Raises:
            ConnectionGoneError: nobody will read them.
        """
        with self._changed:
            while len(self._outgoing) > _OUTGOING_LIMIT and not self._closed:
                self._changed.wait()
            if self._closed:
                raise ConnectionGoneError("stream closed")
            self._outgoing += data
        self._pump()

    def finish(self) -> None:
        """Deliver what is queued, then close the stream from the phone's side."""
        with self._changed:
            while (self._outgoing or self._awaiting_okay) and not self._closed:
                self._changed.wait()
            if self._closed:
                return
        self._connection.forget(self)
        with contextlib.suppress(ConnectionGoneError):
            self._connection.send(Packet(wire.CLSE, self.local_id, self.remote_id))
        self.closed_by_host()

    def received(self, payload: bytes | bytearray | memoryview) -> None:
        """Take a WRTE of the host (called by the connection's thread)."""
        with self._changed:
            if self._incoming is not None:
                raise ProtocolError(f"WRTE on stream {self.local_id} before the last one was answered by OKAY")
            self._incoming = payload
            self._changed.notify_all()

    def okayed(self) -> None:
        """Take an OKAY of the host (called by the connection's thread).

        adb 36 now and then answers one packet twice when its own client reads slowly; adbd takes that for nothing
        more than "ready", and so does this.
        """
        with self._changed:
            self._awaiting_okay = False
            self._changed.notify_all()
        self._pump()

    def closed_by_host(self) -> None:
        """Wake everybody who waits on this stream; nothing is sent any more."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self.on_close:
            self.on_close()

    def _pump(self) -> None:
        with self._changed:
            if self._awaiting_okay or not self._outgoing or self._closed:
                return
            limit = self._connection.max_payload
            payload = bytes(self._outgoing[:limit])
            del self._outgoing[:limit]
            self._awaiting_okay = True
            self._changed.notify_all()
        self._connection.send(Packet(wire.WRTE, self.local_id, self.remote_id, payload))


class Connection:
    """What adbd keeps for one host; `serve` runs until the connection ends."""

    def __init__(self, phone: EmulatedPhone, sock: socket.socket) -> None:
        self._phone = phone
        self._socket = sock
        self._send_lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._streams_lock = threading.Lock()
        self._next_id = 1
        self._version = wire.VERSION_WITH_CHECKSUM
        self._token = b""
        self._online = False
        self._tap = _Tap(self)
        self._gone = threading.Event()
        self.max_payload = wire.MAX_PAYLOAD

    def serve(self) -> None:
        """Answer packets until the host goes away, breaks the protocol, or a fault ends the connection."""
        try:
            while True:
                verify = self._version < wire.VERSION_WITHOUT_CHECKSUM
                self._handle(wire.receive_packet(self._tap, max_payload=self.max_payload, verify_checksum=verify))
        except (ConnectionGoneError, OSError):
            pass  # how every connection ends
        except ProtocolError as error:
            self._phone.note_protocol_error(str(error))
        finally:
            self.close()

    def close(self) -> None:
        """End the connection and everything that runs for it."""
        self._gone.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._streams_lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            stream.closed_by_host()

    def reset(self) -> None:
        """End the connection with a TCP reset, as a pulled cable or a dead access point looks in the end."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, packet: Packet) -> None:
        """Send one packet whole.

        Raises:
            ConnectionGoneError: the connection ended, possibly in the middle of the packet.
        """
        header = wire.encode_header(packet, with_checksum=self._version < wire.VERSION_WITHOUT_CHECKSUM)
        with self._send_lock:
            if self._gone.is_set():
                raise ConnectionGoneError("connection closed")
            self._phone.note_packet("->", packet)
            try:
                self._send_bytes(header)
                if packet.payload:
                    self._send_bytes(packet.payload)
            except OSError as error:
                raise ConnectionGoneError(str(error)) from None

    def forget(self, stream: Stream) -> None:
        """Drop a stream from the table; later packets for it are ignored, as adbd ignores them."""
        with self._streams_lock:
            self._streams.pop(stream.local_id, None)

    def _send_bytes(self, data: bytes | bytearray | memoryview) -> None:
        faults = self._phone.faults
        for name in ("drop_after_sent", "hang_after_sent"):
            passing = faults.count_down(name, len(data))
            if passing is not None:
                self._socket.sendall(memoryview(data)[:passing])
                self._strike(name)
        self._socket.sendall(data)

    def _strike(self, name: str) -> None:
        if name.startswith("drop"):
            self.reset()
        else:
            wait_for_hang_up(self._socket, self._gone, self._phone.stopping)
        raise ConnectionGoneError(name)

    def receive_into(self, view: memoryview) -> int:
        """`recv_into` of the socket with the faults that count received bytes."""
        count = self._socket.recv_into(view)
        for name in ("drop_after_received", "hang_after_received"):
            if count and self._phone.faults.count_down(name, count) is not None:
                self._strike(name)
        return count

    def _handle(self, packet: Packet) -> None:
        self._phone.note_packet("<-", packet)
        if packet.command == wire.CNXN:
            self._connect(packet)
        elif packet.command == wire.AUTH:
            self._authenticate(packet)
        elif not self._online:
            raise ProtocolError(f"{packet.name} before the connection was authorised")
        elif packet.command == wire.OPEN:
            self._open(packet)
        elif packet.command in (wire.OKAY, wire.WRTE, wire.CLSE):
            self._deliver(packet)
        else:
            raise ProtocolError(f"{packet.name} is not for a device")

    def _connect(self, packet: Packet) -> None:
        if packet.arg1 == 0:
            raise ProtocolError("CNXN with a maximum payload of 0")
        self._version = min(packet.arg0, self._phone.version)
        self.max_payload = min(packet.arg1, self._phone.max_payload)
        if self._phone.requires_authorisation:
            self._send_token()
        else:
            self._go_online()

    def _send_token(self) -> None:
        self._token = secrets.token_bytes(20)
        self.send(Packet(wire.AUTH, wire.AUTH_TOKEN, 0, self._token))

    def _authenticate(self, packet: Packet) -> None:
        authorisation = self._phone.authorisation
        if packet.arg0 == wire.AUTH_SIGNATURE:
            if self._token and authorisation.signed_by_allowed_key(self._token, bytes(packet.payload)):
                self._go_online()
            else:
                self._send_token()
        elif packet.arg0 == wire.AUTH_RSAPUBLICKEY:
            try:
                allowed = authorisation.ask(bytes(packet.payload))
            except ValueError as error:
                raise ProtocolError(str(error)) from None
            if allowed:
                self._go_online()
        else:
            raise ProtocolError(f"AUTH of kind {packet.arg0}")

    def _go_online(self) -> None:
        self._online = True
        self.send(Packet(wire.CNXN, self._phone.version, self._phone.max_payload, self._phone.banner()))

    def _open(self, packet: Packet) -> None:
        destination = bytes(packet.payload)
        if not destination.endswith(b"\0"):
            raise ProtocolError("the service name of OPEN does not end in a zero byte")
        service = self._phone.find_service(destination[:-1].decode("utf-8", "surrogateescape"))
        if service is None:
            self.send(Packet(wire.CLSE, 0, packet.arg0))
            return
        with self._streams_lock:
            stream = Stream(self, self._next_id, packet.arg0)
            self._streams[stream.local_id] = stream
            self._next_id += 1
        self.send(Packet(wire.OKAY, stream.local_id, stream.remote_id))
        threading.Thread(target=self._run_service, args=(service, stream), daemon=True).start()

    def _run_service(self, service: Callable[[Stream], None], stream: Stream) -> None:
        try:
            service(stream)
        except ConnectionGoneError:
            stream.closed_by_host()
        else:
            stream.finish()

    def _deliver(self, packet: Packet) -> None:
        with self._streams_lock:
            stream = self._streams.get(packet.arg1)
        if stream is None or packet.arg0 not in (0, stream.remote_id):
            # The host may not have seen the phone's CLSE yet. adbd answers such a WRTE by CLSE and ignores the rest.
            if packet.command == wire.WRTE:
                self.send(Packet(wire.CLSE, 0, packet.arg0))
        elif packet.command == wire.OKAY:
            stream.okayed()
        elif packet.command == wire.WRTE:
            stream.received(packet.payload)
        else:
            self.forget(stream)
            self.send(Packet(wire.CLSE, stream.local_id, stream.remote_id))
            stream.closed_by_host()


class _Tap:
    """The receiving half of a connection's socket, with its faults."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def recv_into(self, view: memoryview, /) -> int:
        return self._connection.receive_into(view)


def wait_for_hang_up(sock: socket.socket, *ends: threading.Event) -> None:
    """Do nothing until the host gives up or one of the events is set."""
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    while not any(end.is_set() for end in ends) and not poller.poll(100):
        pass
