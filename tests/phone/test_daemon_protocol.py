"""The emulated daemon against packets written by hand, independent of any client library."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, utils

from tests.emulated_phone import EmulatedPhone

CHECKED, UNCHECKED = 0x01000000, 0x01000001


class Host:
    """The host's side of the protocol, one packet at a time."""

    opened: ClassVar[list[socket.socket]] = []

    def __init__(self, phone: EmulatedPhone) -> None:
        self.socket = socket.create_connection(("127.0.0.1", phone.port), timeout=5)
        self.opened.append(self.socket)

    def send(self, name: bytes, arg0: int, arg1: int, data: bytes = b"", *, check: int | None = None) -> None:
        command = int.from_bytes(name, "little")
        total = sum(data) if check is None else check
        self.socket.sendall(struct.pack("<6I", command, arg0, arg1, len(data), total, command ^ 0xFFFFFFFF) + data)

    def receive(self) -> tuple[bytes, int, int, bytes, int]:
        header = self._exactly(24)
        command, arg0, arg1, length, check, magic = struct.unpack("<6I", header)
        assert magic == command ^ 0xFFFFFFFF
        return command.to_bytes(4, "little"), arg0, arg1, self._exactly(length), check

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            block = self.socket.recv(size - len(data))
            if not block:
                raise EOFError
            data += block
        return data

    def go_online(self, version: int = UNCHECKED, max_payload: int = 1 << 20) -> bytes:
        self.send(b"CNXN", version, max_payload, b"host::\0")
        name, _, _, banner, _ = self.receive()
        assert name == b"CNXN"
        return banner

    def expect_closed(self) -> None:
        try:
            self.receive()
        except (EOFError, ConnectionResetError):
            return
        raise AssertionError("the daemon kept the connection")


@pytest.fixture(autouse=True)
def _close_sockets() -> Iterator[None]:
    yield
    while Host.opened:
        Host.opened.pop().close()


@pytest.fixture
def open_phone(tmp_path: Path) -> Iterator[EmulatedPhone]:
    with EmulatedPhone(tmp_path / "phone", requires_authorisation=False) as phone:
        yield phone


@pytest.fixture
def host(open_phone: EmulatedPhone) -> Host:
    return Host(open_phone)


def test_the_banner_names_the_device_and_its_features(tmp_path: Path) -> None:
    with EmulatedPhone(tmp_path / "phone", requires_authorisation=False, features=("cmd", "shell_v2")) as phone:
        banner = Host(phone).go_online()
    assert banner.startswith(b"device::ro.product.name=")
    assert banner.endswith(b"features=cmd,shell_v2")


def test_a_shell_stream_carries_output_and_is_closed_by_the_phone(host: Host) -> None:
    host.go_online()
    host.send(b"OPEN", 7, 0, b"shell:echo hello\0")
    name, remote, local, _, _ = host.receive()
    assert (name, local) == (b"OKAY", 7)
    name, arg0, arg1, data, _ = host.receive()
    assert (name, arg0, arg1, data) == (b"WRTE", remote, 7, b"hello\n")
    host.send(b"OKAY", 7, remote)
    assert host.receive()[:3] == (b"CLSE", remote, 7)


def test_the_phone_sends_nothing_more_before_its_packet_was_answered(host: Host) -> None:
    host.go_online(max_payload=4096)
    host.send(b"OPEN", 1, 0, b"exec:head -c 9000 /dev/zero\0")
    remote = host.receive()[1]
    sizes = []
    for _ in range(3):
        name, _, _, data, _ = host.receive()
        assert name == b"WRTE"
        sizes.append(len(data))
        if len(sizes) < 3:
            host.socket.settimeout(0.2)
            with pytest.raises(TimeoutError):
                host.receive()
            host.socket.settimeout(5)
        host.send(b"OKAY", 1, remote)
    assert max(sizes) <= 4096
    assert sum(sizes) == 9000


def test_a_second_packet_before_the_first_was_taken_breaks_the_protocol(host: Host, open_phone: EmulatedPhone) -> None:
    host.go_online()
    host.send(b"OPEN", 1, 0, b"exec:sleep 5\0")
    remote = host.receive()[1]
    # `sleep` reads no input: the daemon takes one packet for the pipe, whose 64 KiB these two overfill.
    for _ in range(3):
        host.send(b"WRTE", 1, remote, bytes(200_000))
    with pytest.raises((EOFError, ConnectionResetError)):
        while True:
            host.receive()
    assert "before the last one was answered" in open_phone.protocol_errors[0]


def test_unknown_services_are_refused_by_close_with_a_zero_id(host: Host) -> None:
    host.go_online()
    for service in (b"reboot:", b"tcpip:5555", b"framebuffer:", b"shell,v2,raw:ls", b"no such thing"):
        host.send(b"OPEN", 3, 0, service + b"\0")
        assert host.receive()[:3] == (b"CLSE", 0, 3), service


