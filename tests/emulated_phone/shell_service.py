"""`shell:`, `shell,v2:` and `exec:`, AOSP `daemon/shell_service.cpp`.

Android's sh is not here: commands go to this computer's `/bin/sh`, with the phone's paths rewritten (`PathRewriter`)
and a PATH that holds only the phone's tools. Where a `shell:` stream ends, adbd's pseudo-terminal sends SIGHUP to the
session; here the daemon does. Programs of an `exec:` stream have no terminal and are left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from tests.emulated_phone.connection import Stream
from tests.emulated_phone.processes import programs_of_session
from tests.emulated_phone.wire import ConnectionGoneError

if TYPE_CHECKING:
    from tests.emulated_phone.phone import EmulatedPhone

_BLOCK = 64 * 1024
_V2_HEADER = struct.Struct("<BI")
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN, _WINDOW_SIZE = range(6)


class ShellService:
    """Runs one command for one stream."""

    def __init__(
        self, phone: EmulatedPhone, stream: Stream, command: str, *, v2: bool = False, terminal: bool = True
    ) -> None:
        self._phone = phone
        self._stream = stream
        self._v2 = v2
        self._v2_input = b""
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", phone.paths.to_host(command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if v2 else subprocess.STDOUT,
            cwd=phone.files.root,
            env=phone.environment(),
            start_new_session=True,
        )
        if terminal:
            stream.on_close = self._hang_up

    def serve(self) -> None:
        """Carry bytes until the command has ended and nobody holds its output any more."""
        self._phone.sessions.add(self._process.pid)
        threading.Thread(target=self._feed_stdin, daemon=True).start()
        readers = [threading.Thread(target=self._copy, args=(self._process.stdout, _STDOUT), daemon=True)]
        if self._v2:
            readers.append(threading.Thread(target=self._copy, args=(self._process.stderr, _STDERR), daemon=True))
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        status = self._process.wait()
        self._phone.sessions.discard(self._process.pid)
        if self._v2:
            # A shell reports a death by signal N as 128 + N.
            self._stream.write(_V2_HEADER.pack(_EXIT, 1) + bytes([status if status >= 0 else 128 - status]))

    def _copy(self, pipe: IO[bytes], kind: int) -> None:
        rewriter = self._phone.paths.from_host()
        with pipe, contextlib.suppress(ConnectionGoneError):
            while block := os.read(pipe.fileno(), _BLOCK):
                self._emit(rewriter.feed(self._strike(block)), kind)
            self._emit(rewriter.flush(), kind)

    def _emit(self, data: bytes, kind: int) -> None:
        if data:
            self._stream.write(_V2_HEADER.pack(kind, len(data)) + data if self._v2 else data)

    def _strike(self, block: bytes) -> bytes:
        """Apply the faults that hit programs; only blocks printed while a pushed program runs count."""
        faults = self._phone.faults
        if not faults.any_for_programs():
            return block
        programs = programs_of_session(self._process.pid, self._phone.files.root / "data")
        if not programs:
            return block
        for name, number in (
            ("kill_program_after_bytes", signal.SIGKILL),
            ("stop_program_after_bytes", signal.SIGSTOP),
        ):
            passing = faults.count_down(name, len(block))
            if passing is not None:
                for pid in programs:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
                return block[:passing]
        passing = faults.count_down("garbage_after_bytes", len(block))
        if passing is not None:
            return block[:passing] + b"\x00\xff\xfe\x1b[garbage\x07\n{" + block[passing:]
        return block

    def _feed_stdin(self) -> None:
        assert self._process.stdin
        handle: Callable[[bytes], None] = self._feed_v2 if self._v2 else self._write_stdin
        while data := self._stream.read():
            handle(bytes(data))
        self._close_stdin()

    def _write_stdin(self, data: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):  # the program has closed its input: the rest is dropped
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _feed_v2(self, data: bytes) -> None:
        self._v2_input += data
        while len(self._v2_input) >= _V2_HEADER.size:
            kind, length = _V2_HEADER.unpack_from(self._v2_input)
            end = _V2_HEADER.size + length
            if len(self._v2_input) < end:
                return
            body, self._v2_input = self._v2_input[_V2_HEADER.size : end], self._v2_input[end:]
            if kind == _STDIN:
                self._write_stdin(body)
            elif kind == _CLOSE_STDIN:
                self._close_stdin()

    def _close_stdin(self) -> None:
        assert self._process.stdin
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()

    def _hang_up(self) -> None:
        """What the kernel does to the foreground processes when the pseudo-terminal's master closes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGHUP)
            os.killpg(self._process.pid, signal.SIGCONT)
