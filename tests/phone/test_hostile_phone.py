"""`AdbTarget` against phones that lie: scripted daemons that send what no adbd would."""

from __future__ import annotations

import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.adb_address import AdbAddress
from device.adb_command import WrappedCommand
from device.adb_target import AdbTarget
from device.errors import DeviceError, TargetOfflineError
from device.phone_facts import parse_identity, parse_lines, parse_state

Script = Callable[["Daemon"], None]


class Daemon:
    """The phone's side of one connection, without manners."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, name: bytes, arg0: int, arg1: int, data: bytes = b"", *, length: int | None = None) -> None:
        command = int.from_bytes(name, "little")
        size = len(data) if length is None else length
        self._socket.sendall(struct.pack("<6I", command, arg0, arg1, size, 0, command ^ 0xFFFFFFFF) + data)

    def raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> tuple[bytes, int, bytes]:
        """Command, the host's stream, payload."""
        command, arg0, _, length, _, _ = struct.unpack("<6I", self._exactly(24))
        return command.to_bytes(4, "little"), arg0, self._exactly(length)

    def go_online(self) -> None:
        assert self.receive()[0] == b"CNXN"
        self.send(b"CNXN", 0x01000001, 1 << 20, b"device::")

    def open_stream(self) -> tuple[int, bytes]:
        """Accept whatever the host opens; its stream and the service's name."""
        name, stream, service = self.receive()
        assert name == b"OPEN"
        self.send(b"OKAY", 9, stream)
        return stream, service

    def answer_command(self, output: bytes) -> None:
        """Let a wrapped command end well with `output`."""
        stream, service = self.open_stream()
        token = service.split(b"STRUCTADMM_RUN=", 1)[1][:32]
        self.send(b"WRTE", 9, stream, output + b"\n" + token + b":0:\n" + token + b":end")
        assert self.receive()[0] == b"OKAY"
        self.send(b"CLSE", 9, stream)
        self.receive()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = self._socket.recv(min(1 << 16, size - len(data)))
            if not block:
                raise EOFError
            data += block
        return data


