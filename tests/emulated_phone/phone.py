"""The phone: a TCP port on which an adb daemon answers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from tests.emulated_phone import wire
from tests.emulated_phone.authorisation import Authorisation
from tests.emulated_phone.connection import Connection, Stream, wait_for_hang_up
from tests.emulated_phone.faults import Faults
from tests.emulated_phone.files import PathRewriter, PhoneFiles
from tests.emulated_phone.processes import programs_of_session
from tests.emulated_phone.shell_service import ShellService
from tests.emulated_phone.sync_service import SyncService
from tests.emulated_phone.thermal import ThermalModel, Thermals
from tests.emulated_phone.wire import Packet

ALL_FEATURES = ("cmd", "shell_v2", "stat_v2", "ls_v2")

Service = Callable[[Stream], None]


class EmulatedPhone:
    """An adb daemon over TCP; a context manager that listens while open.

    Args:
        root: directory that becomes the phone's `/`.
        port: TCP port on 127.0.0.1; 0 takes a free one (see `port` afterwards).
        features: what the banner advertises, of `ALL_FEATURES`; hosts choose their services by it.
        requires_authorisation: whether unknown RSA keys have to be allowed.
        answer: what the person says when an unknown key asks; None: always "Allow".
        version: protocol version of the daemon; 0x01000000 (checksums) or 0x01000001.
        max_payload: largest packet the daemon takes.
        environment: variables for programs, such as those that lead to an OpenCL driver of this computer. A PATH comes
            after the phone's own tools; PoCL needs one to find its linker.
        thermal_model: how the phone warms up and throttles; None: it stays cool.
    """

    def __init__(
        self,
        root: Path,
        *,
        port: int = 0,
        features: tuple[str, ...] = (),
        requires_authorisation: bool = True,
        answer: Callable[[bytes], bool] | None = None,
        version: int = wire.VERSION_WITHOUT_CHECKSUM,
        max_payload: int = wire.MAX_PAYLOAD,
        environment: Mapping[str, str] | None = None,
        thermal_model: ThermalModel | None = None,
    ) -> None:
        self.faults = Faults()
        self.files = PhoneFiles(root, self.faults)
        self.paths = PathRewriter(self.files.root)
        self.authorisation = Authorisation(self.files.root / "data/misc/adb/adb_keys", answer or (lambda _key: True))
        self.features = features
        self.requires_authorisation = requires_authorisation
        self.version = version
        self.max_payload = max_payload
        self.stopping = threading.Event()
        self.sessions: set[int] = set()
        self.protocol_errors: list[str] = []
        self.opened_services: list[str] = []
        self.packets: deque[str] = deque(maxlen=200)
        self._environment = dict(environment or {})
        self.thermals: Thermals | None = None
        if thermal_model:
            self.thermals = Thermals(thermal_model, self.files, lambda: self.signal_programs(0) > 0)
            self._environment |= self.thermals.environment()
        self._requested_port = port
        self._listener: socket.socket | None = None
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        self._up_again_at = 0.0

    def __enter__(self) -> EmulatedPhone:
        listener = socket.create_server(("127.0.0.1", self._requested_port), backlog=16)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        if self.thermals:
            self.thermals.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The TCP port that hosts connect to."""
        if self._listener is None:
            raise RuntimeError("the phone is not on")
        return int(self._listener.getsockname()[1])

    @property
    def serial(self) -> str:
        """What adb calls this phone."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Switch the phone off: connections end and so do the programs they started."""
        self.stopping.set()
        if self._listener:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            self._listener.close()
        self._end_everything()
        if self.thermals:
            self.thermals.stop()

    def reboot(self, down_s: float) -> None:
        """Drop every connection and every program, and refuse new connections for `down_s` seconds."""
        self._up_again_at = time.monotonic() + down_s
        self._end_everything()

    def unplug(self) -> None:
        """Reset every connection; programs get SIGHUP."""
        for connection in self._open_connections():
            connection.reset()

    def signal_programs(self, number: int) -> int:
        """Send a signal to every pushed program that runs now, as the low-memory killer sends SIGKILL.

        Returns:
            how many got it.
        """
        count = 0
        for session in list(self.sessions):
            for pid in programs_of_session(session, self.files.root / "data"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    count += 1
        return count

    def banner(self) -> bytes:
        """The system identity that CNXN carries."""
        fields = ["ro.product.name=emulated", "ro.product.model=Emulated Phone", "ro.product.device=emulated"]
        fields.append("features=" + ",".join(self.features))
        return ("device::" + ";".join(fields)).encode()

    def environment(self) -> dict[str, str]:
        """Environment of a program that the shell starts."""
        variables = {"HOME": str(self.files.root / "data"), "TMPDIR": str(self.files.root / "data/local/tmp")}
        variables |= {"ANDROID_DATA": "/data", "ANDROID_ROOT": "/system", **self._environment}
        tools = str(self.files.root / "system/bin")
        variables["PATH"] = f"{tools}:{self._environment['PATH']}" if "PATH" in self._environment else tools
        if self.faults.disk_free_bytes is not None:
            variables["EMULATED_FREE_KIB"] = str(self.faults.disk_free_bytes // 1024)
        return variables

    def find_service(self, name: str) -> Service | None:
        """The service behind the name in an OPEN; None is answered by CLSE, as for anything adbd does not offer."""
        self.opened_services.append(name)
        kind, _, argument = name.partition(":")
        if kind == "sync":
            return lambda stream: SyncService(self, stream).serve()
        if kind == "shell" or kind.startswith("shell,"):
            v2 = "v2" in kind.split(",")
            if v2 and "shell_v2" not in self.features:
                return None
            if not argument:
                return partial(_say, text="an interactive shell is not emulated: pass a command\n")
            return partial(self._shell, command=argument, v2=v2)
        if kind == "exec":
            return partial(self._shell, command=argument, v2=False, terminal=False)
        if kind == "root":
            return partial(_say, text="adbd cannot run as root in production builds\n")
        if kind == "remount":
            return partial(_say, text='Not running as root. Try "adb root" first.\n')
        return None  # reboot:, tcpip:, usb:, framebuffer:, jdwp:, reverse: and the rest are refused

    def _shell(self, stream: Stream, *, command: str, v2: bool, terminal: bool = True) -> None:
        ShellService(self, stream, command, v2=v2, terminal=terminal).serve()

    def note_packet(self, direction: str, packet: Packet) -> None:
        """Keep the last packets, for a test that failed."""
        size = len(packet.payload)
        self.packets.append(f"{direction} {packet.name} {packet.arg0:#x} {packet.arg1:#x} {size} bytes")

    def note_protocol_error(self, text: str) -> None:
        """Remember that a host broke the protocol; its connection is dropped."""
        self.protocol_errors.append(text)

    def _accept(self, listener: socket.socket) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return  # the listener was closed
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.faults.refuse_connections or time.monotonic() < self._up_again_at:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        if self.faults.offline:
            with sock:
                wait_for_hang_up(sock, self.stopping)
            return
        connection = Connection(self, sock)
        with self._lock:
            self._connections.add(connection)
        try:
            connection.serve()
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _open_connections(self) -> list[Connection]:
        with self._lock:
            return list(self._connections)

    def _end_everything(self) -> None:
        for connection in self._open_connections():
            connection.close()
        for session in list(self.sessions):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session, signal.SIGKILL)


def _say(stream: Stream, *, text: str) -> None:
    stream.write(text.encode())
