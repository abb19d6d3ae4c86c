"""The process that holds one session, with TVM's server loop in it, against clients that TVM's own are not."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NoReturn, cast

import pytest

from device.rpc.archive import MAX_ARCHIVE_BYTES
from device.rpc.bridge import Bridge, SupervisorGoneError
from device.rpc.frames import FrameError, Frames
from device.rpc.packets import PROTOCOL_VERSION, Code, arguments, packet, string, text
from device.rpc.processes import Partner
from device.rpc.serve_config import Predecessor, ServeConfig
from device.rpc.session_process import FACTS

INIT = packet(Code.INIT_SERVER, text(PROTOCOL_VERSION), arguments())
GET = packet(Code.GET_GLOBAL_FUNCTION, arguments(string(FACTS)))
PATIENCE_S = 60.0


@contextmanager
def session() -> Iterator[tuple[Partner, socket.socket]]:
    """A session's process as its bridge has it, and the client's end of the connection."""
    client, theirs = socket.socketpair()
    partner = Partner("device.rpc.session_process", handed_over=[theirs], max_payload=MAX_ARCHIVE_BYTES)
    theirs.close()
    client.settimeout(PATIENCE_S)
    try:
        with client:
            yield partner, client
    finally:
        partner.end()


def ask(client: socket.socket, request: bytes) -> tuple[int, bytes]:
    """Code and arguments of the answer."""
    client.sendall(request)
    (size,) = struct.unpack("<Q", client.recv(8, socket.MSG_WAITALL))
    answer = client.recv(size, socket.MSG_WAITALL)
    return struct.unpack_from("<i", answer)[0], answer[4:]


def test_a_function_that_is_released_too_often_can_still_be_called() -> None:
    with session() as (partner, client):
        assert ask(client, INIT)[0] == Code.RETURN
        handle = ask(client, GET)[1][-8:]
        for _ in range(20):
            assert ask(client, packet(Code.FREE_HANDLE, arguments(struct.pack("<i", 4) + handle)))[0] == Code.RETURN
        client.sendall(packet(Code.CALL_FUNCTION, handle, arguments()))
        assert partner.frames.receive(PATIENCE_S)[0] == {"call": "facts"}
        partner.frames.send({"facts": "known"})
        assert b'{"facts": "known"}' in client.recv(1000)


@pytest.mark.parametrize("first", [GET, packet(Code.CALL_FUNCTION, struct.pack("<Q", 4096), arguments())])
def test_a_session_that_was_not_started_is_over_at_the_first_request(first: bytes) -> None:
    with session() as (partner, client), closing(client):
        client.sendall(first)
        message, _ = partner.frames.receive(PATIENCE_S)
        assert "before its session was started" in message["refused"]
        partner.process.wait(PATIENCE_S)
        assert partner.describe_end() == "ended with status 0"


def test_a_client_in_a_slow_network_is_heard_of_before_its_packet_is_whole() -> None:
    with session() as (partner, client):
        ask(client, INIT)
        client.sendall(struct.pack("<Q", 1 << 24) + bytes(1 << 20))
        assert partner.frames.receive(PATIENCE_S)[0]["receiving"] >= 1 << 18


def test_a_session_gives_the_last_answer_and_ends_when_its_bridge_hangs_up() -> None:
    with session() as (partner, client):
        ask(client, INIT)
        handle = ask(client, GET)[1][-8:]
        client.sendall(packet(Code.CALL_FUNCTION, handle, arguments()))
        assert partner.frames.receive(PATIENCE_S)[0] == {"call": "facts"}
        partner.frames.send({"last": "word"})
        partner.finish(PATIENCE_S)
        assert partner.describe_end() == "ended with status 0"
        assert b'{"last": "word"}' in client.recv(1000)


class NoTracker:
    def readers(self) -> list[Any]:
        return []

    def keep(self, ready: list[Any]) -> None:
        del ready


@contextmanager
def held_session(idle_s: float = 60.0) -> Iterator[tuple[socket.socket, Frames, list[Exception]]]:
    """A session that a bridge holds in a thread: its client, what hears the bridge, and how it ended after that."""
    config = ServeConfig(device="local", tracker="127.0.0.1:1", key="k", idle_s=idle_s)
    ours, theirs = socket.socketpair()
    client, accepted = socket.socketpair()
    client.settimeout(PATIENCE_S)
    failures: list[Exception] = []

    def hold() -> None:
        try:
            made = Bridge(config, Frames(ours, max_payload=0), Predecessor())
            made._hold_session(accepted, cast(Any, None), cast(Any, NoTracker()))
        except (KeyError, SupervisorGoneError) as error:
            failures.append(error)

    thread = threading.Thread(target=hold)
    with ours, theirs, client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bridge, "_session_runner", lambda *_: None)
        thread.start()
        yield client, Frames(theirs, max_payload=0), failures
        client.close()
        thread.join()


def test_a_client_hears_that_a_bridge_failed_before_the_session_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(Bridge, "_answer", fail)
    with held_session() as (client, _, failures):
        ask(client, INIT)
        handle = ask(client, GET)[1][-8:]
        answer = ask(client, packet(Code.CALL_FUNCTION, handle, arguments()))[1]
    assert b"its bridge failed (KeyError: 'a mistake of ours')" in answer
    assert len(failures) == 1  # it ends, and its supervisor starts another


def test_a_server_that_is_ended_in_the_middle_of_a_candidate_is_lost_and_has_not_refused_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def say(*_: object) -> NoReturn:
        raise FrameError("the other process is gone")

    monkeypatch.setattr(Bridge, "_answer", say)
    with held_session() as (client, _, failures):
        ask(client, INIT)
        handle = ask(client, GET)[1][-8:]
        client.sendall(packet(Code.CALL_FUNCTION, handle, arguments()))
        assert client.recv(1000) == b""
    assert isinstance(failures[0], SupervisorGoneError)


def test_a_client_that_sends_slowly_is_not_a_silent_one() -> None:
    with held_session(idle_s=4.0) as (client, supervisor, _):
        ask(client, INIT)
        client.sendall(struct.pack("<Q", 1 << 24))
        since = time.monotonic()
        while time.monotonic() - since < 7.0:
            client.sendall(bytes(1 << 18))
            time.sleep(0.7)
        client.sendall(b"x")
        while "say" not in (message := supervisor.receive(PATIENCE_S)[0]):  # from now on it is silent
            assert "within_s" in message
        assert message["say"] == "a client said nothing for 4 s: its session is over"
        assert time.monotonic() - since > 7.0
