"""Trying candidates on all devices of a key at once, through TVM's RPC tracker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from device.candidates import CandidateOutcome, DeviceFacts, Trial
from device.rpc.address import Address, check_key
from device.rpc.archive import pack_bundle
from device.rpc.fleet import common_facts, query_fleet
from device.rpc.link import Link, LinkError
from device.rpc.tracker_client import Ticket, TrackerClient, TrackerError
from structadmm.errors import UserError
from structadmm.progress import Reporter, SilentReporter

MAX_ATTEMPTS = 3
"""A candidate that was being tried when its server vanished may have been why: it does not get all servers."""

_POLL_S = 0.5
_LOOK_FOR_WORK_S = 0.05
_HOLD_S = 5.0
"""A tuner thinks between two rounds; a new session would cost it a process and a moment."""

_TURN_S = 20.0
"""For so long a device is kept although others wait: changing hands takes a second or two."""

_LOOK_EVERY_S = 5.0
_OURS_S = 10.0
"""So long a server is busy with a session that could not be started, at the most."""

_SAY_EVERY_S = 10.0
_DISMISS_S = 5.0
"""For threads that wait for a tracker's answer and hold no device."""


@dataclass(frozen=True)
class _Job:
    index: int
    archive: bytes
    attempts: int = 0


@dataclass(frozen=True)
class _Ended:
    index: int
    outcome: CandidateOutcome


