"""The process that holds one TVM RPC session of a device server: `python -m device.rpc.session_process FD FD`.

The first file descriptor is the client's socket after the handshake, the second a socket to the bridge, which drives
the device. Here TVM's own server loop runs, behind the gate, with two functions registered: what a client might still
do to this process it does not do to the bridge, to the phone or to another session, and the bridge may kill it.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

import psutil

from device.rpc.archive import MAX_ARCHIVE_BYTES
from device.rpc.frames import FrameError, Frames
from device.rpc.gate import Gate
from device.rpc.packets import PacketError
from device.rpc.tvm_runtime import load_tvm_runtime

FACTS = "structadmm.facts"
"""() -> JSON: what the device is and how candidates are limited."""

MEASURE = "structadmm.measure"
"""(bundle: bytes, trial: JSON) -> JSON: an outcome, or why there is none."""

MAX_PACKET_BYTES = MAX_ARCHIVE_BYTES + (1 << 16)
_TELL_EVERY_BYTES = 1 << 18
"""Of a packet on its way: to the bridge, a client in a slow network is not a silent one."""

_MEMORY_BYTES = 8 * MAX_PACKET_BYTES
"""What a session may take beyond what it starts with: a packet is copied from Python to TVM's buffers and back."""


def main() -> None:
    """Serve one session and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the bridge's to handle
    client = socket.socket(fileno=int(sys.argv[1]))
    bridge = Frames(socket.socket(fileno=int(sys.argv[2])), max_payload=MAX_ARCHIVE_BYTES)
    tvm_ffi = load_tvm_runtime()
    _limit_memory()
    try:
        _serve(tvm_ffi, client, bridge)
    except PacketError as error:
        bridge.send({"refused": str(error)})
    except FrameError:
        pass  # the bridge has ended: so do we
    finally:
        # Not through destructors: TVM's would still write to the client.
        sys.stdout.flush()
        os._exit(0)


def _serve(tvm_ffi: Any, client: socket.socket, bridge: Frames) -> None:
    server_loop = tvm_ffi.get_global_func("rpc.ServerLoop")
    functions = {FACTS: _facts(bridge), MEASURE: _measure(bridge)}
    gate = Gate(_expose(tvm_ffi, functions), max_packet=MAX_PACKET_BYTES, reply=client.sendall)
    problems: list[Exception] = []
    waiting = bytearray()

    def receive(size: int) -> bytes:
        if not waiting:
            try:
                waiting.extend(gate.next_packet(lambda count: _exactly(client, bridge, count)))
            except (PacketError, FrameError) as error:
                problems.append(error)
                raise
        block = bytes(waiting[:size])
        del waiting[:size]
        return block

    def send(data: bytes) -> int:
        client.sendall(data)
        return len(data)

    try:
        server_loop(tvm_ffi.convert(send), tvm_ffi.convert(receive))
    except Exception:
        # Our own errors come back through C++ as ones of another class; so does a client that vanished.
        if problems:
            raise problems[0] from None


def _expose(tvm_ffi: Any, functions: dict[str, Callable[..., str]]) -> dict[str, int]:
    """Leave these as the only functions of this process that have a global name, and give their handles."""
    remove = tvm_ffi.get_global_func("ffi.FunctionRemoveGlobal")
    for name in tvm_ffi.registry.list_global_func_names():
        if name != "rpc.LocalSession":  # TVM's loop looks it up when a session starts
            remove(name)
    for name, function in functions.items():
        tvm_ffi.register_global_func(name, function)
    return {name: tvm_ffi.get_global_func(name).__chandle__() for name in functions}


def _facts(bridge: Frames) -> Callable[..., str]:
    def facts(*arguments: Any) -> str:
        if arguments:
            return _complaint(f"{FACTS} takes no arguments")
        return _ask(bridge, {"call": "facts"})

    return facts


def _measure(bridge: Frames) -> Callable[..., str]:
    def measure(*arguments: Any) -> str:
        if len(arguments) != 2 or not isinstance(arguments[0], bytes) or not isinstance(arguments[1], str):
            return _complaint(f"{MEASURE} takes a bundle's archive as bytes and a trial as a string of JSON")
        archive, trial = arguments
        if len(archive) > MAX_ARCHIVE_BYTES:
            return _complaint(f"an archive of {len(archive)} bytes: at most {MAX_ARCHIVE_BYTES} are taken")
        return _ask(bridge, {"call": "measure", "trial": str(trial)}, bytes(archive))

    return measure


def _ask(bridge: Frames, message: dict[str, str], payload: bytes = b"") -> str:
    bridge.send(message, payload)
    answer, _ = bridge.receive()
    return json.dumps(answer)


def _complaint(text: str) -> str:
    return json.dumps({"refused": text})


def _exactly(client: socket.socket, bridge: Frames, size: int) -> bytes:
    """So many bytes; none at all where the client has hung up, an error where the bridge has."""
    data = bytearray()
    told = 0
    while len(data) < size:
        if bridge.socket in select.select([client, bridge.socket], [], [])[0]:
            raise FrameError("the bridge has hung up")  # it says nothing unless it is asked
        block = client.recv(min(size - len(data), 1 << 20))
        if not block:
            return b""
        data += block
        if len(data) - told >= _TELL_EVERY_BYTES:
            told = len(data)
            bridge.send({"receiving": told})
    return bytes(data)


def _limit_memory() -> None:
    limit = psutil.Process().memory_info().vms + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
