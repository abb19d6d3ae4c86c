"""The process that holds one session, with TVM's server loop in it, against clients that TVM's own are not."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from device.rpc.archive import MAX_ARCHIVE_BYTES
from device.rpc.packets import PROTOCOL_VERSION, Code, arguments, packet, string, text
from device.rpc.processes import Partner
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
    with client:
        yield partner, client
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
