"""What a server leaves on its phone, whatever ends it, and a phone that is away while its server starts anew."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from device.candidates import Trial
from device.rpc.address import Address
from device.rpc.archive import pack_bundle
from device.rpc.link import Link, LinkError
from device.rpc.tracker_client import TrackerClient
from tests.emulated_phone import EmulatedPhone

from .conftest import ServeCommand, wait_for, write_candidate

Serve = Callable[..., ServeCommand]
SESSIONS = "/data/local/tmp/structadmm/sessions"


def programs(phone: EmulatedPhone) -> list[list[str]]:
    """Command lines of everything that runs on the phone: its files are where no other program's are."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if any(str(phone.files.root) in word for word in line)]


def sessions(phone: EmulatedPhone) -> list[Path]:
    return list(phone.files.host_path(SESSIONS).glob("*"))


@contextmanager
def endless_kernel(tracker: Address, key: str, phone: EmulatedPhone, directory: Path) -> Iterator[None]:
    """A candidate without end, which a client has the phone run."""
    archive = pack_bundle(write_candidate(directory, bad="hang"))
    with TrackerClient(tracker) as client:
        ticket = client.request(key, wait_s=60)
    assert ticket
    link = Link(ticket)
    link.open()

    def measure() -> None:
        with suppress(LinkError):
            link.measure(archive, Trial(runs=2, timeout_s=250))

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        wait_for(lambda: any("profile" in line for line in programs(phone)), "the kernel to run")
        yield
    finally:
        link.close()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_interrupted_ends_its_kernel_on_the_phone_and_tidies_it(
    number: signal.Signals,
    tracker: Address,
    key: str,
    serve: Serve,
    make_phone: Callable[..., EmulatedPhone],
    tmp_path: Path,
) -> None:
    phone = make_phone()
    server = serve(f"adb:127.0.0.1:{phone.port}")
    with endless_kernel(tracker, key, phone, tmp_path):
        assert len(sessions(phone)) == 1
        server.process.send_signal(number)
        assert server.process.wait(60) == 128 + number
        assert programs(phone) == []
        assert sessions(phone) == []


def test_the_kernel_of_a_bridge_that_was_killed_is_ended_before_the_phone_is_offered_again(
    tracker: Address, key: str, serve: Serve, make_phone: Callable[..., EmulatedPhone], tmp_path: Path
) -> None:
    phone = make_phone()
    server = serve(f"adb:127.0.0.1:{phone.port}")
    with endless_kernel(tracker, key, phone, tmp_path):
        [before] = sessions(phone)
        server.bridge().kill()
        wait_for(lambda: server.log().count(f"as {key}") == 2, "the phone to be offered again")
        assert programs(phone) == []
        [after] = sessions(phone)
        assert after != before


def test_a_bridge_that_is_started_again_waits_for_a_phone_that_is_away(
    key: str, serve: Serve, make_phone: Callable[..., EmulatedPhone]
) -> None:
    phone = make_phone()
    port = phone.port
    server = serve(f"adb:127.0.0.1:{port}")
    phone.stop()
    server.bridge().kill()
    wait_for(lambda: "was killed by signal 9" in server.log(), "the bridge to be missed")
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(5.0)  # a server whose phone was never there ends in a second
    make_phone(port)
    wait_for(server.is_free, "the phone to be offered again")
