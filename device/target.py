"""Where bundles run: one protocol for this machine and for phones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from structadmm.errors import UserError


@dataclass(frozen=True)
class ShellResult:
    """How a command on a target ended."""

    status: int
    stdout: bytes
    stderr: bytes


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

    def pull(self, path: str, destination: Path) -> None:
        """Fetch a file from the target to `destination`, whole or not at all."""

    def shell(self, argv: Sequence[str], *, timeout_s: float) -> ShellResult:
        """Run `argv`; a non-zero exit is returned, not raised.

        Raises:
            TargetTimeoutError: still running after `timeout_s`; it has been killed.
            TargetOfflineError: the target went away.
        """

    def facts(self) -> dict[str, Any]:
        """What it is and what state it is in now: clocks, temperature, load. Unknown facts are absent."""

    def close(self) -> None:
        """Remove what this session left on the target and let go of it."""


def open_target(device: str) -> Target:
    """The target that a `--device` option names.

    Args:
        device: `local`, `local:intel`, `local:pocl`, `local:PART-OF-A-NAME`.

    Raises:
        UserError: there is no such target.
        DeviceError: it is there and cannot be used.
    """
    scheme, _, rest = device.partition(":")
    if scheme == "local":
        from device.local_target import LocalTarget

        return LocalTarget(rest)
    if scheme == "adb":
        from device.adb_target import open_adb_target

        return open_adb_target(device)
    raise UserError(f"unknown device {device!r}: expected local, local:PART-OF-A-NAME, adb:SERIAL or adb:HOST:PORT")
