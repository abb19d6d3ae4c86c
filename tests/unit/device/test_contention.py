"""What other programs took of the processors, from the kernel's counters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device.contention import contention_warning, others_share, processor_seconds
from device.throttling import judge


def stat(path: Path, *, busy: int, idle: int, steal: int = 0) -> Path:
    """Counters of the processors that this process may use, and of one that it may not, in hundredths of a second."""
    ours = "".join(f"cpu{cpu} {busy} 0 0 {idle} 0 0 0 {steal} 7 7\n" for cpu in sorted(os.sched_getaffinity(0)))
    path.write_text(f"cpu 1 1 1 1 1 1 1 1 0 0\n{ours}cpu9999 5000 0 0 5000 0 0 0 0 0 0\nintr 1\n")
    return path


def test_the_processors_of_this_process_are_added_up(tmp_path: Path) -> None:
    count, ticks = len(os.sched_getaffinity(0)), os.sysconf("SC_CLK_TCK")
    found = processor_seconds(stat(tmp_path / "stat", busy=300, idle=500, steal=200))
    assert found is not None
    assert found["all"] == pytest.approx(count * 1000 / ticks)
    assert found["busy"] == pytest.approx(count * 500 / ticks)  # a neighbour of the hypervisor's is busy, too


@pytest.mark.parametrize("text", [None, "", "cpu0 a b c d e f g h\n"])
def test_a_kernel_that_does_not_tell_is_no_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert processor_seconds(tmp_path / "stat") is None


def test_what_a_child_took_is_our_own(tmp_path: Path) -> None:
    file = stat(tmp_path / "stat", busy=0, idle=1)
    before = processor_seconds(file)
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    after = processor_seconds(file)
    assert before is not None and after is not None
    assert after["own"] - before["own"] >= 0.29


def test_the_share_of_others_is_what_is_busy_and_not_our_own() -> None:
    before = {"all": 100.0, "busy": 50.0, "own": 10.0}
    after = {"all": 110.0, "busy": 58.0, "own": 15.0}
    assert others_share(before, after) == pytest.approx(0.3)
    assert others_share(before, {**after, "own": 18.5}) == 0.0  # counters are read one after the other
    assert others_share(before, {**before, "all": 100.4}) is None
    assert others_share(None, after) is None


def test_a_busy_neighbour_is_said_and_a_quiet_machine_is_not() -> None:
    samples = [[6.0] * 16, [0.6] * 16]
    assert judge(samples, [], None, 0.01).steady
    assert judge(samples, [], None, None).steady
    found = judge(samples, [], None, 0.34)
    assert not found.steady
    assert found.others_share == 0.34
    assert found.warnings == (contention_warning(0.34),)
    assert "other programs took 34 % of the processors' time" in found.warnings[0]
