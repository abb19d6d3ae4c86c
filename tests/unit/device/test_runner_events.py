"""Nothing the runner prints is trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device.errors import DeviceError, RunnerError, RunnerStatus
from device.runner_build import SOURCE_DIR
from device.runner_events import LaunchTime, Statistics, read_output
from device.target import ShellResult
from structadmm.errors import StructadmmError, UserError

LAUNCH = {
    "event": "launch",
    "index": 0,
    "layer": "conv1",
    "kernel": "k",
    "median_ms": 1.0,
    "min_ms": 1,
    "p90_ms": 2.0,
    "flops": 5,
    "bytes": 6,
    "gflops_per_s": None,
    "gbytes_per_s": 3.0,
}


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_events_are_read_in_order_and_unknown_ones_are_ignored() -> None:
    output = read_output(
        ShellResult(0, lines(LAUNCH, {"event": "new"}, {**LAUNCH, "index": 1, "added": [1]}), b"chatter")
    )
    assert [launch.index for launch in output.all("launch", LaunchTime)] == [0, 1]


@pytest.mark.parametrize(
    "stdout",
    [b"garbage\n", b"[1]\n", b'{"event": "launch"\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"1\n", b"null\n"],
)
def test_output_that_is_no_json_object_is_a_device_error(stdout: bytes) -> None:
    with pytest.raises(DeviceError, match="not a JSON object"):
        read_output(ShellResult(0, stdout, b""))


@pytest.mark.parametrize(
    "change",
    [
        {"median_ms": None},
        {"median_ms": "fast"},
        {"median_ms": float("nan")},
        {"flops": 1.5},
        {"layer": 3},
    ],
)
def test_a_field_of_another_kind_is_named(change: dict[str, object]) -> None:
    output = read_output(ShellResult(0, lines({**LAUNCH, **change}), b""))
    with pytest.raises(DeviceError, match=next(iter(change))):
        output.all("launch", LaunchTime)


def test_a_missing_or_repeated_event_is_an_error() -> None:
    for count in (0, 2):
        with pytest.raises(DeviceError, match=f"got {count}"):
            read_output(ShellResult(0, lines(*[LAUNCH] * count), b"")).one("launch", LaunchTime)


def test_an_exit_status_of_the_runner_keeps_its_class_and_its_line() -> None:
    log = {"event": "build_log", "log": "line 1\nline 2"}
    with pytest.raises(RunnerError, match=r"^clBuildProgram failed$") as caught:
        read_output(ShellResult(11, lines(log), b"driver chatter\nrunner: clBuildProgram failed\n"))
    assert caught.value.status is RunnerStatus.OPENCL
    assert caught.value.build_log == "line 1\nline 2"
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(("status", "said"), [(-11, "signal 11"), (139, "exit status 139"), (1, "exit status 1")])
def test_a_crash_is_told_from_a_refusal(status: int, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        read_output(ShellResult(status, b"", b""))
    assert not isinstance(caught.value, RunnerError)


@settings(deadline=None, max_examples=200)
@given(st.integers(-64, 255), st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_arrives_ends_in_a_value_or_in_one_printable_line(status: int, stdout: bytes, stderr: bytes) -> None:
    try:
        read_output(ShellResult(status, stdout, stderr)).all("launch", LaunchTime)
    except StructadmmError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 2000


def test_the_three_lists_of_exit_statuses_agree() -> None:
    header = (SOURCE_DIR / "status.h").read_text()
    in_c = {name: int(value) for name, value in re.findall(r"STATUS_(\w+) = (\d+)", header)}
    assert in_c == {status.name: status.value for status in RunnerStatus}
    readme = (SOURCE_DIR / "README.md").read_text()
    table = readme[readme.index("| status |") : readme.index("Statuses 2 to 8")]
    assert [int(value) for value in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == sorted(in_c.values())


def test_statistics_need_every_percentile() -> None:
    with pytest.raises(ValueError, match="p99"):
        Statistics.model_validate({"min": 1, "median": 1, "mean": 1, "p10": 1, "p90": 1})


def test_every_file_of_the_runner_is_in_its_table() -> None:
    readme = (SOURCE_DIR / "README.md").read_text()
    for path in [*SOURCE_DIR.glob("*.c"), *SOURCE_DIR.glob("*.h")]:
        names = (f"`{path.name}`", f"`{Path(path.name).stem}.*`")
        assert any(name in readme for name in names), path.name
