"""The other end of a connection, by hand."""

from __future__ import annotations

import socket


def receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or EOFError."""
    data = sock.recv(size, socket.MSG_WAITALL)
    if len(data) < size:
        raise EOFError
    return data
