"""The tuner's end of one TVM RPC session: `python -m device.rpc.link_process FD`, started by `device.rpc.link`.

TVM's client has no time-outs: a call to a machine that lost its power never returns. In a process of its own it can be
killed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from typing import Any

from device.rpc.archive import MAX_ARCHIVE_BYTES
from device.rpc.frames import FrameError, Frames
from device.rpc.session_process import FACTS, MEASURE
from device.rpc.tvm_runtime import load_tvm_runtime


def main() -> None:
    """Connect as the first message says, then call what each further one asks for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the tuner's to handle
    tuner = Frames(socket.socket(fileno=int(sys.argv[1])), max_payload=MAX_ARCHIVE_BYTES)
    threading.Thread(target=_end_with, args=(tuner.socket,), daemon=True).start()
    tvm_ffi = load_tvm_runtime()
    session: Any = None
    try:
        while True:
            message, payload = tuner.receive()
            try:
                if session is None:
                    connect = tvm_ffi.get_global_func("rpc.Connect")
                    session = connect(message["host"], message["port"], message["match_key"], False)
                    answer = session.get_function(FACTS)()
                else:
                    answer = session.get_function(MEASURE)(payload, message["trial"])
            except Exception as error:  # whatever TVM makes of a server that refuses, lies or goes away
                tuner.send({"error": " ".join(str(error).split())[-300:] or type(error).__name__})
            else:
                tuner.send({"answer": str(answer)})
    except FrameError:
        pass  # the tuner has hung up
    finally:
        os._exit(0)


def _end_with(tuner: socket.socket) -> None:
    """End this process when the tuner does, also in the middle of a call."""
    poll = select.poll()
    poll.register(tuner, 0)  # nothing but hang-ups
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    main()
