"""The process that serves one device to a tracker: `python -m device.rpc.bridge FD`, started by `device.rpc.serve`.

It registers with the tracker as a TVM RPC server, takes one client at a time, and tries the candidates that the client
sends on its device through the runner. It drives the device alone, so nothing runs beside a measurement. Whatever a
client, the tracker or the phone does, this process goes on: sessions end, registrations are made again, a phone that
vanished is waited for while nothing is registered. Before everything that may take long it tells its supervisor how
long; when that has passed, the supervisor kills it and starts it anew.
"""

from __future__ import annotations

import errno
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from device.adb_target import AdbTarget
from device.candidates import (
    TIDY_EVERY,
    CandidateOutcome,
    DeviceFacts,
    Trial,
    candidate_runner,
    facts_of_target,
    try_candidate,
)
from device.errors import DeviceError, RunnerError, RunnerStatus
from device.rpc.address import check_key, is_loopback, is_wildcard, parse_address
from device.rpc.archive import MAX_ARCHIVE_BYTES, unpack_bundle
from device.rpc.frames import FrameError, Frames, FrameTimeoutError
from device.rpc.handshake import accept_client
from device.rpc.processes import Partner
from device.rpc.serve_config import Predecessor, ServeConfig
from device.rpc.tracker import listen
from device.rpc.tracker_client import TrackerClient, TrackerError
from device.rpc.trials import trial_from_json
from device.runner_client import Runner
from device.target import Target, open_target
from structadmm.errors import StructadmmError, UserError
from structadmm.progress import SilentReporter

ABOUT_SCHEMA = 1

_PING_S = 2.0
_CLAIM_S = 6.0
"""A client that got our match key and has not come after this will not come: offer another."""

_RELIST_EVERY_S = 5.0
_RELIST_S = 1.0
"""A tracker that is silent holds a client up for so long, every now and then."""

_LAST_WORD_S = 5.0
"""For the last answer of a session to be sent."""

_HEALTH_EVERY_S = 30.0
_OPEN_DEVICE_S = 900.0
"""For a person to tap Allow, a runner to be built and pushed, and a first answer."""

_HOUSEKEEPING_S = 180.0
"""For anything else between two candidates."""

_AROUND_TRIAL_S = 120.0
"""For a candidate's way to the device, beyond its time-out."""


class DeviceLostError(Exception):
    """The device went away; it may come back."""


class SupervisorGoneError(Exception):
    """Nobody is there any more to serve for."""


@dataclass(frozen=True)
class OpenDevice:
    """The device while it is there."""

    target: Target
    facts: DeviceFacts


