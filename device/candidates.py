"""Trying out candidate kernels on a device: one small bundle each, checked, timed, and never trusted.

A candidate bundle (written by `tvm_build.tuning`) computes one layer and proves it: its expected output is the right
result, and a second output counts what was written outside. The launches that are timed have the layer name
`TIMED_LAYER`; the others are the proof's. A candidate may be wrong, refuse to build, kill its process or hang: each
is an outcome, never an error of the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from device.errors import (
    CheckError,
    DeviceError,
    RunnerError,
    RunnerStatus,
    TargetOfflineError,
    TargetRefusedError,
    TargetTimeoutError,
)
from device.runner_client import Runner
from device.runner_events import DeviceInfo
from device.target import Target
from structadmm.errors import UserError
from tvm_build.tuning.measurer import (
    TIMED_LAYER,
    CandidateOutcome,
    CandidateTimes,
    DeviceFacts,
    Measurer,
    Status,
)

__all__ = [
    "TIDY_EVERY",
    "TIMED_LAYER",
    "CandidateOutcome",
    "CandidateTimes",
    "DeviceFacts",
    "LocalMeasurer",
    "Measurer",
    "Status",
    "Trial",
    "candidate_runner",
    "describe_device",
    "facts_of_target",
    "try_candidate",
]

# The runner's refusals that say something about the candidate. Any other is about the machine or the bundle's file,
# and would be the same for every candidate.
_REFUSED = {RunnerStatus.DEVICE_LIMIT: "build_failed", RunnerStatus.MEMORY: "crashed", RunnerStatus.OPENCL: "crashed"}


@dataclass(frozen=True)
class Trial:
    """How each candidate is tried.

    Attributes:
        runs: timed inferences behind the times.
        warmup_runs: at least so many before.
        timeout_s: for all of it, check and times, the driver's compilation included; then it is killed.
    """

    runs: int = 15
    warmup_runs: int = 3
    timeout_s: float = 60.0


TIDY_EVERY = 100
"""Candidates after which their binaries are removed from the device: `candidate_runner` again."""


def candidate_runner(target: Target) -> Runner:
    """A runner for candidates; the binaries of those before are removed.

    What proves a candidate is the same for all of a layer, and half of what the driver would have to build. No later
    session meets any of it again, so binaries lie in the target's own directory for this one, and bundles are removed
    as soon as they were tried.

    Raises:
        DeviceError: the target does not do as it is told.
    """
    programs = f"{target.workdir()}/programs"
    target.shell(["rm", "-rf", programs], timeout_s=60.0, retry=True)
    return Runner(target, program_cache=programs, keep_bundles=False)


class LocalMeasurer:
    """One target that this process itself drives (this machine, or a phone over adb); one candidate at a time."""

    def __init__(self, target: Target, trial: Trial | None = None) -> None:
        self.target = target
        self._trial = trial or Trial()
        self._facts: DeviceFacts | None = None
        self.runner = Runner(target, use_program_cache=False)
        self._tried = 0

    def device_facts(self) -> DeviceFacts:
        """The target's OpenCL device."""
        if self._facts is None:
            self._facts = facts_of_target(self.runner)
        return self._facts

    def workers(self) -> int:
        """One: what runs beside a measurement disturbs it."""
        return 1

    def measure(self, bundles: Iterable[Path]) -> Iterator[tuple[int, CandidateOutcome]]:
        """Try the bundles in order.

        Raises:
            TargetOfflineError: the target went away and has not come back.
            TargetRefusedError: the target does not take the candidate, as it would no other.
        """
        key = self.device_facts().key
        for index, bundle in enumerate(bundles):
            if self._tried % TIDY_EVERY == 0:
                self.runner = candidate_runner(self.target)
            self._tried += 1
            outcome = try_candidate(self.runner, bundle, self._trial, key)
            yield index, outcome
            if outcome.status == "lost":
                # A device that is still away is the session's end, not the next candidate's fault.
                self.runner.info()

    def close(self) -> None:
        """Close the target."""
        self.target.close()


