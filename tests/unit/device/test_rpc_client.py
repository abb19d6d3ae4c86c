"""A tuner takes nothing but answers from a server, whoever that is. Packets are put together by hand."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from device.rpc import client
from device.rpc.client import ClientError, RpcClient
from tests.rpc.sockets import receive

MAGIC, KEY, HANDLE = 0xFF271, b"server:k", 0x7F0000001000


def packet(code: int, body: bytes = b"") -> bytes:
    return struct.pack("<Qi", 4 + len(body), code) + body


def raw_string(text: bytes) -> bytes:
    return struct.pack("<iQ", 8, len(text)) + text


def arguments(*values: bytes) -> bytes:
    return struct.pack("<i", len(values)) + b"".join(values)


GREETING = struct.pack("<ii", MAGIC, len(KEY)) + KEY
STARTED = packet(4, arguments(struct.pack("<i", 0)))
FOUND = packet(4, arguments(struct.pack("<iQ", 4, HANDLE)))
ANSWER = packet(4, arguments(struct.pack("<iq", 1, 65), raw_string(b"yes")))


@contextmanager
def server_that_says(*lines: bytes) -> Iterator[tuple[RpcClient, list[bytes]]]:
    """A client of a server that sends these one by one, and what the server got for each."""
    heard: list[bytes] = []

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            try:
                _, length = struct.unpack("<ii", receive(sock, 8))
                heard.append(receive(sock, length))
                for line in lines:
                    sock.sendall(line)
                    (size,) = struct.unpack("<Q", receive(sock, 8))
                    heard.append(receive(sock, size))
                sock.recv(1)  # until the client hangs up
            except (EOFError, OSError):
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with closing(RpcClient("127.0.0.1", listener.getsockname()[1], "k:1")) as made:
            yield made, heard
        thread.join()


def use(made: RpcClient) -> str:
    made.open()
    return made.call("measure", b"bundle", "trial", timeout_s=60.0)


def test_a_client_starts_a_session_looks_a_function_up_once_and_calls_it() -> None:
    with server_that_says(GREETING, STARTED, FOUND, ANSWER, ANSWER) as (made, heard):
        assert use(made) == "yes"
        assert made.call("measure", timeout_s=60.0) == "yes"
    assert heard[0] == b"client:k:1"
    assert [struct.unpack_from("<i", packet)[0] for packet in heard[1:]] == [2, 9, 3, 3]


START_A_SESSION_HERE = packet(2, struct.pack("<Q", 5) + b"0.8.0" + arguments())
LOOK_UP_HERE = packet(9, arguments(raw_string(b"ffi.ModuleLoadFromFile")))
CALL_HERE = packet(3, struct.pack("<Q", HANDLE) + arguments(raw_string(b"/tmp/evil.so")))


@pytest.mark.parametrize(
    "request_here", [START_A_SESSION_HERE, LOOK_UP_HERE, CALL_HERE, *map(packet, (0, 1, 6, 7, 11))]
)
@pytest.mark.parametrize("before", [(), (STARTED,), (STARTED, FOUND)])
def test_what_a_server_asks_of_its_client_ends_the_session_unanswered(
    request_here: bytes, before: tuple[bytes, ...]
) -> None:
    said = (GREETING, *before, request_here)
    with server_that_says(*said) as (made, heard), pytest.raises(ClientError, match="which is no answer"):
        use(made)
    assert len(heard) == 2 + len(before)  # the match key, and the requests until then


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ((struct.pack("<i", MAGIC + 2),), "promised to somebody else"),
        ((b"HTTP/1.1 400",), "no TVM RPC server"),
        ((GREETING, struct.pack("<Q", 1 << 40)), "expected at most"),
        ((GREETING, packet(5, arguments(raw_string(b"two\nlines")))), "it said: two lines"),
        ((GREETING, STARTED, packet(4, arguments(raw_string(b"handle")))), "expected a handle"),
        ((GREETING, STARTED, FOUND, packet(4, arguments(struct.pack("<iQ", 1, 5)))), "no string"),
        ((GREETING, STARTED, FOUND, ANSWER[:-1].replace(ANSWER[:8], struct.pack("<Q", len(ANSWER) - 9))), "ends early"),
    ],
)
def test_an_answer_that_makes_no_sense_is_one_line(said: tuple[bytes, ...], match: str) -> None:
    with server_that_says(*said) as (made, _), pytest.raises(ClientError, match=match) as caught:
        use(made)
    assert "\n" not in str(caught.value)


def test_a_server_that_says_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with server_that_says(GREETING, STARTED, FOUND) as (made, _):
        made.open()
        with pytest.raises(ClientError, match="no answer in time"):
            made.call("measure", timeout_s=0.1)
    monkeypatch.setattr(client, "_START_S", 0.1)
    with server_that_says() as (made, _), pytest.raises(ClientError, match="no answer in time"):
        made.open()


@pytest.mark.parametrize("said", [(), (GREETING,), (GREETING, STARTED, FOUND)], ids=["greeting", "start", "call"])
def test_closing_ends_another_threads_wait_at_once(said: tuple[bytes, ...]) -> None:
    with server_that_says(*said) as (made, heard):
        ends: list[str] = []

        def wait() -> None:
            try:
                use(made)
            except ClientError as error:
                ends.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        while len(heard) <= len(said):
            time.sleep(0.01)
        since = time.monotonic()
        made.close()
        thread.join()
        assert time.monotonic() - since < 10.0  # of the 60 s that it would have waited
    assert "hung up" in ends[0]