class Bridge:
    """Serves one device until its supervisor hangs up."""

    def __init__(self, config: ServeConfig, supervisor: Frames, predecessor: Predecessor) -> None:
        self._config = config
        self._supervisor = supervisor
        self._left = predecessor
        self._tried = 0

    def run(self) -> None:
        """Serve.

        Raises:
            UserError: the device or the tracker is not there at the start, or stayed away for too long.
            SupervisorGoneError: the supervisor hung up.
        """
        while True:
            device = self._open_device()
            try:
                self._serve_device(device)
            except DeviceLostError as error:
                self._say(f"{self._config.device} went away ({error}): unregistered until it is back")
            finally:
                with suppress(FrameError):  # nobody is there any more to be promised anything
                    self._expect(_HOUSEKEEPING_S, "letting go of the device")
                with _undisturbed():
                    device.target.close()

    # -- the device ----------------------------------------------------------------------------------------------------

    def _open_device(self) -> OpenDevice:
        # A device that is not there at the start is a mistake; one that vanishes later comes back.
        patience_s = self._config.give_up_s if self._left.served else 0.0
        deadline = time.monotonic() + patience_s
        pause_s = 0.5
        reporter = _SayingReporter(self)
        while True:
            self._expect(_OPEN_DEVICE_S, "opening the device")
            target: Target | None = None
            try:
                target = open_target(self._config.device, reporter)
                self._tidy_and_enter(target)
                return OpenDevice(target, facts_of_target(Runner(target, use_program_cache=False)))
            except StructadmmError as error:
                if target is not None:
                    with _undisturbed():
                        target.close()
                if time.monotonic() + pause_s > deadline:
                    after = f" (waited {patience_s:g} s)" if patience_s else ""
                    raise UserError(f"{error}{after}") from None
            except BaseException:  # a SIGTERM's, which comes once
                if target is not None:
                    target.close()
                raise
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    def _tidy_and_enter(self, target: Target) -> None:
        """End what earlier sessions of ours left running on a phone, and have the next bridge know of this one.

        A bridge that is killed takes what it started on this machine with it, and nothing on the phone.
        """
        sessions: tuple[str, ...] = ()
        if isinstance(target, AdbTarget):
            for session in self._left.sessions:
                end_session(target, session)
            sessions = (target.workdir(),)
        self._left = Predecessor(served=True, sessions=sessions)
        self._supervisor.send({"leaves": self._left.model_dump(mode="json")})

    def _check_health(self, device: OpenDevice) -> None:
        try:
            device.target.shell(["true"], timeout_s=20.0, retry=True)
        except DeviceError as error:
            raise DeviceLostError(str(error)) from None

    # -- the tracker ---------------------------------------------------------------------------------------------------

    def _serve_device(self, device: OpenDevice) -> None:
        # Not listening while the device is away: a client with an old match key must not wait for us.
        with listen(self._config.host, self._config.port) as listener:
            while True:
                with self._registered(listener, device) as tracker:
                    try:
                        self._offer_sessions(tracker, listener, device)
                    except TrackerError as error:
                        self._say(f"{error}; registering again")
                self._sleep(0.5)

    @contextmanager
    def _registered(self, listener: socket.socket, device: OpenDevice) -> Iterator[TrackerClient]:
        address = parse_address(self._config.tracker)
        deadline = time.monotonic() + self._config.give_up_s
        pause_s = 0.5
        waiting = False
        while True:
            self._expect(_HOUSEKEEPING_S, "registering with the tracker")
            try:
                tracker = TrackerClient(address)
                break
            except TrackerError as error:
                if time.monotonic() + pause_s > deadline:
                    raise UserError(f"{error} (waited {self._config.give_up_s:g} s)") from None
                if not waiting:
                    self._say(f"{error}; waiting for it, {self._config.give_up_s:g} s at most")
                waiting = True
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)
        with tracker:
            yield tracker

    def _announce(self, tracker: TrackerClient, listener: socket.socket, device: OpenDevice, *, busy: bool) -> None:
        about = {
            "schema": ABOUT_SCHEMA,
            "device": self._config.device,
            "facts": device.facts.model_dump(mode="json"),
            "busy": busy,
            "tried": self._tried,
        }
        tracker.announce(self._config.key, _advertised_host(listener, tracker), listener.getsockname()[1], about)

    def _offer(self, tracker: TrackerClient, listener: socket.socket) -> str:
        return tracker.offer(self._config.key, _advertised_host(listener, tracker), listener.getsockname()[1])

    def _offer_sessions(self, tracker: TrackerClient, listener: socket.socket, device: OpenDevice) -> None:
        self._announce(tracker, listener, device, busy=False)
        match_key = self._offer(tracker, listener)
        port = listener.getsockname()[1]
        self._supervisor.send({"registered": f"{device.facts.key}: serving port {port} as {self._config.key}"})
        claimed_since: float | None = None
        health_due = time.monotonic() + _HEALTH_EVERY_S
        while True:
            self._expect(_HOUSEKEEPING_S, "waiting for a client")
            ready = self._select([listener, tracker], _PING_S)
            if tracker in ready:
                raise TrackerError(f"the tracker at {tracker.address} hung up")
            if listener in ready:
                client = accept_client(listener, self._config.key, match_key)
                if client is None:
                    continue
                listing = _Listing(tracker, lambda: self._announce(tracker, listener, device, busy=True))
                with client:
                    listing.announce()
                    self._hold_session(client, device, listing)
                if not tracker.connected:
                    raise TrackerError(f"the tracker at {tracker.address} hung up")
                self._announce(tracker, listener, device, busy=False)
                match_key = self._offer(tracker, listener)
                claimed_since = None
                continue
            now = time.monotonic()
            if match_key in tracker.unclaimed():
                claimed_since = None
            elif claimed_since is None:
                claimed_since = now
            elif now - claimed_since > _CLAIM_S:
                match_key = self._offer(tracker, listener)
                claimed_since = None
            if now > health_due:
                self._check_health(device)
                health_due = time.monotonic() + _HEALTH_EVERY_S

    # -- sessions ------------------------------------------------------------------------------------------------------

    def _hold_session(self, client: socket.socket, device: OpenDevice, listing: _Listing) -> None:
        runner = self._session_runner(device)
        tried = self._tried
        partner = Partner("device.rpc.session_process", handed_over=[client], max_payload=MAX_ARCHIVE_BYTES)
        client.close()  # the session process has it: its end must be the client's end
        heard_at = time.monotonic()
        try:
            while True:
                self._expect(self._config.idle_s + _HOUSEKEEPING_S, "a client's session")
                ready = self._select([partner.frames.socket, *listing.readers()], _PING_S)
                listing.keep(ready)
                if partner.frames.socket not in ready:
                    if time.monotonic() - heard_at > self._config.idle_s:
                        self._say(f"a client said nothing for {self._config.idle_s:g} s: its session is over")
                        return
                    continue
                message, payload = partner.frames.receive(_HOUSEKEEPING_S / 2)
                heard_at = time.monotonic()
                if "receiving" in message:
                    continue
                if "refused" in message:
                    self._say(f"a client's session is over: it sent {str(message['refused'])[:200]}")
                    return
                try:
                    answer, lost = self._answer(device, runner, message, payload)
                except FrameError:
                    raise SupervisorGoneError from None
                except Exception as error:
                    # A session that just ended would be held against the candidate.
                    with suppress(FrameError):
                        partner.frames.send({"refused": f"its bridge failed ({type(error).__name__}: {error})"})
                        partner.finish(_LAST_WORD_S)
                    raise
                partner.frames.send(answer)
                heard_at = time.monotonic()
                if lost:
                    partner.finish(_LAST_WORD_S)
                    raise DeviceLostError(lost)
                if self._tried >= tried + TIDY_EVERY:
                    runner, tried = self._session_runner(device), self._tried
        except FrameTimeoutError:
            self._say("a session's process stopped in the middle of a message: killed")
        except FrameError:
            return  # the client hung up
        finally:
            partner.end()

    def _session_runner(self, device: OpenDevice) -> Runner:
        """A runner that is on the device for sure, beside candidates of the last day and no older ones."""
        try:
            if isinstance(device.target, AdbTarget):
                device.target.prune(unused_for_days=1)
            return candidate_runner(device.target)
        except DeviceError as error:
            raise DeviceLostError(str(error)) from None

    def _answer(
        self, device: OpenDevice, runner: Runner, message: dict[str, Any], payload: bytes
    ) -> tuple[dict[str, Any], str]:
        """What to send back, and how the device was lost, if it was."""
        if message.get("call") == "facts":
            limits = {"max_trial_s": self._config.max_trial_s, "max_archive_bytes": MAX_ARCHIVE_BYTES}
            return {"schema": ABOUT_SCHEMA, "facts": device.facts.model_dump(mode="json"), "limits": limits}, ""
        try:
            trial = trial_from_json(str(message.get("trial")), max_trial_s=self._config.max_trial_s)
            with tempfile.TemporaryDirectory(prefix="structadmm-candidate-") as directory:
                bundle = Path(directory)
                unpack_bundle(payload, bundle)
                outcome = self._try(device, runner, bundle, trial)
        except UserError as error:
            return {"refused": str(error)}, ""
        except OSError as error:  # of this machine's disk; a target's are `DeviceError`
            why = f"its machine cannot keep a candidate ({error.strerror or error})"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return {"refused": f"{why}{f': free some space in {tempfile.gettempdir()}' if full else ''}"}, ""
        self._tried += 1
        answer = {"outcome": outcome.model_dump(mode="json"), "trial": asdict(trial)}
        return answer, (outcome.message or "no word from it") if outcome.status == "lost" else ""

    def _try(self, device: OpenDevice, runner: Runner, bundle: Path, trial: Trial) -> CandidateOutcome:
        self._expect(trial.timeout_s + _AROUND_TRIAL_S, "trying a candidate")
        try:
            return try_candidate(runner, bundle, trial, device.facts.key)
        except RunnerError as error:
            if error.status not in (RunnerStatus.NO_OPENCL, RunnerStatus.NO_DEVICE):
                raise
            return CandidateOutcome(status="lost", message=str(error)[:500], device=device.facts.key)

    # -- the supervisor ------------------------------------------------------------------------------------------------

    def _say(self, line: str) -> None:
        self._supervisor.send({"say": " ".join(line.split())})

    def _expect(self, within_s: float, doing: str) -> None:
        """Promise to be heard of again in time; without that we are killed."""
        self._supervisor.send({"within_s": within_s, "doing": doing})

    def _sleep(self, duration_s: float) -> None:
        self._select([], duration_s)

    def _select(self, readers: list[Any], timeout_s: float) -> list[Any]:
        ready = select.select([*readers, self._supervisor.socket], [], [], timeout_s)[0]
        if self._supervisor.socket in ready:
            raise SupervisorGoneError
        return ready


