"""TVM's own RPC tracker, in this process, on the address that was asked for and no other."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress

from device.rpc.address import Address
from device.rpc.keepalive import notice_who_vanishes
from device.rpc.tvm_runtime import load_tvm_runtime
from structadmm.errors import UserError

_DESCRIPTORS = 1 << 16


def run_tracker(host: str, port: int, ready: Callable[[Address], None]) -> None:
    """Track servers until interrupted.

    `tvm.rpc.Tracker` does the same in a hidden process, listens on all interfaces unless told otherwise, takes another
    port when its own is taken, and cannot choose a free one; the handler behind it can do all that it is asked.

    Args:
        host: address to listen on.
        port: TCP port; 0 takes a free one.
        ready: is told where the tracker listens, once it does.

    Raises:
        UserError: the address cannot be listened on.
    """
    # The tracker moves JSON about: without compiler and torch, TVM loads in a fraction of the time.
    os.environ.setdefault("TVM_USE_RUNTIME_LIB", "1")
    load_tvm_runtime()
    from device.rpc.tracker_handler import TrackerHandler

    listener = listen(host, port)
    notice_who_vanishes(listener)
    _raise_descriptor_limit()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        handler = TrackerHandler(listener, secrets.token_hex(16))
        ready(Address(host, listener.getsockname()[1]))
        handler.run()
    finally:
        listener.close()


def _raise_descriptor_limit() -> None:
    """A connection takes one, and shells allow a program a thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Args:
        host: an address of this machine.
        port: 0 takes a free one.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:  # the last for a name such as `a..b`
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen on {Address(host, port)} ({why}): choose another --host or --port") from None