def try_candidate(runner: Runner, bundle: Path, trial: Trial, device: str) -> CandidateOutcome:
    """Check one candidate and, if it is right, time it; one process does both.

    Args:
        runner: on the device.
        bundle: a candidate bundle.
        trial: counts and time-out.
        device: goes into the outcome.

    Raises:
        RunnerError: the machine has no OpenCL device any more, or the bundle's files are damaged.
        TargetRefusedError: the target does not take it, as it would no other candidate: it is full, say.
    """

    def ended(status: Status, error: Exception) -> CandidateOutcome:
        return CandidateOutcome(status=status, message=" ".join(str(error).split())[:500], device=device)

    try:
        profile = runner.profile(
            bundle, runs=trial.runs, warmup_runs=trial.warmup_runs, check=True, timeout_s=trial.timeout_s
        )
    except CheckError as error:
        return ended("wrong", error)
    except TargetTimeoutError as error:
        return ended("timed_out", error)
    except TargetOfflineError as error:
        return ended("lost", error)
    except TargetRefusedError:
        raise
    except RunnerError as error:
        if error.build_log:
            return ended("build_failed", error)
        if error.status not in _REFUSED:
            raise
        return ended(_REFUSED[error.status], error)  # type: ignore[arg-type]  # its values are statuses
    except DeviceError as error:
        return ended("crashed", error)
    timed = [launch for launch in profile.launches if launch.layer == TIMED_LAYER]
    if not timed:
        raise UserError(f"{bundle} is no candidate: none of its launches is named {TIMED_LAYER!r}")
    median_ms = sum(launch.median_ms for launch in timed)
    if median_ms <= 0:
        return ended("crashed", DeviceError("the device's clock did not tick while it ran"))
    times = CandidateTimes(
        min_ms=sum(launch.min_ms for launch in timed),
        median_ms=median_ms,
        p90_ms=sum(launch.p90_ms for launch in timed),
    )
    return CandidateOutcome(status="ok", times=times, device=device)


def facts_of_target(runner: Runner) -> DeviceFacts:
    """The device that the runner uses on its target.

    Raises:
        RunnerError: there is none.
    """
    infos = runner.info()
    options = list(runner.target.runner_options)
    index = options[options.index("--device") + 1] if "--device" in options else None
    chosen = [info for info in infos if index in (None, info.index)]
    if not chosen:
        raise UserError(f"{runner.target.name} shows no OpenCL device {index}: look with `structadmm devices`")
    return describe_device(chosen[0], runner.target.kind)


def describe_device(info: DeviceInfo, kind: Literal["host", "phone"]) -> DeviceFacts:
    """The facts that key a tuning database, from what a driver says about its device."""
    # Adreno drivers of some phones leave the model out of the name and put it into the version.
    adreno = re.search(r"adreno(?:\s*\(tm\))?\s*(\d{3,4})", f"{info.name} {info.version}", re.IGNORECASE)
    return DeviceFacts(
        gpu=f"adreno-{adreno[1]}" if adreno else " ".join(info.name.split()),
        driver_family=_driver_family(info),
        driver=info.driver,
        kind=kind,
        type=info.type,
        fp16=info.fp16,
    )


def _driver_family(info: DeviceInfo) -> str:
    """Vendor and major version, such as `qualcomm E031.37`, `intel 2026` or `pocl 3`."""
    compiler = re.search(r"Compiler\s+([A-Z]\d+\.\d+)", info.driver)
    if compiler:
        return f"qualcomm {compiler[1]}"
    if info.platform == "Portable Computing Language":
        vendor = "pocl"
    else:
        vendor = (info.vendor.split() or ["unknown"])[0].lower()
        vendor = re.sub(r"\W.*", "", vendor) or "unknown"
    major = re.search(r"\d+", info.driver)
    return f"{vendor} {major[0]}" if major else vendor
