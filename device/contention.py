"""What other programs took of this machine's processors while something was measured on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_TICKS_IDLE = slice(3, 5)  # idle, and idle while a disk is waited for
_TICKS = slice(0, 8)  # of /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal
MIN_SHARE = 0.05
MIN_SECONDS = 0.5
"""Of all processors together: the kernel counts in hundredths of a second."""


def processor_seconds(stat: Path = Path("/proc/stat")) -> dict[str, float] | None:
    """Seconds since the machine started, summed over the processors that this process may use.

    Returns:
        `all`; `busy`, those in which anything ran, a hypervisor's other guests included; and `own`, what this process
        and its children that have ended took of them. None where the kernel does not tell.
    """
    try:
        lines = [line.split() for line in stat.read_text().splitlines() if line.startswith("cpu")]
        usable = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        ticks = [[int(field) for field in line[1:][_TICKS]] for line in lines if line[0] in usable]
        per_second = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    if not ticks:
        return None
    total, idle = sum(map(sum, ticks)), sum(sum(line[_TICKS_IDLE]) for line in ticks)
    own = os.times()
    return {
        "all": total / per_second,
        "busy": (total - idle) / per_second,
        "own": own.user + own.system + own.children_user + own.children_system,
    }


def others_share(before: Mapping[str, float] | None, after: Mapping[str, float] | None) -> float | None:
    """The part of the processors' time that went to others between two readings, in 0 to 1.

    Returns:
        None without both readings, and for less than half a second between them.
    """
    if not before or not after:
        return None
    passed = {name: after[name] - before[name] for name in ("all", "busy", "own")}
    if passed["all"] < MIN_SECONDS:
        return None
    return min(max(passed["busy"] - passed["own"], 0.0) / passed["all"], 1.0)


def contention_warning(share: float | None) -> str | None:
    """A line for whoever reads the latencies, where others took more than a quiet machine's background does.

    It does not cancel in a speed-up: an inference of many milliseconds is interrupted in most rounds, one that is short
    in few of them.
    """
    if share is None or share < MIN_SHARE:
        return None
    return (
        f"other programs took {100 * share:.0f} % of the processors' time: that holds up the slower network more than "
        "the faster one, and makes the speed-up look greater than it is"
    )