@contextmanager
def hostile_phone(script: Script, key: Path) -> Iterator[AdbTarget]:
    """A target connected to a daemon that runs `script` on every connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                try:
                    script(Daemon(sock))
                    while sock.recv(1 << 16):
                        pass
                except (OSError, EOFError):
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = AdbAddress(host="127.0.0.1", port=listener.getsockname()[1])
    target = AdbTarget(address, key=key, connect_timeout_s=1.0, io_timeout_s=1.0, command_timeout_s=1.0)
    try:
        yield target
    finally:
        target.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def _expect_one_line(script: Script, key: Path, match: str) -> None:
    with hostile_phone(script, key) as target:
        with pytest.raises(TargetOfflineError, match=match) as caught:
            target.facts()
        assert "\n" not in str(caught.value)


def test_something_that_is_no_adb_is_said_to_be_none(key: Path) -> None:
    def script(daemon: Daemon) -> None:
        daemon.raw(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    _expect_one_line(script, key, "does not speak adb")


def test_a_packet_that_claims_four_gigabytes_is_refused_before_memory_is_taken(key: Path) -> None:
    def script(daemon: Daemon) -> None:
        daemon.go_online()
        stream, _ = daemon.open_stream()
        daemon.send(b"WRTE", 9, stream, b"x", length=0xFFFFFFFF)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _expect_one_line(script, key, "does not speak adb")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_packets_for_streams_that_nobody_opened_are_dropped(key: Path) -> None:
    def script(daemon: Daemon) -> None:
        daemon.go_online()
        for stray in range(200):
            daemon.send(b"WRTE", 77, 1000 + stray, bytes(100_000))
        daemon.answer_command(b"model=Quiet")
        daemon.answer_command(b"")

    with hostile_phone(script, key) as target:
        assert target.facts()["model"] == "Quiet"
        store = target._connection._io_manager._packet_store  # type: ignore[union-attr]
        assert len(store) == 0


def test_a_command_whose_shell_ends_early_is_no_success(key: Path) -> None:
    def script(daemon: Daemon) -> None:
        daemon.go_online()
        while True:
            stream, _ = daemon.open_stream()
            daemon.send(b"WRTE", 9, stream, b"\n0:0:\n0:end")
            daemon.receive()
            daemon.send(b"CLSE", 9, stream)
            daemon.receive()

    _expect_one_line(script, key, "ended the command's shell early")


def test_a_phone_that_refuses_every_service_is_said_to(key: Path) -> None:
    def script(daemon: Daemon) -> None:
        daemon.go_online()
        while True:
            _, stream, _ = daemon.receive()
            daemon.send(b"CLSE", 0, stream)

    _expect_one_line(script, key, "refused the service")


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (struct.pack("<4sI", b"DATA", 0xFFFFFFFF), TargetOfflineError, "with length 4294967295"),
        (struct.pack("<4sI", b"WHAT", 0), TargetOfflineError, "expected a block"),
        (struct.pack("<4sI", b"FAIL", 0xFFFFFFFF) + b"\x1b[2Jno\n" * 600, DeviceError, r"refused the file: \?\[2Jno\?"),
        (struct.pack("<4sI", b"DATA", 4) + b"evil" + struct.pack("<4sI", b"DONE", 0), TargetOfflineError, "damaged"),
    ],
    ids=["length", "name", "failure", "content"],
)
def test_a_lying_file_transfer_leaves_nothing(
    key: Path, tmp_path: Path, answer: bytes, error: type[Exception], match: str
) -> None:
    def script(daemon: Daemon) -> None:
        daemon.go_online()
        while True:
            name, stream, service = daemon.receive()
            if name == b"CLSE":
                daemon.send(b"CLSE", 9, stream)
                continue
            daemon.send(b"OKAY", 9, stream)
            if service == b"sync:\0":
                daemon.receive()
                daemon.send(b"OKAY", 9, stream)
                daemon.send(b"WRTE", 9, stream, answer)
                daemon.receive()
            else:
                token = service.split(b"STRUCTADMM_RUN=", 1)
                said = b"4" if b"wc -c" in service else b"0" * 64
                output = said + b"\n%b:0:\n%b:end" % ((token[1][:32],) * 2) if len(token) == 2 else b""
                if output:
                    daemon.send(b"WRTE", 9, stream, output)
                    daemon.receive()
                daemon.send(b"CLSE", 9, stream)
                daemon.receive()

    with hostile_phone(script, key) as target, pytest.raises(error, match=match) as caught:
        target.pull("/data/local/tmp/x", tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300))
def test_whatever_a_phone_says_about_itself_is_read_without_an_error(text: str) -> None:
    parse_identity(text)
    state = parse_state(text)
    for value in parse_lines(text).values():
        assert value.isprintable()
        assert len(value) <= 200
    assert all(-40 < degrees < 150 for degrees in state.temperatures_c.values())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("gpu_temperature=31000", 31.0),
        ("gpu_temperature=31", 31.0),
        ("gpu_temperature=-274000", None),
        ("gpu_temperature=2147483647", None),
        ("gpu_temperature=nan", None),
        ("gpu_temperature=1e400", None),
        ("gpu_temperature=Permission denied", None),
    ],
)
def test_a_temperature_is_a_temperature_or_unknown(line: str, expected: float | None) -> None:
    assert parse_state(line).gpu_temperature_c == expected


@settings(deadline=None, max_examples=200)
@given(status=st.integers(0, 255), output=st.binary(max_size=200), errors=st.binary(max_size=200))
def test_a_commands_three_results_are_told_apart_whatever_it_printed(status: int, output: bytes, errors: bytes) -> None:
    wrapped = WrappedCommand("true")
    token = wrapped.token.encode()
    printed = output + b"\n%b:%d:" % (token, status) + errors + b"\n%b:end" % token
    assert wrapped.parse(printed) == (status, output, errors)
    assert wrapped.parse(printed[:-1]) is None
