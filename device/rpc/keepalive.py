"""Noticing that the machine at the other end of a connection is gone: one that lost its power never hangs up."""

from __future__ import annotations

import socket
import sys


def notice_who_vanishes(sock: socket.socket) -> None:
    """Have the system ask after the other end once nothing was heard for half a minute, and end it after another.

    Args:
        sock: a connection, or a listening socket whose connections inherit it.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":  # elsewhere after the two hours that are usual
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
