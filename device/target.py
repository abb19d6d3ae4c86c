"""Where bundles run: one protocol for this machine and for phones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from structadmm.errors import UserError
from structadmm.progress import Reporter


@dataclass(frozen=True)
class ShellResult:
    """How a command on a target ended."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class StateFile:
    """A file on the target that begins with a number about its state.

    Attributes:
        name: as `Target.facts` calls the quantity, with its unit.
        path: on the target.
        scale: the number divided by this is in that unit.
    """

    name: str
    path: str
    scale: float


class Target(Protocol):
    """Where bundles run. `LocalTarget` is this machine.

    Paths on the target are strings; paths on this machine are `Path`.
    """

    @property
    def name(self) -> str:
        """What the user would give as `--device` to get this one again."""

    @property
    def kind(self) -> Literal["host", "phone"]:
        """What a time measured here is: a host figure, or one of a phone."""

    @property
    def abi(self) -> str:
        """Which runner it needs: a key of `device.runner_build.ABIS`."""

    @property
    def runner_options(self) -> Sequence[str]:
        """Options that every runner command that uses a device gets, such as `--device 0.1`."""

    @property
    def no_opencl_remedy(self) -> str:
        """What else to try here where no OpenCL library loads; may be empty."""

    @property
    def program_cache(self) -> str:
        """Directory on the target where the runner keeps program binaries."""

    def workdir(self) -> str:
        """Directory on the target for files of this session; it exists."""

    def push(self, source: Path, name: str) -> str:
        """Bring a file or a flat directory to the target, whole or not at all.

        Args:
            source: on this machine.
            name: a plain name for it; what lay there under that name before is replaced.

        Returns:
            its path on the target.
        """

    def discard(self, path: str) -> None:
        """Remove what `push` brought to `path`, where it is a copy."""

    def pull(self, path: str, destination: Path) -> None:
        """Fetch a file from the target to `destination`, whole or not at all."""

    def shell(self, argv: Sequence[str], *, timeout_s: float, retry: bool = False) -> ShellResult:
        """Run `argv`; a non-zero exit is returned, not raised.

        Args:
            argv: program and arguments.
            timeout_s: after this it is killed.
            retry: whether running it twice does no harm; then a broken connection is tried again.

        Raises:
            TargetTimeoutError: still running after `timeout_s`; it has been killed.
            TargetOfflineError: the target went away.
        """

    def facts(self) -> dict[str, Any]:
        """What it is and what state it is in now: clocks, temperature, load. Unknown facts are absent."""

    def state_files(self) -> Sequence[StateFile]:
        """What can be read while something runs: clocks and temperatures of the device that does the work."""

    def fixed_performance_mode(self) -> AbstractContextManager[bool]:
        """Hold the clocks steady inside the context; yields whether the target does."""

    def close(self) -> None:
        """Remove what this session left on the target and let go of it."""


def open_target(device: str, reporter: Reporter | None = None) -> Target:
    """The target that a `--device` option names.

    Args:
        device: `local`, `local:PART-OF-A-NAME`, `adb:SERIAL`, `adb:HOST:PORT` or `adb:`.
        reporter: hears what a person has to do on a phone, and of connections made again.

    Raises:
        UserError: there is no such target.
        DeviceError: it is there and cannot be used.
    """
    check_device_name(device)
    scheme, _, rest = device.partition(":")
    if scheme == "local":
        from device.local_target import LocalTarget

        return LocalTarget(rest)
    from device.adb_target import open_adb_target

    return open_adb_target(device, reporter=reporter)


def check_device_name(device: str) -> None:
    """Whether `device` has one of the forms that a `--device` option takes; nothing is looked for.

    Raises:
        UserError: it has not.
    """
    if device.partition(":")[0] not in ("local", "adb"):
        raise UserError(f"unknown device {device!r}: expected local, local:PART-OF-A-NAME, adb:SERIAL or adb:HOST:PORT")
