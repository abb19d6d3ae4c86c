"""One session with one server, as the tuner sees it: candidates in, outcomes out, and never a wait without end."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from device.candidates import CandidateOutcome, DeviceFacts, Trial
from device.rpc.client import ClientError, RpcClient
from device.rpc.session_process import FACTS, MEASURE
from device.rpc.tracker_client import Ticket
from device.rpc.trials import trial_to_json
from structadmm.errors import UserError

_FACTS_S = 60.0
_BEYOND_TRIAL_S = 180.0
"""The server gives itself 120 s beyond a candidate's time-out before its watchdog kills it."""


class LinkError(Exception):
    """The session broke; its server may be gone, or come back."""


class Link:
    """A session, from `open` to `close`; for one thread, except for `close`."""

    def __init__(self, ticket: Ticket) -> None:
        self.server = f"{ticket.host}:{ticket.port}"
        self._client = RpcClient(ticket.host, ticket.port, ticket.match_key)

    def open(self) -> DeviceFacts:
        """Start the session; returns what its device is.

        Raises:
            LinkError: the server is not there any more, or is none of ours.
        """
        try:
            self._client.open()
        except ClientError as error:
            raise LinkError(f"{self.server}: {error}") from None
        try:
            return DeviceFacts.model_validate(self._call(FACTS, timeout_s=_FACTS_S).get("facts"))
        except ValidationError:
            raise LinkError(f"{self.server} does not say what its device is: is it another version?") from None

    def measure(self, archive: bytes, trial: Trial) -> CandidateOutcome:
        """Have one candidate tried.

        Raises:
            LinkError: nothing is known about it.
            UserError: the server refuses it; every other server would.
        """
        answer = self._call(MEASURE, archive, trial_to_json(trial), timeout_s=trial.timeout_s + _BEYOND_TRIAL_S)
        if "refused" in answer:
            raise UserError(f"{self.server} refused a candidate: {' '.join(str(answer['refused']).split())[:300]}")
        try:
            return CandidateOutcome.model_validate(answer.get("outcome"))
        except ValidationError:
            raise LinkError(f"{self.server} sent no outcome: is it another version?") from None

    def close(self) -> None:
        """Hang up, at once."""
        self._client.close()

    def _call(self, name: str, *values: str | bytes, timeout_s: float) -> dict[str, Any]:
        try:
            text = self._client.call(name, *values, timeout_s=timeout_s)
        except ClientError as error:
            raise LinkError(f"no answer from {self.server}: {error}") from None
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise LinkError(f"{self.server} sent no JSON object: is it another version?")
        return answer