def _advertised_host(listener: socket.socket, tracker: TrackerClient) -> str | None:
    """Where clients are told to find the listener; None: where the tracker sees us come from.

    Raises:
        UserError: we listen on every address, and the tracker sees one that we do not listen on or others do not reach.
    """
    host = str(listener.getsockname()[0])
    if not is_wildcard(host):
        return host
    family, ours = tracker.local_address()
    if family != listener.family or is_loopback(ours):
        raise UserError(
            f"listening on {host}, and the tracker at {tracker.address} sees this server as {ours}, where other "
            "machines do not find it: give --host this machine's address in a network that you trust"
        )
    return None


def end_session(target: Target, directory: str) -> None:
    """Kill all programs on a phone that were started with a path in this directory, and remove it.

    Args:
        target: the phone.
        directory: `Target.workdir` of a session whose own target is gone.

    Raises:
        DeviceError: the phone does not do as it is told.
    """
    name = directory.rsplit("/", 1)[-1]
    # In brackets, the first letter still matches itself, and the words of this very search do not match.
    pattern = f"[{name[0]}]{name[1:]}"
    kill = f'grep -q "{pattern}" "$p/cmdline" 2>/dev/null && kill -9 "${{p#/proc/}}" 2>/dev/null'
    target.shell(["sh", "-c", f"for p in /proc/[0-9]*; do {kill}; done; true"], timeout_s=60.0, retry=True)
    target.shell(["rm", "-rf", directory], timeout_s=60.0, retry=True)


