"""What can go wrong between this project and a device, each with the exit status its command ends with."""

from __future__ import annotations

from enum import IntEnum

from structadmm.errors import InvariantError, UserError


class DeviceError(UserError):
    """A device, its driver, or the way to it failed; the line says what to do about it."""


class TargetTimeoutError(DeviceError):
    """A command was still running on the target after its time-out; it has been killed."""


class TargetOfflineError(DeviceError):
    """The target went away or cannot be reached."""


class TargetRefusedError(DeviceError):
    """The target is there, but does not take what it is given, whatever that is: no space, no permission."""


class RunnerStatus(IntEnum):
    """The runner's exit statuses: `device/runner/status.h`."""

    OK = 0
    USAGE = 2
    FILE = 3
    INTEGRITY = 4
    TRUNCATED = 5
    NEWER = 6
    MALFORMED = 7
    INPUT = 8
    NO_OPENCL = 9
    NO_DEVICE = 10
    OPENCL = 11
    CHECK = 12
    MEMORY = 13
    DEVICE_LIMIT = 14


class RunnerError(DeviceError):
    """The runner refused or failed.

    Attributes:
        status: the class of the error.
        build_log: the driver's whole log where a program did not build, else empty.
    """

    def __init__(self, message: str, status: RunnerStatus, build_log: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.build_log = build_log


class CheckError(InvariantError):
    """A bundle computes something else on a device than where it was built."""
