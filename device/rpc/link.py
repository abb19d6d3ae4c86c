"""One session with one server, as the tuner sees it: candidates in, outcomes out, and never a wait without end."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from device.candidates import CandidateOutcome, DeviceFacts, Trial
from device.rpc.frames import FrameError
from device.rpc.processes import Partner
from device.rpc.tracker_client import Ticket
from device.rpc.trials import trial_to_json
from structadmm.errors import UserError

_OPEN_S = 60.0
_BEYOND_TRIAL_S = 180.0
"""The server gives itself 120 s beyond a candidate's time-out before its watchdog kills it."""


class LinkError(Exception):
    """The session broke; its server may be gone, or come back."""


class Link:
    """A session, from `ticket` to `close`; for one thread, except for `close`.

    Raises:
        LinkError: the server is not there any more, or is none of ours.
    """

    def __init__(self, ticket: Ticket) -> None:
        self._partner = Partner("device.rpc.link_process", max_payload=0)
        self.server = f"{ticket.host}:{ticket.port}"
        try:
            facts = self._call(
                {"host": ticket.host, "port": ticket.port, "match_key": ticket.match_key}, b"", _OPEN_S
            ).get("facts")
            self.facts = DeviceFacts.model_validate(facts)
        except ValidationError:
            self.close()
            raise LinkError(f"{self.server} does not say what its device is: is it another version?") from None
        except BaseException:
            self.close()
            raise

    def measure(self, archive: bytes, trial: Trial) -> CandidateOutcome:
        """Have one candidate tried.

        Raises:
            LinkError: nothing is known about it.
            UserError: the server refuses it; every other server would.
        """
        answer = self._call({"trial": trial_to_json(trial)}, archive, trial.timeout_s + _BEYOND_TRIAL_S)
        if "refused" in answer:
            raise UserError(f"{self.server} refused a candidate: {' '.join(str(answer['refused']).split())[:300]}")
        try:
            return CandidateOutcome.model_validate(answer.get("outcome"))
        except ValidationError:
            raise LinkError(f"{self.server} sent no outcome: is it another version?") from None

    def close(self) -> None:
        """Hang up, at once."""
        self._partner.end()

    def _call(self, message: dict[str, Any], payload: bytes, timeout_s: float) -> dict[str, Any]:
        try:
            self._partner.frames.send(message, payload)
            reply, _ = self._partner.frames.receive(timeout_s)
        except FrameError as error:
            raise LinkError(f"no answer from {self.server}: {error}") from None
        if "error" in reply:
            raise LinkError(f"{self.server}: {reply['error']}")
        try:
            answer = json.loads(str(reply.get("answer")))
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise LinkError(f"{self.server} sent no JSON object: is it another version?")
        return answer
