"""Trying candidates on all devices of a key at once, through TVM's RPC tracker."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from device.candidates import CandidateOutcome, DeviceFacts, Trial
from device.rpc.address import Address, check_key
from device.rpc.archive import pack_bundle
from device.rpc.fleet import common_facts, query_fleet
from device.rpc.link import Link, LinkError
from device.rpc.tracker_client import TrackerClient, TrackerError
from structadmm.errors import UserError
from structadmm.progress import Reporter, SilentReporter

MAX_ATTEMPTS = 3
"""A candidate that was being tried when its server vanished may have been why: it does not get all servers."""

_POLL_S = 0.5
_LOOK_FOR_WORK_S = 0.05
_HOLD_S = 5.0
"""A tuner thinks between two rounds; a new session would cost it two processes."""

_LOOK_EVERY_S = 5.0
_SAY_EVERY_S = 10.0


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
        "lost".

        Raises:
            UserError: no device could be had for `wait_s`, they differ, or a server refused a candidate as none.
        """
        crew = self._crew = self._crew or _Crew(self._tracker, self._key, self.device_facts(), self._trial)
        positions = enumerate(bundles)
        outstanding, exhausted = 0, False
        waiting = _Waiting(self._wait_s, self._key, self._tracker, self._reporter)
        look_at = 0.0
        try:
            while True:
                if time.monotonic() >= look_at:
                    self._workers = crew.grow(self._workers)
                    look_at = time.monotonic() + _LOOK_EVERY_S
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
                    if crew.others_wait():
                        self.close()
                    return
                ended = crew.next_end(_POLL_S)
                for line in crew.news():
                    self._reporter.say(line)
                if ended is None:
                    waiting.look(has_device=crew.linked() > 0, why=crew.last_trouble)
                    continue
                waiting.reset()
                outstanding -= 1
                yield ended.index, ended.outcome
        except BaseException:  # also the caller's, who stops in the middle
            self.close()
            raise

    def close(self) -> None:
        """Give the devices back. Between calls of `measure` they are held for a moment, unless others wait for them."""
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
        self._since: float | None = None
        self._say_at = 0.0

    def reset(self) -> None:
        self._since = None

    def look(self, *, has_device: bool, why: str) -> None:
        if has_device:
            self._since = None
            return
        now = time.monotonic()
        if self._since is None:
            self._since, self._say_at = now, now + _SAY_EVERY_S
        waited_s = now - self._since
        if waited_s > self._wait_s:
            reason = why or "all of them are busy"
            raise UserError(
                f"no device of key {self._key!r} could be had from the tracker {self._tracker} for {self._wait_s:g} s "
                f"({reason}): look with `structadmm rpc query`"
            )
        if now >= self._say_at:
            self._say_at = now + _SAY_EVERY_S
            because = why or "all of them are busy"
            self._reporter.say(
                f"waiting for a device of key {self._key}: {waited_s:.0f} of {self._wait_s:g} s ({because})"
            )


class _Crew:
    """One thread for each device, which holds a session while there is work and a moment longer."""

    def __init__(self, tracker: Address, key: str, facts: DeviceFacts, trial: Trial) -> None:
        self._tracker = tracker
        self._key = key
        self._facts = facts
        self._trial = trial
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._ends: queue.Queue[_Ended | Exception] = queue.Queue()
        self._news: queue.Queue[str] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.last_trouble = ""

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
        with self._lock:
            return len(self._links)

    def grow(self, known: int) -> int:
        """Have a thread for each device that the tracker lists now; returns how many that are."""
        try:
            servers = query_fleet(self._tracker).of_key(self._key)
            self.last_trouble = "" if servers else "none is registered"
            known = max(1, len(servers))
        except TrackerError as error:
            self.last_trouble = str(error)
        while len(self._threads) < known:
            thread = threading.Thread(target=self._work, daemon=True)
            self._threads.append(thread)
            thread.start()
        return known

    def others_wait(self) -> bool:
        """Whether somebody waits for a device of this key; if it is a thread of ours, somebody else has one."""
        try:
            return query_fleet(self._tracker).pending.get(self._key, 0) > 0
        except TrackerError:
            return False  # nobody can wait there

    def dismiss(self) -> None:
        """Give all devices back."""
        self._stopped.set()
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()
        for _ in self._threads:
            self._jobs.put(None)  # wakes one that holds a device and waits for a candidate
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        try:
            # First a device, then a candidate: one that is free must not wait for another's turn.
            while not self._stopped.is_set():
                if self._jobs.empty():
                    self._stopped.wait(_LOOK_FOR_WORK_S)
                    continue
                link = self._obtain()
                if link is not None:
                    self._use(link)
        except Exception as error:
            self._ends.put(error)

    def _obtain(self) -> Link | None:
        """A session with some device; None where there is none for now."""
        try:
            with TrackerClient(self._tracker) as client:
                ticket = None
                while ticket is None:
                    if self._stopped.is_set():
                        return None
                    ticket = client.request(self._key, wait_s=_POLL_S)
        except TrackerError as error:
            self.last_trouble = str(error)
            self._stopped.wait(_POLL_S)
            return None
        link = Link(ticket)
        try:
            facts = link.open()
            if facts.key != self._facts.key:
                raise UserError(
                    f"the devices of key {self._key!r} differ ({self._facts.key}; {facts.key} at {link.server}): "
                    "give each kind a key of its own"
                )
        except BaseException as error:
            link.close()
            if not isinstance(error, LinkError):
                raise
            self.last_trouble = str(error)
            self._stopped.wait(_POLL_S)
            return None
        return link

    def _use(self, link: Link) -> None:
        """Try candidates on a device until it breaks, or there are no more."""
        with self._lock:
            self._links.add(link)
        try:
            while not self._stopped.is_set():
                try:
                    job = self._jobs.get(timeout=_HOLD_S)
                except queue.Empty:
                    return
                if job is None:
                    return
                try:
                    outcome = link.measure(job.archive, self._trial)
                except LinkError as error:
                    outcome = CandidateOutcome(status="lost", message=str(error)[:500], device=self._facts.key)
                if outcome.status != "lost":
                    self._ends.put(_Ended(job.index, outcome))
                    continue
                self._retry(job, outcome)
                if not self._stopped.is_set():
                    self._news.put(f"{link.server} went away while it tried a candidate: {outcome.message}")
                return
        finally:
            with self._lock:
                self._links.discard(link)
            link.close()

    def _retry(self, job: _Job, outcome: CandidateOutcome) -> None:
        if job.attempts + 1 >= MAX_ATTEMPTS:
            self._ends.put(_Ended(job.index, outcome))
        else:
            self._jobs.put(_Job(job.index, job.archive, job.attempts + 1))
