"""`structadmm rpc` as a user meets it: what goes wrong is one line, and a bridge that hangs is started again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from device.candidates import Trial
from device.local_target import LocalDevice
from device.rpc import serve
from device.rpc.address import Address
from device.rpc.archive import pack_bundle
from device.rpc.link import Link
from device.rpc.processes import Partner
from device.rpc.serve_config import Predecessor, ServeConfig
from device.rpc.tracker import listen
from device.rpc.tracker_client import TrackerClient
from structadmm.errors import UserError
from structadmm.progress import SilentReporter

from .conftest import ServeCommand, tracker_process, wait_for, write_candidate

REPOSITORY = Path(__file__).parents[2]


def structadmm(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "structadmm", *arguments]
    wide = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=wide)


def expect_one_line(done: subprocess.CompletedProcess[str], match: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("structadmm: ")
    assert match in line


@contextmanager
def listener_that(answers: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that listens and is no tracker."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(4)  # closing with something unread would be a reset
                answers(client)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_query_shows_servers_with_their_devices(shared: ServeCommand, gpu: LocalDevice) -> None:
    done = structadmm("rpc", "query", "--tracker", str(shared.tracker), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [server] = [server for server in found["servers"] if server["key"] == shared.key]
    assert (server["device"], server["busy"], server["facts"]["kind"]) == (gpu.name, False, "host")
    assert server["facts"]["gpu"]
    assert server["facts"]["driver"]
    assert found["keys"][shared.key] == {"free": 1, "pending": 0}
    table = structadmm("rpc", "query", "--tracker", str(shared.tracker))
    assert table.returncode == 0
    assert shared.key in table.stdout


@pytest.mark.parametrize("command", ["query", "serve"])
def test_a_tracker_that_is_not_there_is_one_line(command: str) -> None:
    options = ["--key", "k", "--give-up-s", "0"] if command == "serve" else []
    done = structadmm("rpc", command, "--tracker", f"127.0.0.1:{free_port()}", *options)
    expect_one_line(done, "start one with `structadmm rpc tracker`")


def test_something_else_at_the_trackers_port_is_one_line() -> None:
    with listener_that(lambda client: client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        expect_one_line(structadmm("rpc", "query", "--tracker", address), "is no TVM RPC tracker")
    with listener_that(lambda client: None) as address:
        expect_one_line(structadmm("rpc", "query", "--tracker", address), "hung up")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["--tracker", "127.0.0.1:1", "--key", "k", "--device", "toaster"], "unknown device 'toaster'"),
        (["--tracker", "127.0.0.1:1", "--key", "two words"], "key 'two words': expected"),
        (["--tracker", "127.0.0.1:99999", "--key", "k"], "expected HOST:PORT"),
        (["--tracker", "10.0.0.1:9190", "--key", "k"], "give --host"),
    ],
    ids=["device", "key", "address", "loopback"],
)
def test_a_mistake_in_serve_is_one_line(options: list[str], match: str) -> None:
    expect_one_line(structadmm("rpc", "serve", *options), match)


def test_a_taken_port_is_one_line(tracker: Address) -> None:
    expect_one_line(structadmm("rpc", "tracker", "--port", str(tracker.port)), "choose another --host or --port")


def test_a_server_in_use_is_listed_again_by_a_tracker_that_was_started_again(gpu: LocalDevice, tmp_path: Path) -> None:
    with tracker_process() as (process, address):
        server = ServeCommand(address, "k", gpu.name, tmp_path / "serve.log")
        try:
            with TrackerClient(address) as client:
                ticket = client.request("k", wait_s=60)
            assert ticket
            with closing(Link(ticket)) as link:
                link.open()
                process.kill()
                process.wait()
                with tracker_process("--port", str(address.port)):
                    wait_for(
                        lambda: [found.busy for found in server.listed()] == [True], "the busy server to be listed"
                    )
                    archive = pack_bundle(write_candidate(tmp_path))
                    assert link.measure(archive, Trial(runs=2, warmup_runs=1)).status == "ok"
                    link.close()
                    wait_for(server.is_free, "the server to be free")
        finally:
            server.end()


def test_serve_says_at_once_that_it_waits_for_a_tracker(gpu: LocalDevice, tmp_path: Path) -> None:
    tracker = f"127.0.0.1:{free_port()}"
    argv = [sys.executable, "-m", "structadmm", "rpc", "serve", "--tracker", tracker, "--key", "k"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "--device", gpu.name], stderr=log)
    try:
        wait_for(lambda: "; waiting for it, 600 s at most" in (tmp_path / "log").read_text(), "a word")
    finally:
        process.terminate()
        process.wait()
    assert f"no RPC tracker at {tracker}" in (tmp_path / "log").read_text()


def has_ipv6() -> bool:
    try:
        listen("::1", 0).close()
    except UserError:
        return False
    return True


NEEDS_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6 on the loopback")


@NEEDS_IPV6
def test_a_server_is_listed_where_it_listens_however_it_reaches_the_tracker(gpu: LocalDevice, tmp_path: Path) -> None:
    with tracker_process("--host", "::1", "--port", "0") as (_, address):
        server = ServeCommand(address, "k", gpu.name, tmp_path / "serve.log")
        try:
            [listed] = server.listed()
            assert listed.address.startswith("127.0.0.1:")
            with TrackerClient(address) as client:
                ticket = client.request("k", wait_s=60)
            assert ticket
            with closing(Link(ticket)) as link:
                link.open()
        finally:
            server.end()


@pytest.mark.parametrize("host", ["0.0.0.0", pytest.param("::", marks=NEEDS_IPV6)])
def test_a_server_that_clients_would_look_for_elsewhere_is_one_line(
    host: str, tracker: Address, gpu: LocalDevice
) -> None:
    done = structadmm("rpc", "serve", "--tracker", str(tracker), "--key", "k", "--device", gpu.name, "--host", host)
    assert done.returncode == 2
    _, line = done.stderr.splitlines()  # the first warns of strangers
    assert f"listening on {host}, and the tracker at {tracker} sees this server as 127.0.0.1" in line


def test_a_directory_with_modules_of_our_names_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("device", "json", "runpy", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    bridge = Partner("device.rpc.bridge", max_payload=0)
    try:
        bridge.frames.send({"config": {}, "predecessor": {}})
        assert "fatal" in bridge.frames.receive(60.0)[0]
    finally:
        bridge.end()


class Heard(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


CONFIG = ServeConfig(device="local", tracker="127.0.0.1:1", key="k")


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> list[psutil.Process]:
    """Have the supervisor start this program for a bridge; gives the processes it started."""
    started: list[psutil.Process] = []

    def partner(module: str, *, max_payload: int, scratch: Path) -> Partner:
        assert module == "device.rpc.bridge"
        made = Partner("tests.rpc.stand_in", max_payload=max_payload, scratch=scratch)
        started.append(psutil.Process(made.process.pid))
        return made

    monkeypatch.setenv("STAND_IN", code)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
    monkeypatch.setattr(serve, "Partner", partner)
    monkeypatch.setattr(serve, "_adopt_orphans", lambda: None)  # this process has children of its own
    return started


def test_a_bridge_that_breaks_its_promise_is_killed_with_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import subprocess, tempfile, time
tempfile.mkdtemp()
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
frames.send({"registered": "a device"})
frames.send({"say": str(child.pid)})
frames.send({"say": tempfile.gettempdir()})
frames.send({"within_s": 0.2, "doing": "measuring"})
time.sleep(1000)
"""
    started, heard = stand_in(monkeypatch, code), Heard()
    assert serve.supervise(CONFIG, heard, Predecessor()).registered
    assert heard.lines[-1] == "local: the bridge hung while measuring: killed, starting it again"
    assert not psutil.pid_exists(started[0].pid)
    assert not psutil.pid_exists(int(heard.lines[1].removeprefix("local: ")))
    scratch = Path(heard.lines[2].removeprefix("local: "))
    assert scratch.name.startswith("structadmm-bridge-")
    assert not scratch.exists()


def test_a_bridge_that_dies_again_and_again_before_it_registers_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = stand_in(monkeypatch, "raise SystemExit(3)")
    monkeypatch.setattr(serve, "_PAUSE_S", 0.0)
    with pytest.raises(UserError, match="ended 5 times in a row"):
        serve.serve(CONFIG, Heard())
    assert len(started) == 5