class RpcMeasurer:
    """A `Measurer` for the devices that a tracker lists under one key; they may come and go while it measures.

    Args:
        tracker: its address.
        key: of the devices.
        trial: how each candidate is tried; servers may lower the time-out.
        wait_s: how long to wait while no device can be had, before giving up.
        reporter: hears of that waiting, and of devices that went away.
    """

    def __init__(
        self,
        tracker: Address,
        key: str,
        *,
        trial: Trial | None = None,
        wait_s: float = 300.0,
        reporter: Reporter | None = None,
    ) -> None:
        self._tracker = tracker
        self._key = check_key(key)
        self._trial = trial or Trial()
        self._wait_s = wait_s
        self._reporter = reporter or SilentReporter()
        self._facts: DeviceFacts | None = None
        self._workers = 1
        self._crew: _Crew | None = None

    def device_facts(self) -> DeviceFacts:
        """What the devices of the key have in common."""
        if self._facts is None:
            fleet = query_fleet(self._tracker)
            self._facts = common_facts(fleet, self._key, self._tracker)
            self._workers = len(fleet.of_key(self._key))
        return self._facts

    def workers(self) -> int:
        """Devices of the key when the tracker was last asked."""
        return self._workers

    def measure(self, bundles: Iterable[Path]) -> Iterator[tuple[int, CandidateOutcome]]:
        """Try the bundles on whatever devices can be had; outcomes come as they end.

        A candidate whose device went away is tried again, on another where there is one; after `MAX_ATTEMPTS` it is
        "lost". A device that others wait for is given back between two candidates, and asked for again.

        Raises:
            UserError: no device could be had for `wait_s`, they differ, or a server refused a candidate as none.
                Waiting for devices that others use does not count.
        """
        crew = self._crew = self._crew or _Crew(
            self._tracker, self._key, self.device_facts(), self._trial, self._workers
        )
        positions = enumerate(bundles)
        outstanding, exhausted = 0, False
        waiting = _Waiting(self._wait_s, self._key, self._tracker, self._reporter)
        crew.busy.set()
        try:
            while True:
                self._workers = crew.fleet.servers
                # One more than there are devices: the next one is at hand when a device becomes free.
                while not exhausted and outstanding <= self._workers:
                    following = next(positions, None)
                    if following is None:
                        exhausted = True
                    else:
                        index, bundle = following
                        crew.submit(_Job(index, pack_bundle(bundle)))
                        outstanding += 1
                if not outstanding:
                    return
                ended = crew.next_end(_POLL_S)
                for line in crew.news():
                    self._reporter.say(line)
                if ended is None:
                    waiting.look(crew)
                    continue
                waiting.reset()
                outstanding -= 1
                yield ended.index, ended.outcome
        except BaseException:  # also the caller's, who stops in the middle
            self.close()
            raise
        finally:
            crew.busy.clear()

    def close(self) -> None:
        """Give the devices back. Between calls of `measure` they are held for a moment."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.dismiss()


class _Waiting:
    """Patience while no device can be had, with a line now and then."""

    def __init__(self, wait_s: float, key: str, tracker: Address, reporter: Reporter) -> None:
        self._wait_s = wait_s
        self._key = key
        self._tracker = tracker
        self._reporter = reporter
        self.reset()

    def reset(self) -> None:
        self._since: float | None = None

    def look(self, crew: _Crew) -> None:
        if crew.linked():
            self.reset()
            return
        now = time.monotonic()
        if self._since is None:
            self._since = self._hopeless_since = now
            self._say_at = now + _SAY_EVERY_S
        others = crew.fleet.used
        if others:
            self._hopeless_since = now
        why = crew.fleet.trouble or ("others use them" if others else crew.trouble or "none is free")
        if now - self._hopeless_since > self._wait_s:
            raise UserError(
                f"no device of key {self._key!r} could be had from the tracker {self._tracker} for {self._wait_s:g} s "
                f"({why}): look with `structadmm rpc query`"
            )
        if now >= self._say_at:
            self._say_at = now + _SAY_EVERY_S
            until = "" if others else f" of {self._wait_s:g}"
            self._reporter.say(f"waiting for a device of key {self._key}: {now - self._since:.0f}{until} s ({why})")


@dataclass(frozen=True)
class _FleetState:
    """What the tracker said last about the key.

    Attributes:
        servers: how many there are; at least 1.
        used: whether somebody uses one of them: others, or we in a session that works.
        trouble: why none of them can be had; empty where there are some.
    """

    servers: int
    used: bool = False
    trouble: str = ""


class _Crew:
    """One thread for each device, which holds a session while there is work and a moment longer.

    Attributes:
        fleet: kept up to date by a thread of its own: a tracker that is silent keeps nobody from working.
        busy: set while there may be work.
        trouble: what kept the last device that was asked for from being used.
    """

    def __init__(self, tracker: Address, key: str, facts: DeviceFacts, trial: Trial, servers: int) -> None:
        self.fleet = _FleetState(servers)
        self.busy = threading.Event()
        self.trouble = ""
        self._tracker = tracker
        self._key = key
        self._facts = facts
        self._trial = trial
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._ends: queue.Queue[_Ended | Exception] = queue.Queue()
        self._news: queue.Queue[str] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._links: set[Link] = set()
        self._tried: dict[str, float] = {}
        self._linked = 0
        self._requests = 0
        self._owed = 0
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, job: _Job) -> None:
        self._jobs.put(job)

    def next_end(self, wait_s: float) -> _Ended | None:
        """What ended next, or None; what cannot be gone on with is raised."""
        try:
            end = self._ends.get(timeout=wait_s)
        except queue.Empty:
            return None
        if isinstance(end, Exception):
            raise end
        return end

    def news(self) -> Iterator[str]:
        while not self._news.empty():
            yield self._news.get()

    def linked(self) -> int:
        """How many devices we have."""
        with self._lock:
            return self._linked

    def dismiss(self) -> None:
        """Give all devices back."""
        with self._lock:
            self._stopped.set()
            links, threads = list(self._links), list(self._threads)
        for link in links:
            link.close()
        for _ in threads:
            self._jobs.put(None)  # wakes one that holds a device and waits for a candidate
        deadline = time.monotonic() + _DISMISS_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _watch(self) -> None:
        try:
            while not self._stopped.is_set():
                self._look()
                self._stopped.wait(_LOOK_EVERY_S)
        except Exception as error:
            self._ends.put(error)

    def _look(self) -> None:
        """Ask the tracker what there is, and have a thread for each device."""
        ours = self._requests
        try:
            fleet = query_fleet(self._tracker)
        except TrackerError as error:
            self.fleet = replace(self.fleet, used=False, trouble=str(error))
            pending = 0  # nobody can wait there
        else:
            servers = fleet.of_key(self._key)
            used = any(server.busy and not self._tried_lately(server.address) for server in servers)
            self.fleet = _FleetState(max(1, len(servers)), used, "" if servers else "none is registered")
            pending = fleet.pending.get(self._key, 0)
        with self._lock:
            # One of ours may have been given a device while the tracker answered.
            self._owed = max(0, pending - max(ours, self._requests))
            while len(self._threads) < self.fleet.servers and not self._stopped.is_set():
                self._threads.append(threading.Thread(target=self._work, daemon=True))
                self._threads[-1].start()

    def _tried_lately(self, address: str) -> bool:
        """Whether a server may be busy with nothing but a session of ours that did not come about."""
        with self._lock:
            return address in self._tried and time.monotonic() - self._tried[address] < _OURS_S

    def _work(self) -> None:
        try:
            # First a device, then a candidate: one that is free must not wait for another's turn.
            while not self._stopped.is_set():
                if self._jobs.empty():
                    self._stopped.wait(_LOOK_FOR_WORK_S)
                    continue
                try:
                    self._use(self._obtain())
                except TrackerError:
                    self._stopped.wait(_POLL_S)  # `_watch` says it
                except LinkError as error:
                    self.trouble = str(error)
                    self._stopped.wait(_POLL_S)
        except Exception as error:
            self._ends.put(error)

    def _obtain(self) -> Ticket | None:
        """The right to use some device; None: not needed any more."""
        with TrackerClient(self._tracker) as client:
            with self._lock:
                self._requests += 1
            try:
                ticket = None
                while ticket is None and not self._stopped.is_set():
                    ticket = client.request(self._key, wait_s=_POLL_S)
                return ticket
            finally:
                with self._lock:
                    self._requests -= 1

    def _use(self, ticket: Ticket | None) -> None:
        """Try candidates on a device until it breaks, others wait for it, or there are no more."""
        if ticket is None:
            return
        link, server = Link(ticket), str(Address(ticket.host, ticket.port))
        with self._lock:
            if self._stopped.is_set():
                return
            self._tried[server] = time.monotonic()
            self._links.add(link)  # before it waits for anything: `dismiss` ends that
        try:
            facts = link.open()
            if facts.key != self._facts.key:
                raise UserError(
                    f"the devices of key {self._key!r} differ ({self._facts.key}; {facts.key} at {link.server}): "
                    "give each kind a key of its own"
                )
            self.trouble = ""
            with self._lock:
                self._linked += 1
                self._tried.pop(server, None)
            try:
                self._try_candidates(link)
            finally:
                with self._lock:
                    self._linked -= 1
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def _try_candidates(self, link: Link) -> None:
        since = idle_since = time.monotonic()
        while not self._stopped.is_set():
            now = time.monotonic()
            idle = now - idle_since > _HOLD_S
            if (idle and not self.busy.is_set()) or ((idle or now - since > _TURN_S) and self._give_to_others()):
                return
            try:
                job = self._jobs.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            if job is None:
                return
            try:
                outcome = link.measure(job.archive, self._trial)
            except LinkError as error:
                outcome = CandidateOutcome(status="lost", message=str(error)[:500], device=self._facts.key)
            if outcome.status == "lost":
                self._retry(job, outcome)
                if not self._stopped.is_set():
                    self._news.put(f"{link.server} went away while it tried a candidate: {outcome.message}")
                return
            self._ends.put(_Ended(job.index, outcome))
            idle_since = time.monotonic()

    def _give_to_others(self) -> bool:
        """Whether somebody waits who has not been given a device since the tracker was asked."""
        with self._lock:
            if not self._owed:
                return False
            self._owed -= 1
            return True

    def _retry(self, job: _Job, outcome: CandidateOutcome) -> None:
        if job.attempts + 1 >= MAX_ATTEMPTS:
            self._ends.put(_Ended(job.index, outcome))
        else:
            self._jobs.put(_Job(job.index, job.archive, job.attempts + 1))
