"""The tracker among clients that vanish, that are too many, or that register nonsense."""

from __future__ import annotations

import json
import resource
import socket
import struct
import sys
import time
from pathlib import Path

import psutil
import pytest

from device.rpc.address import Address
from device.rpc.fleet import query_fleet
from device.rpc.tracker import listen
from device.rpc.tracker_client import TrackerClient, TrackerCode
from structadmm.errors import UserError

from .conftest import tracker_process, wait_for

MAGIC = struct.pack("<i", 0x2F271)


def register(tracker: Address, info: dict[str, object]) -> socket.socket:
    """A connection that says this about itself."""
    data = json.dumps([TrackerCode.UPDATE_INFO, info]).encode()
    sock = socket.create_connection((tracker.host, tracker.port))
    sock.sendall(MAGIC)
    sock.recv(4, socket.MSG_WAITALL)
    sock.sendall(struct.pack("<i", len(data)) + data)
    sock.recv(5, socket.MSG_WAITALL)
    return sock


@pytest.mark.parametrize(
    "info",
    [
        {"key": "server:k", "addr": [None, "x"]},
        {"key": "server:k", "addr": [None]},
        {"key": 5, "addr": [None, 1]},
        {"key": "server:k", "addr": ["h", 1], "structadmm": "me"},
    ],
)
def test_a_server_that_registers_nonsense_hides_no_other(tracker: Address, key: str, info: dict[str, object]) -> None:
    with TrackerClient(tracker) as good:
        good.announce(key, None, 9000, {})
        with register(tracker, info):
            assert [server.address for server in query_fleet(tracker).of_key(key)] == ["127.0.0.1:9000"]


def test_a_tracker_with_more_clients_than_descriptors_serves_those_that_are_left_when_some_leave() -> None:
    with tracker_process() as (process, address):
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (64, 64))
        clients = [socket.create_connection((address.host, address.port)) for _ in range(80)]
        wait_for(lambda: psutil.Process(process.pid).num_fds() == 64, "the last descriptor to be taken")
        before = sum(psutil.Process(process.pid).cpu_times()[:2])
        time.sleep(2.0)
        assert sum(psutil.Process(process.pid).cpu_times()[:2]) - before < 0.5
        for client in clients:
            client.close()
        assert query_fleet(address).servers == ()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's way to ask how often a connection is tested")
def test_a_tracker_asks_after_connections_on_which_nothing_is_said(tracker: Address) -> None:
    with socket.create_connection((tracker.host, tracker.port)) as sock:
        local = sock.getsockname()[1]

        def timers() -> list[str]:
            return [
                line[5][:2]
                for line in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
                if line[1].endswith(f":{tracker.port:04X}") and line[2].endswith(f":{local:04X}")
            ]

        wait_for(timers, "the connection")
        assert timers() == ["02"]  # a timer that is no retransmission: keep-alive


def test_an_address_that_is_none_is_one_line() -> None:
    with pytest.raises(UserError, match="choose another --host or --port"):
        listen("a..b", 0)