class _Listing:
    """The entry of a server that is in use, made again where its tracker ends and comes back."""

    def __init__(self, tracker: TrackerClient, announce: Callable[[], None]) -> None:
        self.announce = announce
        self._tracker = tracker
        self._again_at = 0.0

    def readers(self) -> list[TrackerClient]:
        """What to wait for, beside the client."""
        return [self._tracker] if self._tracker.connected else []

    def keep(self, ready: list[Any]) -> None:
        """Between two requests of the client."""
        if self._tracker in ready:
            self._tracker.close()
        if self._tracker.connected or time.monotonic() < self._again_at:
            return
        try:
            self._tracker.reconnect(timeout_s=_RELIST_S)
            self.announce()
        except TrackerError:
            self._tracker.close()
            self._again_at = time.monotonic() + _RELIST_EVERY_S


class _SayingReporter(SilentReporter):
    """Tells a person what a phone asks for, and everything once: a phone that is away is tried again and again."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._said: set[str] = set()

    def say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            with suppress(FrameError):  # the target may say something while it is closed, for nobody
                self._bridge._say(line)


def main() -> None:
    """Serve what the supervisor asks for; tell it why, if that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's to handle
    signal.signal(signal.SIGTERM, _unwind)  # and this is how it has us tidy up, also in the middle of a candidate
    supervisor = Frames(socket.socket(fileno=int(sys.argv[1])), max_payload=0)
    try:
        message, _ = supervisor.receive(_HOUSEKEEPING_S)
        config = ServeConfig.model_validate(message["config"])
        check_key(config.key)
        bridge = Bridge(config, supervisor, Predecessor.model_validate(message["predecessor"]))
        try:
            bridge.run()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing is left to be tidied
    except (StructadmmError, ValidationError) as error:
        supervisor.send({"fatal": " ".join(str(error).split())})
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        supervisor.send({"fatal": f"{error.strerror}: free some space in {tempfile.gettempdir()}"})
    except (SupervisorGoneError, FrameError):
        pass


def _unwind(number: int, frame: object) -> None:
    del frame
    signal.signal(number, signal.SIG_IGN)  # once is enough: tidying up is not to be interrupted
    sys.exit(0)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore a SIGTERM, with which half of the tidying up would be done; whoever sends it hangs up besides."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
