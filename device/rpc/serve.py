"""Serving a device to a tracker for good: a supervisor that starts the bridge, watches it, and starts it again."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from device.rpc.address import check_key, is_loopback, parse_address
from device.rpc.frames import FrameError, FrameTimeoutError
from device.rpc.processes import Partner
from device.rpc.serve_config import Predecessor, ServeConfig
from structadmm.errors import UserError
from structadmm.progress import Reporter

_START_S = 120.0
_GRACE_S = 20.0
_MAX_FAILURES = 5
_PAUSE_S = 0.25
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Life:
    """One life of the bridge.

    Attributes:
        registered: whether it got as far as that.
        left: what the next one has to know.
    """

    registered: bool
    left: Predecessor


def serve(config: ServeConfig, reporter: Reporter) -> None:
    """Serve one device until interrupted.

    Raises:
        UserError: the device or the tracker is not there, or stayed away for too long; or the bridge died several
            times in a row before it could register.
    """
    _refuse_unreachable(config)
    _adopt_orphans()
    failures = 0
    predecessor = Predecessor()
    while True:
        life = supervise(config, reporter, predecessor)
        predecessor = life.left
        failures = 1 if life.registered else failures + 1
        if failures == _MAX_FAILURES:
            raise UserError(f"the bridge to {config.device} ended {failures} times in a row: try `structadmm doctor`")
        time.sleep(_PAUSE_S * 2**failures)


def supervise(config: ServeConfig, reporter: Reporter, predecessor: Predecessor) -> Life:
    """Start the bridge and watch it until it ends.

    Raises:
        UserError: the bridge says that it cannot go on.
    """
    # A bridge that is killed tidies nothing up.
    with tempfile.TemporaryDirectory(prefix="structadmm-bridge-", ignore_cleanup_errors=True) as scratch:
        return _supervise(config, reporter, predecessor, Path(scratch))


def _supervise(config: ServeConfig, reporter: Reporter, left: Predecessor, scratch: Path) -> Life:
    others = set(psutil.Process().children())
    registered = False
    doing = "starting"
    bridge = Partner("device.rpc.bridge", max_payload=0, scratch=scratch)
    try:
        bridge.frames.send({"config": config.model_dump(mode="json"), "predecessor": left.model_dump(mode="json")})
        within_s = _START_S
        while True:
            message, _ = bridge.frames.receive(within_s)
            if "within_s" in message:
                within_s, doing = float(message["within_s"]), str(message["doing"])
            elif "leaves" in message:
                left = Predecessor.model_validate(message["leaves"])
            elif "registered" in message:
                registered = True
                reporter.say(f"{config.device}: {message['registered']}")
            elif "fatal" in message:
                raise UserError(str(message["fatal"]))
            else:
                reporter.say(f"{config.device}: {message.get('say')}")
    except FrameTimeoutError:
        reporter.say(f"{config.device}: the bridge hung while {doing}: killed, starting it again")
    except FrameError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            bridge.process.wait(timeout=1.0)
        reporter.say(f"{config.device}: the bridge {bridge.describe_end()} while {doing}: starting it again")
    except BaseException:
        bridge.end(grace_s=_GRACE_S)  # it tidies up on the phone
        raise
    finally:
        family = _descendants(bridge.process.pid)
        bridge.end()
        _kill([*family, *(set(psutil.Process().children(recursive=True)) - others)])
    return Life(registered, left)


def _refuse_unreachable(config: ServeConfig) -> None:
    check_key(config.key)
    tracker = parse_address(config.tracker)
    if is_loopback(config.host) and not tracker.is_loopback:
        raise UserError(
            f"the tracker is at {tracker} and this server would listen on {config.host}, which other machines do not "
            "reach: give --host this machine's address in a network that you trust"
        )


def _adopt_orphans() -> None:
    """What a killed bridge leaves running, such as a kernel without end, becomes ours to end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return children


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            process.kill()
            process.wait(timeout=5.0)
