"""Starting one of this project's own processes with a socket to talk over, and ending it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from device.rpc.frames import Frames

# `python -m` would import from the directory that the user happens to be in before anything else; so does `-c`, until
# the first entry is gone. (`-P` says the same, from Python 3.11 on.)
_RUN_MODULE = """\
import sys
if not sys.path[0]: del sys.path[0]
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


class Partner:
    """A child process that runs one module and talks in `Frames`.

    Args:
        module: run as by `python -P -m MODULE FD... FD`, the last file descriptor being its end of the socket pair.
        handed_over: sockets whose descriptors it inherits, in this order before the last.
        max_payload: see `Frames`.
        scratch: where it puts temporary files; None: where everybody does.
    """

    def __init__(
        self,
        module: str,
        *,
        handed_over: Sequence[socket.socket] = (),
        max_payload: int,
        scratch: Path | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        descriptors = [sock.fileno() for sock in (*handed_over, theirs)]
        try:
            # A session of its own: Ctrl-C reaches the parent alone, which ends the others in order.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _RUN_MODULE, module, *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=None if scratch is None else {**os.environ, "TMPDIR": str(scratch)},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self.frames = Frames(ours, max_payload=max_payload)

    def finish(self, within_s: float) -> None:
        """Say that nothing more comes, and wait for it to end by itself, having done what it was told."""
        with contextlib.suppress(OSError):
            self.frames.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=within_s)

    def end(self, *, grace_s: float = 0.0) -> None:
        """Hang up and kill it.

        Args:
            grace_s: first ask it to end with a SIGTERM, and wait for so long.
        """
        if grace_s:
            self.process.terminate()
        # Not `close`, which would leave a thread of ours that waits for an answer waiting.
        with contextlib.suppress(OSError):
            self.frames.socket.shutdown(socket.SHUT_RDWR)
        if grace_s:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=grace_s)
        self.process.kill()
        self.process.wait()
        self.frames.close()

    def describe_end(self) -> str:
        """How it ended, for a message."""
        status = self.process.poll()
        if status is None:
            return "stopped answering"
        if status < 0:
            return f"was killed by signal {-status}"
        return f"ended with status {status}"
