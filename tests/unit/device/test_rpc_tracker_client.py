"""What a tracker's client makes of a tracker that is silent, slow or talks nonsense."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from device.rpc import tracker_client
from device.rpc.address import Address
from device.rpc.tracker_client import TrackerClient, TrackerCode, TrackerError
from tests.rpc.sockets import receive

Say = Callable[[Any], None]


@contextmanager
def tracker_that(answers: Callable[[list[Any], Say], None]) -> Iterator[Address]:
    """A tracker for one connection, which is told each message and how to say something."""

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:

            def say(value: Any) -> None:
                data = json.dumps(value).encode()
                sock.sendall(struct.pack("<i", len(data)) + data)

            try:
                sock.sendall(receive(sock, 4))
                while True:
                    (size,) = struct.unpack("<i", receive(sock, 4))
                    answers(json.loads(receive(sock, size)), say)
            except (EOFError, OSError):
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join()


def test_who_waits_for_a_device_notices_that_the_tracker_is_not_there_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_client, "_PING_EVERY_S", 0.05)
    heard: list[Any] = []
    with (
        tracker_that(lambda message, say: heard.append(message)) as address,
        TrackerClient(address, timeout_s=0.2) as client,
        pytest.raises(TrackerError, match="does not answer"),
    ):
        client.request("k", wait_s=60.0)
    assert heard == [[TrackerCode.REQUEST, "k", "", 1], [TrackerCode.PING]]


def test_who_waits_for_a_device_goes_on_while_the_tracker_answers_and_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_client, "_PING_EVERY_S", 0.05)
    pings = 0

    def answer(message: list[Any], say: Say) -> None:
        nonlocal pings
        if message[0] == TrackerCode.PING:
            pings += 1
            if pings == 4:  # the device comes before the answer that is awaited
                say([TrackerCode.SUCCESS, ["phone", 9000, "k:1"]])
            say(TrackerCode.SUCCESS)
        elif message[0] == TrackerCode.GET_PENDING_MATCHKEYS:
            say(["k:2"])

    with tracker_that(answer) as address, TrackerClient(address, timeout_s=10.0) as client:
        assert client.request("k", wait_s=0.1) is None
        ticket = client.request("k", wait_s=60.0)
        assert ticket
        assert (ticket.host, ticket.port, ticket.match_key) == ("phone", 9000, "k:1")
        assert client.unclaimed() == ["k:2"]
    assert pings == 4


def test_a_tracker_that_takes_a_connection_and_says_nothing_is_given_the_time_that_was_asked_for() -> None:
    with tracker_that(lambda message, say: None) as address, TrackerClient(address) as client:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client.address = Address("127.0.0.1", silent.getsockname()[1])
            since = time.monotonic()
            with pytest.raises(TrackerError, match="does not answer"):
                client.reconnect(timeout_s=0.1)
        assert time.monotonic() - since < 5.0  # of the 10 that a first connection is given
        assert not client.connected
