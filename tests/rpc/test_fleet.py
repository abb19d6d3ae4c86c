"""Devices behind a tracker: candidates of all kinds go in, one outcome for each comes out, whatever happens."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device.candidates import CandidateOutcome, Trial
from device.local_target import LocalDevice
from device.rpc import measurer
from device.rpc.address import Address
from device.rpc.fleet import query_fleet
from device.rpc.handshake import accept_client
from device.rpc.link import Link, LinkError
from device.rpc.measurer import MAX_ATTEMPTS, RpcMeasurer
from device.rpc.tracker_client import TrackerClient
from structadmm.errors import UserError
from structadmm.progress import SilentReporter
from tests.emulated_phone import EmulatedPhone
from tvm_build.emit import emit_opencl
from tvm_build.gpu import gpu_by_name
from tvm_build.kernels import build_kernel
from tvm_build.ops import Dense
from tvm_build.precision import FLOAT32
from tvm_build.tuning.candidate_bundle import write_candidate_bundle
from tvm_build.tuning.expected import task_data

from .conftest import ServeCommand, tracker_process, wait_for, write_candidate

QUICK = Trial(runs=2, warmup_runs=1)
Serve = Callable[..., ServeCommand]


class Listener(SilentReporter):
    """Keeps what a person would have read, and does something about it."""

    def __init__(self, act: Callable[[str], None] = lambda line: None) -> None:
        self.lines: list[str] = []
        self._act = act

    def say(self, line: str) -> None:
        self.lines.append(line)
        self._act(line)


def measure(
    tracker: Address, key: str, bundles: Iterable[Path], *, trial: Trial = QUICK, **options: Any
) -> list[CandidateOutcome]:
    """An outcome for each bundle: each position once, or it fails."""
    with closing(RpcMeasurer(tracker, key, trial=trial, **options)) as measuring:
        pairs = list(measuring.measure(bundles))
    assert sorted(index for index, _ in pairs) == list(range(len(pairs)))
    return [outcome for _, outcome in sorted(pairs, key=lambda pair: pair[0])]


def test_candidates_that_write_out_of_bounds_are_wrong_and_the_next_one_is_measured(
    shared: ServeCommand, tmp_path: Path
) -> None:
    op, gpu = Dense(1, 16, 8), gpu_by_name("opencl-cpu")
    data = task_data(op)
    built = build_kernel(op, data.constants, gpu)
    kernel = emit_opencl(built.func)
    head, body = kernel.source.split("{", 1)
    bundles = []
    for name, store in {"below": "stray[-1] = 0.0f;", "above": "stray[8 + 100] = 0.0f;", "inside": ""}.items():
        bad = replace(kernel, source=f"{head}{{ __global float* stray = (__global float*)output_ptr; {store} {body}")
        bundles.append(tmp_path / f"{name}.clbundle")
        write_candidate_bundle(bundles[-1], built, bad, data, gpu.name, FLOAT32)
    below, above, inside = measure(shared.tracker, shared.key, bundles)
    assert (below.status, above.status, inside.status) == ("wrong", "wrong", "ok")
    assert "written_outside" in below.message
    assert "written_outside" in above.message


def test_candidates_that_crash_hang_or_compute_nonsense_are_outcomes_and_the_next_ones_are_measured(
    shared: ServeCommand, tmp_path: Path
) -> None:
    tracker, key = shared.tracker, shared.key
    kinds = ["crash", "", "nan", "wrong", "build", ""]
    bundles = [write_candidate(tmp_path, number, bad) for number, bad in enumerate(kinds)]
    outcomes = measure(tracker, key, bundles)
    assert [o.status for o in outcomes] == ["crashed", "ok", "wrong", "wrong", "build_failed", "ok"]
    assert {o.device for o in outcomes} == {RpcMeasurer(tracker, key).device_facts().key}
    assert all((o.times is not None) == (o.status == "ok") for o in outcomes)
    # On a busy machine others may not end in a second either; the one that never ends says that it was killed.
    hang = write_candidate(tmp_path, bad="hang")
    hung = measure(tracker, key, [hang, bundles[1]], trial=Trial(runs=2, timeout_s=1.0))[0]
    assert (hung.status, hung.times) == ("timed_out", None)
    assert [o.status for o in measure(tracker, key, [bundles[1]])] == ["ok"]


def test_a_phone_that_vanishes_is_unregistered_until_it_is_back_and_loses_no_candidate(
    tracker: Address, key: str, serve: Serve, make_phone: Callable[..., EmulatedPhone], tmp_path: Path
) -> None:
    phone = make_phone()
    port = phone.port
    server = serve(f"adb:127.0.0.1:{port}")

    def switch_on_again(line: str) -> None:
        if "went away" in line:
            wait_for(lambda: not server.listed(), "the phone to be unregistered")
            make_phone(port)

    listener = Listener(switch_on_again)
    bundles = [write_candidate(tmp_path, number) for number in range(4)]
    statuses = {}
    with closing(RpcMeasurer(tracker, key, trial=QUICK, reporter=listener)) as measuring:
        for index, outcome in measuring.measure(bundles):
            if not statuses:
                phone.stop()  # while the second is tried, and with the last still to come
            statuses[index] = outcome.status
    assert statuses == dict.fromkeys(range(4), "ok")
    assert any("went away while it tried a candidate" in line for line in listener.lines)
    assert "unregistered until it is back" in server.log()


def test_a_candidate_that_loses_every_device_it_gets_is_lost_and_the_next_one_is_measured(
    tracker: Address, key: str, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    good, bad = write_candidate(tmp_path, 0), write_candidate(tmp_path, bad="hang")
    measure_really = Link.measure

    def kill_its_server(link: Link, archive: bytes, trial: Trial) -> CandidateOutcome:
        if b"bad" in archive:
            server.bridge().kill()
        return measure_really(link, archive, trial)

    monkeypatch.setattr(Link, "measure", kill_its_server)
    outcomes = measure(tracker, key, [bad, good])
    assert [outcome.status for outcome in outcomes] == ["lost", "ok"]
    wait_for(lambda: server.log().count("signal 9") == MAX_ATTEMPTS, "the last kill in the log")


def test_a_device_that_another_client_uses_is_waited_for_with_a_line_now_and_then(
    shared: ServeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_SAY_EVERY_S", 0.2)
    monkeypatch.setattr(measurer, "_LOOK_EVERY_S", 0.1)
    tracker, key = shared.tracker, shared.key
    with TrackerClient(tracker) as client:
        ticket = client.request(key, wait_s=60)
        assert ticket
    with closing(Link(ticket)) as other:
        other.open()
        assert [server.busy for server in query_fleet(tracker).of_key(key)] == [True]

        def give_back(line: str) -> None:
            if ": 3 s (" in line:  # of which none counts
                other.close()

        listener = Listener(give_back)
        outcomes = measure(tracker, key, [write_candidate(tmp_path)], wait_s=1.0, reporter=listener)
    assert [outcome.status for outcome in outcomes] == ["ok"]
    assert all(f"waiting for a device of key {key}: " in line for line in listener.lines)
    assert listener.lines[-1].endswith("(others use them)")


def test_a_server_whose_sessions_never_come_about_is_not_taken_for_used_by_others(
    tracker: Address, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(measurer, "_SAY_EVERY_S", 4.5)
    facts = {"gpu": "g", "driver_family": "f", "driver": "d", "kind": "host", "type": "cpu", "fp16": False}
    stopped = threading.Event()

    def serve() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.1)
        port = listener.getsockname()[1]
        with TrackerClient(tracker) as client, listener:

            def announce(busy: bool) -> None:
                about = {"schema": 1, "device": "d", "facts": facts, "busy": busy, "tried": 0}
                client.announce(key, None, port, about)

            announce(False)
            match_key = client.offer(key, None, port)
            while not stopped.is_set():
                with suppress(TimeoutError):
                    session = accept_client(listener, key, match_key)
                    if session is not None:
                        announce(True)
                        stopped.wait(1.0)  # its process fails as it starts
                        session.close()
                        announce(False)
                        match_key = client.offer(key, None, port)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wait_for(lambda: query_fleet(tracker).of_key(key), "the server at the tracker")
        waiting = Listener(lambda line: pytest.fail(line) if ": 2" in line else None)  # twenty seconds and more
        with pytest.raises(UserError, match=r"could be had .* for 4 s "):
            measure(tracker, key, [write_candidate(tmp_path)], wait_s=4.0, reporter=waiting)
    finally:
        stopped.set()
        thread.join()


def test_waiting_for_a_device_that_nobody_has_ends_in_one_line(
    tracker: Address, key: str, serve: Serve, tmp_path: Path
) -> None:
    server = serve()
    with closing(RpcMeasurer(tracker, key, trial=QUICK, wait_s=1.0)) as measuring:
        measuring.device_facts()
        server.end()
        with pytest.raises(UserError, match=r"could be had .* for 1 s \(none is registered\)") as caught:
            next(measuring.measure([write_candidate(tmp_path)]))
    assert "\n" not in str(caught.value)


def test_two_sessions_take_turns_within_their_rounds(
    shared: ServeCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_TURN_S", 0.5)
    monkeypatch.setattr(measurer, "_LOOK_EVERY_S", 0.1)
    tracker, key = shared.tracker, shared.key
    a_round, second = write_candidate(tmp_path, 0), write_candidate(tmp_path, 1)
    ended: list[CandidateOutcome] = []
    others: list[CandidateOutcome] = []

    def without_end() -> Iterator[Path]:
        while not others:
            yield a_round

    def join_in() -> None:
        while not ended:
            time.sleep(0.01)
        others.extend(measure(tracker, key, [second], wait_s=60.0))

    thread = threading.Thread(target=join_in)
    thread.start()
    with closing(RpcMeasurer(tracker, key, trial=QUICK)) as measuring:
        for _, outcome in measuring.measure(without_end()):
            ended.append(outcome)
    thread.join()
    assert [outcome.status for outcome in others] == ["ok"]
    assert {outcome.status for outcome in ended} == {"ok"}


def test_a_tracker_that_hangs_takes_no_device_from_a_session(
    gpu: LocalDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(measurer, "_HOLD_S", 0.3)
    listener = Listener()
    with tracker_process() as (process, address):
        server = ServeCommand(address, "k", gpu.name, tmp_path / "serve.log")

        def bundles() -> Iterator[Path]:
            yield write_candidate(tmp_path)
            for number in (1, 2, 3):
                if outcomes:
                    process.send_signal(signal.SIGSTOP)
                time.sleep(1.0)  # what a tuner takes to build its next candidate
                yield write_candidate(tmp_path, number)

        outcomes: list[CandidateOutcome] = []
        try:
            with closing(RpcMeasurer(address, "k", trial=QUICK, wait_s=5.0, reporter=listener)) as measuring:
                outcomes += [outcome for _, outcome in measuring.measure([write_candidate(tmp_path, 4)])]
                outcomes += [outcome for _, outcome in measuring.measure(bundles())]
        finally:
            process.send_signal(signal.SIGCONT)
            server.end()
    assert [outcome.status for outcome in outcomes] == ["ok"] * 5
    assert listener.lines == []


def test_an_interrupted_session_does_not_wait_for_a_server_that_says_nothing(
    shared: ServeCommand, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurer, "_SAY_EVERY_S", 0.1)
    [facts] = [server.facts for server in query_fleet(shared.tracker).of_key(shared.key)]
    assert facts
    interrupted: list[float] = []
    accepted: list[socket.socket] = []  # and never answered
    with TrackerClient(shared.tracker) as tracker, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        tracker.announce(key, None, port, {"facts": facts.model_dump(mode="json"), "busy": False})
        tracker.offer(key, None, port)

        def interrupt(line: str) -> None:
            del line
            accepted.append(listener.accept()[0])
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measure(shared.tracker, key, [write_candidate(tmp_path)], reporter=Listener(interrupt))
    accepted[0].close()
    assert time.monotonic() - interrupted[0] < measurer._DISMISS_S


def test_a_caller_who_stops_in_the_middle_gives_the_device_back(shared: ServeCommand, tmp_path: Path) -> None:
    tracker, key = shared.tracker, shared.key
    bundles = [write_candidate(tmp_path, number) for number in range(3)]
    outcomes = RpcMeasurer(tracker, key, trial=QUICK).measure(bundles)
    assert next(outcomes)[1].status == "ok"
    outcomes.close()  # type: ignore[attr-defined]  # as Ctrl-C does to a generator
    wait_for(shared.is_free, "the device to be free")


def test_what_is_no_candidate_is_refused_in_one_line(shared: ServeCommand, tmp_path: Path) -> None:
    tracker, key = shared.tracker, shared.key
    damaged = write_candidate(tmp_path)
    (damaged / "kernels.cl").write_bytes(b"changed")
    with pytest.raises(UserError, match="refused a candidate") as caught:
        measure(tracker, key, [damaged])
    assert "\n" not in str(caught.value)


def test_tvms_own_client_gets_a_session_and_may_call_these_two_functions_only(
    shared: ServeCommand,
) -> None:
    import numpy as np
    import tvm
    from tvm import rpc

    tracker, key = shared.tracker, shared.key

    def attempt(what: Callable[[Any], object]) -> object:
        return what(rpc.connect_tracker(tracker.host, tracker.port).request(key, session_timeout=60))

    for forbidden in (
        lambda session: session.upload(bytearray(b"x"), "file"),
        lambda session: session.get_function("rpc.LocalSession"),
        lambda session: tvm.runtime.tensor(np.zeros(4, np.float32), session.cpu(0)),
        lambda session: session.get_function("structadmm.measure")(5),
    ):
        with pytest.raises(Exception, match=r"Channel closes|RPC|connection"):
            attempt(forbidden)
    wait_for(lambda: shared.log().count("a client's session is over: it sent") == 4, "four refusals in the log")
    assert '"facts"' in str(attempt(lambda session: session.get_function("structadmm.facts")()))
    refusal = attempt(lambda session: session.get_function("structadmm.measure")(b"no archive", "{}"))
    assert "damaged" in str(refusal)


def test_a_server_that_is_gone_is_a_broken_link(tracker: Address, key: str, serve: Serve) -> None:
    server = serve()
    with TrackerClient(tracker) as client:
        ticket = client.request(key, wait_s=60)
    assert ticket
    server.end()
    with closing(Link(ticket)) as link, pytest.raises(LinkError, match="cannot connect"):
        link.open()