def test_closing_a_stream_hangs_up_its_program_and_is_confirmed(host: Host, open_phone: EmulatedPhone) -> None:
    host.go_online()
    host.send(b"OPEN", 1, 0, b"exec:sleep 60\0")
    remote = host.receive()[1]
    host.send(b"CLSE", 1, remote)
    assert host.receive()[:3] == (b"CLSE", remote, 1)
    host.send(b"OPEN", 2, 0, b"exec:echo still here\0")
    assert host.receive()[0] == b"OKAY"
    assert host.receive()[3] == b"still here\n"


def test_payloads_carry_checksums_up_to_version_1_and_none_after(open_phone: EmulatedPhone) -> None:
    for version, expected in ((CHECKED, sum(b"hi\n")), (UNCHECKED, 0)):
        host = Host(open_phone)
        host.go_online(version)
        host.send(b"OPEN", 1, 0, b"exec:echo hi\0")
        host.receive()
        name, _, _, data, check = host.receive()
        assert (name, data, check) == (b"WRTE", b"hi\n", expected)


def test_a_wrong_checksum_ends_a_connection_that_agreed_on_checksums_only(open_phone: EmulatedPhone) -> None:
    strict, lax = Host(open_phone), Host(open_phone)
    strict.go_online(CHECKED)
    strict.send(b"OPEN", 1, 0, b"exec:echo hi\0", check=1)
    strict.expect_closed()
    lax.go_online(UNCHECKED)
    lax.send(b"OPEN", 1, 0, b"exec:echo hi\0", check=1)
    assert lax.receive()[0] == b"OKAY"


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (struct.pack("<6I", 0x4E584E43, 1, 1, 0, 0, 0), "magic"),
        (struct.pack("<6I", 0x12345678, 1, 1, 0, 0, 0x12345678 ^ 0xFFFFFFFF), "unknown command"),
        (struct.pack("<6I", 0x45545257, 1, 1, (1 << 20) + 1, 0, 0x45545257 ^ 0xFFFFFFFF), "at most 1048576"),
        (struct.pack("<6I", 0x4E45504F, 1, 0, 0, 0, 0x4E45504F ^ 0xFFFFFFFF), "before the connection was authorised"),
    ],
    ids=["magic", "command", "length", "order"],
)
def test_packets_that_adbd_would_not_take_end_the_connection(
    host: Host, open_phone: EmulatedPhone, packet: bytes, complaint: str
) -> None:
    host.socket.sendall(packet)
    host.expect_closed()
    assert complaint in open_phone.protocol_errors[0]


def _sign(key: Path, token: bytes) -> bytes:
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    return private.sign(token, padding.PKCS1v15(), utils.Prehashed(hashes.SHA1()))  # type: ignore[union-attr, call-arg, arg-type]


def _begin(phone: EmulatedPhone) -> tuple[Host, bytes]:
    host = Host(phone)
    host.send(b"CNXN", UNCHECKED, 1 << 20, b"host::\0")
    name, kind, _, token, _ = host.receive()
    assert (name, kind, len(token)) == (b"AUTH", 1, 20)
    return host, token


def test_a_signature_of_an_allowed_key_is_accepted(phone: EmulatedPhone, key: Path) -> None:
    host, token = _begin(phone)
    host.send(b"AUTH", 2, 0, _sign(key, token))
    assert host.receive()[0] == b"CNXN"


def test_a_signature_of_another_token_gets_a_new_token(phone: EmulatedPhone, key: Path) -> None:
    host, token = _begin(phone)
    host.send(b"AUTH", 2, 0, _sign(key, bytes(20)))
    name, kind, _, other, _ = host.receive()
    assert (name, kind) == (b"AUTH", 1)
    assert other != token


def test_an_unknown_key_is_let_in_only_when_a_person_allows_it(tmp_path: Path, key: Path) -> None:
    public = key.with_name("adbkey.pub").read_bytes()
    answers = [False, True]
    with EmulatedPhone(tmp_path / "phone", answer=lambda _key: answers.pop(0)) as phone:
        refused, token = _begin(phone)
        refused.send(b"AUTH", 2, 0, _sign(key, token))
        assert refused.receive()[0] == b"AUTH"
        refused.send(b"AUTH", 3, 0, public + b"\0")
        refused.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):  # the dialogue stays open; nothing is said
            refused.receive()
        allowed, _ = _begin(phone)
        allowed.send(b"AUTH", 3, 0, public + b"\0")
        assert allowed.receive()[0] == b"CNXN"
        remembered, token = _begin(phone)
        remembered.send(b"AUTH", 2, 0, _sign(key, token))
        assert remembered.receive()[0] == b"CNXN"
    assert answers == []
