"""The first words of a TVM RPC connection, before its protocol proper: who serves what, and who may come in."""

from __future__ import annotations

import hmac
import socket
import struct
import time

from device.rpc.keepalive import notice_who_vanishes

_MAGIC = 0xFF271
_MISMATCH = _MAGIC + 2
_MAX_KEY_BYTES = 1024
_TIMEOUT_S = 5.0
"""A stranger who connects and says nothing keeps others waiting for no longer."""


def accept_client(listener: socket.socket, key: str, match_key: str) -> socket.socket | None:
    """Take the connection that waits at `listener` if it shows the match key that the tracker gave away.

    A client sends [magic, length, "client:MATCH_KEY -timeout=S"] and gets [magic, length, "server:KEY"], or one number
    that says that it does not match. (`tvm.rpc.server` does this too, without time-outs and for its own loop only.)

    Returns:
        The socket, from here on TVM's; None: it was somebody else, who has been turned away.
    """
    try:
        client, _ = listener.accept()
    except OSError:
        return None  # gone before it was taken
    try:
        client.settimeout(_TIMEOUT_S)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_who_vanishes(client)
        deadline = time.monotonic() + _TIMEOUT_S
        magic, length = struct.unpack("<ii", receive_exactly(client, 8, deadline))
        if magic != _MAGIC or not 0 < length <= _MAX_KEY_BYTES:
            raise ConnectionError("no TVM RPC client")
        words = receive_exactly(client, length, deadline).split()
        if not words or not hmac.compare_digest(words[0], f"client:{match_key}".encode()):
            client.sendall(struct.pack("<i", _MISMATCH))
            raise ConnectionError("another match key")
        name = f"server:{key}".encode()
        client.sendall(struct.pack("<ii", _MAGIC, len(name)) + name)
        client.settimeout(None)
    except OSError:
        client.close()
        return None
    return client


def greet_server(server: socket.socket, match_key: str, timeout_s: float) -> None:
    """Say the same from a client's side of a fresh connection.

    Args:
        server: the connection.
        match_key: that the tracker gave away for this session.
        timeout_s: for the answer.

    Raises:
        OSError: it is no TVM RPC server, does not know the match key, or does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    name = f"client:{match_key}".encode()
    server.sendall(struct.pack("<ii", _MAGIC, len(name)) + name)
    (magic,) = struct.unpack("<i", receive_exactly(server, 4, deadline))
    if magic == _MISMATCH:
        raise ConnectionError("it was promised to somebody else")
    (length,) = struct.unpack("<i", receive_exactly(server, 4, deadline))
    if magic != _MAGIC or not 0 <= length <= _MAX_KEY_BYTES:
        raise ConnectionError("it is no TVM RPC server")
    receive_exactly(server, length, deadline)


def receive_exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    """So many bytes.

    Args:
        sock: to read from; its time-out is changed.
        size: how many.
        deadline: as `time.monotonic` counts.

    Raises:
        OSError: the other end hung up before; a `TimeoutError` if they did not come in time.
    """
    data = bytearray()
    while len(data) < size:
        sock.settimeout(max(deadline - time.monotonic(), 1e-3))
        block = sock.recv(min(size - len(data), 1 << 20))
        if not block:
            raise ConnectionError("hung up")
        data += block
    return bytes(data)
