"""What a tuner asks of whoever runs its candidates, and what it hears back.

`device.candidates` has the measurers; compilation comes before devices, so the words for both are here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

TIMED_LAYER = "candidate"
"""Layer name of the launches whose times count."""

Status = Literal["ok", "wrong", "build_failed", "crashed", "timed_out", "lost"]


class _Record(BaseModel):
    """Travels as JSON between a tuner and the servers of devices, and into databases."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class CandidateTimes(_Record):
    """Milliseconds of the timed launches together, by the device's own clock."""

    min_ms: float = Field(ge=0)
    median_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)


class CandidateOutcome(_Record):
    """What became of one candidate.

    Attributes:
        status: "ok": right and timed. "wrong": its output differs, is not finite, or it wrote elsewhere.
            "build_failed": the driver refused it. "crashed": it took its process, or the driver, down.
            "timed_out": it did not end and was killed. "lost": the device went away; nothing is known about it, and
            it may be tried again.
        times: of an "ok" one, else None.
        message: what happened, one line; empty for "ok".
        device: `DeviceFacts.key` of the device that tried it; empty if none did.
    """

    status: Status
    times: CandidateTimes | None = None
    message: str = ""
    device: str = ""


class DeviceFacts(_Record):
    """What schedules are chosen for.

    Attributes:
        gpu: such as `adreno-640`, or the driver's name for a processor that is no Adreno.
        driver_family: vendor and major version of the driver's compiler: schedules keep their rank within one.
        driver: the driver's whole version.
        kind: what its times are: host figures, or a phone's.
        type: of the OpenCL device.
        fp16: whether it computes in half.
    """

    gpu: str
    driver_family: str
    driver: str
    kind: Literal["host", "phone"]
    type: Literal["gpu", "cpu", "accelerator", "other"]
    fp16: bool

    @property
    def key(self) -> str:
        """GPU and driver family in one line."""
        return f"{self.gpu} / {self.driver_family}"

    @property
    def target(self) -> str | None:
        """The compilation target that it is one of, if the name tells."""
        if self.type == "cpu":
            return "opencl-cpu"
        return self.gpu if re.fullmatch(r"adreno-\d+", self.gpu) else None


class Measurer(Protocol):
    """Where candidates are tried: one device, or a fleet of devices of one kind."""

    def device_facts(self) -> DeviceFacts:
        """The device, or what all devices of the fleet have in common.

        Raises:
            UserError: there is no device, or they differ in GPU or driver family.
        """

    def workers(self) -> int:
        """Candidates that can be tried at the same time, at least 1; may change while a session runs."""

    def measure(self, bundles: Iterable[Path]) -> Iterator[tuple[int, CandidateOutcome]]:
        """Try each bundle once; yields (its position, outcome) as they end, in any order, each position once.

        Args:
            bundles: taken from the caller's thread, one by one, as workers become free, so that the next candidate is
                built while others run. A bundle may be removed once its outcome has been yielded.

        Raises:
            UserError: no device is left. What was yielded until then holds.
        """

    def close(self) -> None:
        """Let go of the devices."""
