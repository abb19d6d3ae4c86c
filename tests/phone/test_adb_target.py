from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device import adb_connection
from device.adb_target import AdbTarget, TargetUnauthorisedError
from device.errors import DeviceError, TargetOfflineError, TargetTimeoutError
from device.target import open_target
from structadmm.errors import UserError
from structadmm.progress import SilentReporter, Task
from tests.emulated_phone import EmulatedPhone

TMP = "/data/local/tmp"


class RecordingReporter(SilentReporter):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.advanced: list[int] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, description: str, total: int | None = None) -> Iterator[Task]:
        reporter = self

        class Recording:
            def advance(self, amount: int = 1, note: str | None = None) -> None:
                reporter.advanced.append(amount)

        yield Recording()


def make_file(path: Path, size: int) -> bytes:
    content = os.urandom(size)
    path.write_bytes(content)
    return content


def left_over(phone: EmulatedPhone) -> list[Path]:
    """Partial files on the phone."""
    return list(phone.files.host_path(TMP).rglob(".*"))


def running(marker: str) -> bool:
    return subprocess.run(["pgrep", "-f", marker], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_a_command_returns_its_status_and_both_outputs_apart(target: AdbTarget) -> None:
    result = target.shell(["sh", "-c", "printf out; printf err >&2; exit 7"], timeout_s=10)
    assert (result.status, result.stdout, result.stderr) == (7, b"out", b"err")


def test_a_command_that_is_not_there_is_a_status_and_not_an_exception(target: AdbTarget) -> None:
    result = target.shell(["/data/local/tmp/none"], timeout_s=10)
    assert result.status == 127
    assert b"/data/local/tmp/none" in result.stderr


# Leading slashes are left out: the emulated phone rewrites its own paths inside arguments.
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0/"), max_size=30), min_size=1, max_size=4))
def test_arguments_arrive_as_they_are_whatever_they_contain(target: AdbTarget, words: list[str]) -> None:
    result = target.shell(["printf", "%s\\n", *words], timeout_s=10)
    assert result.stdout.decode() == "".join(f"{word}\n" for word in words)


@pytest.mark.parametrize(
    "word", ["$(touch {0})", "`touch {0}`", "; touch {0};", "\n touch {0}\n", "'; touch {0} '", "| touch {0}"]
)
def test_nothing_in_an_argument_or_a_name_is_run(target: AdbTarget, phone: EmulatedPhone, word: str) -> None:
    hostile = word.format(f"{TMP}/pwned")
    target.shell(["echo", hostile], timeout_s=10)
    with pytest.raises(DeviceError):
        target.pull(f"{TMP}/{word.format('pwned')}".replace("\n", " "), Path("/nonexistent/never-written"))
    assert not phone.files.host_path(f"{TMP}/pwned").exists()


def test_binary_output_arrives_unchanged(target: AdbTarget, phone: EmulatedPhone) -> None:
    content = bytes(range(256)) * 1000
    phone.files.host_path(f"{TMP}/all bytes").write_bytes(content)
    assert target.shell(["cat", f"{TMP}/all bytes"], timeout_s=10).stdout == content


@pytest.mark.parametrize(
    "command", [["sleep", "600.25"], ["setsid", "sleep", "600.25"], ["sh", "-c", "trap '' HUP TERM; sleep 600.25"]]
)
def test_a_time_out_kills_all_that_the_command_started(target: AdbTarget, command: list[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(TargetTimeoutError, match=r"longer than 0.5 s .* killed"):
        target.shell(command, timeout_s=0.5)
    assert time.monotonic() - begun < 8  # the scan of /proc on a busy machine
    assert not running("sleep 600.25")
    assert target.shell(["echo", "alive"], timeout_s=10).stdout == b"alive\n"


def test_output_without_end_is_cut_off(target: AdbTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device.adb_target._OUTPUT_MAX_BYTES", 1 << 20)
    with pytest.raises(DeviceError, match="printed more than 1 MiB"):
        target.shell(["yes", "for ever"], timeout_s=30)
    assert not running("yes for ever")


def test_a_push_arrives_whole_with_its_mode_and_is_not_repeated(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    target = connect(phone, reporter=reporter)
    content = make_file(tmp_path / "runner", 3_000_001)
    (tmp_path / "runner").chmod(0o755)
    path = target.push(tmp_path / "runner", "runner")
    there = phone.files.host_path(path)
    assert there.read_bytes() == content
    assert there.stat().st_mode & 0o777 == 0o755
    assert sum(reporter.advanced) == len(content)
    before = there.stat().st_ino
    assert target.push(tmp_path / "runner", "runner") == path
    assert there.stat().st_ino == before
    assert left_over(phone) == []


def test_new_content_under_an_old_name_does_not_disturb_who_uses_the_old(
    target: AdbTarget, phone: EmulatedPhone, tmp_path: Path
) -> None:
    old_content = make_file(tmp_path / "x", 1000)
    old = target.push(tmp_path / "x", "x")
    new_content = make_file(tmp_path / "x", 1000)
    new = target.push(tmp_path / "x", "x")
    assert phone.files.host_path(old).read_bytes() == old_content
    assert phone.files.host_path(new).read_bytes() == new_content


def test_a_directory_is_pushed_with_its_sums_last(target: AdbTarget, phone: EmulatedPhone, tmp_path: Path) -> None:
    bundle = tmp_path / "a.clbundle"
    bundle.mkdir()
    contents = {name: make_file(bundle / name, 5000) for name in ("plan.txt", "weights.bin", "z.npy", "SHA256SUMS")}
    path = target.push(bundle, "a.clbundle")
    assert {entry.name: entry.read_bytes() for entry in phone.files.host_path(path).iterdir()} == contents
    sends = [entry.stat().st_mtime_ns for entry in phone.files.host_path(path).iterdir() if entry.name != "SHA256SUMS"]
    assert phone.files.host_path(path).joinpath("SHA256SUMS").stat().st_ctime_ns >= max(sends)


def test_a_file_that_was_damaged_on_the_phone_is_sent_again(
    target: AdbTarget, phone: EmulatedPhone, tmp_path: Path
) -> None:
    content = make_file(tmp_path / "x", 100_000)
    there = phone.files.host_path(target.push(tmp_path / "x", "x"))
    there.write_bytes(content[:50_000] + b"\0" + content[50_001:])
    target.push(tmp_path / "x", "x")
    assert there.read_bytes() == content


def test_a_file_that_is_damaged_on_its_way_is_sent_again(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    reporter = RecordingReporter()
    content = make_file(tmp_path / "x", 100_000)
    phone.faults.corrupt_push = True
    path = connect(phone, reporter=reporter).push(tmp_path / "x", "x")
    assert phone.files.host_path(path).read_bytes() == content
    assert phone.faults.struck == {"corrupt_push": 1}
    assert any("arrived damaged; trying again" in line for line in reporter.lines)


def test_too_little_space_is_noticed_before_anything_is_sent(
    target: AdbTarget, phone: EmulatedPhone, tmp_path: Path
) -> None:
    make_file(tmp_path / "x", 2_000_000)
    phone.faults.disk_free_bytes = 10 << 20
    with pytest.raises(DeviceError, match="has 10 MiB free for x, which needs 1 MiB and 16 to spare"):
        target.push(tmp_path / "x", "x")
    assert "sync:" not in phone.opened_services


def test_a_disk_that_fills_up_during_a_push_is_said_and_cleaned_up(
    target: AdbTarget, phone: EmulatedPhone, tmp_path: Path
) -> None:
    make_file(tmp_path / "x", 8_000_000)
    phone.faults.disk_full_after_bytes = 3_000_000
    with pytest.raises(DeviceError, match="No space left on device") as caught:
        target.push(tmp_path / "x", "x")
    assert "\n" not in str(caught.value)
    assert left_over(phone) == []
    target.push(tmp_path / "x", "x")


def test_a_pull_arrives_whole(target: AdbTarget, phone: EmulatedPhone, tmp_path: Path) -> None:
    content = make_file(phone.files.host_path(f"{TMP}/result"), 3_000_001)
    target.pull(f"{TMP}/result", tmp_path / "result")
    assert (tmp_path / "result").read_bytes() == content


@pytest.mark.parametrize(
    "path", ["", "relative/x", "/data/../etc/passwd", "/data//x", "/data/local/tmp/", "/x\0y/z", "/x"]
)
def test_a_path_that_is_not_plainly_absolute_is_refused(target: AdbTarget, tmp_path: Path, path: str) -> None:
    with pytest.raises(UserError, match="expected an absolute path"):
        target.pull(path, tmp_path / "x")


def test_a_pull_that_fails_leaves_nothing_and_what_was_there(target: AdbTarget, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")
    with pytest.raises(DeviceError, match="has no readable file"):
        target.pull(f"{TMP}/none", tmp_path / "kept")
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir() if entry.is_file()] == [("kept", "old")]


def test_a_pull_is_bounded(target: AdbTarget, phone: EmulatedPhone, tmp_path: Path) -> None:
    make_file(phone.files.host_path(f"{TMP}/huge"), 200_000)
    with pytest.raises(DeviceError, match="more than 100000 bytes"):
        target.pull(f"{TMP}/huge", tmp_path / "huge", max_bytes=100_000)
    assert not (tmp_path / "huge").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-rf", "a b", "x\n", ""])
def test_a_name_that_is_not_plain_is_refused(target: AdbTarget, tmp_path: Path, name: str) -> None:
    make_file(tmp_path / "x", 10)
    with pytest.raises(UserError, match="expected a plain name"):
        target.push(tmp_path / "x", name)


def test_only_our_own_directory_is_ever_removed(target: AdbTarget, phone: EmulatedPhone) -> None:
    make_file(phone.files.host_path(f"{TMP}/somebody-elses"), 10)
    with pytest.raises(UserError, match="is not below"):
        target.remove(f"{TMP}/somebody-elses")
    assert phone.files.host_path(f"{TMP}/somebody-elses").exists()


def test_names_that_are_not_plain_are_not_listed(target: AdbTarget, phone: EmulatedPhone) -> None:
    directory = phone.files.host_path(f"{TMP}/structadmm/x")
    directory.mkdir(parents=True)
    for name in ("good.txt", "-rf", "a;b", "two words", "..hidden"):
        (directory / name).write_text("")
    assert target.list_names(f"{TMP}/structadmm/x") == ["good.txt"]


def test_old_files_are_pruned_and_recent_ones_kept(target: AdbTarget, phone: EmulatedPhone, tmp_path: Path) -> None:
    make_file(tmp_path / "x", 10)
    old = target.push(tmp_path / "x", "x")
    make_file(tmp_path / "x", 10)
    new = target.push(tmp_path / "x", "x")
    three_days_ago = time.time() - 3 * 86400
    os.utime(phone.files.host_path(old).parent, (three_days_ago, three_days_ago))
    target.prune(unused_for_days=1)
    assert not phone.files.host_path(old).exists()
    assert phone.files.host_path(new).exists()


def test_what_nobody_used_for_a_week_goes_with_the_next_push(
    target: AdbTarget, phone: EmulatedPhone, tmp_path: Path
) -> None:
    make_file(tmp_path / "old", 10)
    old = phone.files.host_path(target.push(tmp_path / "old", "old")).parent
    crashed = phone.files.host_path(f"{TMP}/structadmm/sessions/crashed")
    crashed.mkdir(parents=True)
    nine_days_ago = time.time() - 9 * 86400
    for directory in (old, crashed):
        os.utime(directory, (nine_days_ago, nine_days_ago))
    make_file(tmp_path / "new", 10)
    new = phone.files.host_path(target.push(tmp_path / "new", "new"))
    assert not old.exists()
    assert not crashed.exists()
    assert new.exists()


def test_the_session_directory_is_there_and_goes_at_close(target: AdbTarget, phone: EmulatedPhone) -> None:
    directory = phone.files.host_path(target.workdir())
    assert target.workdir() == target.workdir()
    make_file(directory / "output.npy", 10)
    target.close()
    assert not directory.exists()


def test_facts_come_from_the_phones_files_and_unknown_ones_are_absent(target: AdbTarget, phone: EmulatedPhone) -> None:
    phone.files.write_sysfs("class/kgsl/kgsl-3d0/devfreq/cur_freq", "257000000")
    phone.files.write_sysfs("class/kgsl/kgsl-3d0/temp", "48500")
    phone.files.host_path("/sys/class/kgsl/kgsl-3d0/devfreq/governor").unlink()
    facts = target.facts()
    assert facts["model"] == "Emulated Phone"
    assert facts["gpu"] == "Adreno640v2"
    assert facts["gpu_clock_mhz"] == 257.0
    assert facts["gpu_temperature_c"] == 48.5
    assert facts["battery_percent"] == 87
    assert facts["battery_temperature_c"] == 29.0
    assert facts["temperatures_c"] == {"gpu-usr": 31.0, "battery": 29.0}
    assert "gpu_governor" not in facts


def test_a_phone_that_runs_this_computers_programs_says_so(target: AdbTarget) -> None:
    assert (target.kind, target.abi) == ("host", "host")


def test_a_real_phones_runner_is_chosen_by_its_processor(target: AdbTarget, phone: EmulatedPhone) -> None:
    properties = phone.files.host_path("/system/build.prop")
    lines = [
        line for line in properties.read_text().splitlines() if not line.startswith(("ro.structadmm", "ro.product.cpu"))
    ]
    properties.write_text("\n".join([*lines, "ro.product.cpu.abi=arm64-v8a\n"]))
    assert (target.kind, target.abi) == ("phone", "arm64-v8a")


def test_a_phone_of_an_android_that_is_too_old_is_refused(target: AdbTarget, phone: EmulatedPhone) -> None:
    properties = phone.files.host_path("/system/build.prop")
    text = properties.read_text().replace("ro.structadmm.emulated=1\n", "")
    properties.write_text(
        text.replace("version.sdk=33", "version.sdk=25").replace("version.release=13", "version.release=7.1.2")
    )
    with pytest.raises(DeviceError, match=r"runs Android 7\.1\.2 \(API level 25\), expected 8\.0 \(26\) or later"):
        _ = target.abi


def test_what_was_interrupted_does_not_run_on_when_the_target_is_closed(
    target: AdbTarget, phone: EmulatedPhone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """adbd leaves programs of an `exec:` stream alone when the stream ends."""
    assert target.shell(["true"], timeout_s=10).status == 0
    read = adb_connection.AdbStream.read

    def interrupted(stream: adb_connection.AdbStream, deadline: float) -> bytes:
        if b"started" in (data := read(stream, deadline)):
            raise KeyboardInterrupt
        return data

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adb_connection.AdbStream, "read", interrupted)
        target.shell(["sh", "-c", "echo started; sleep 41.25"], timeout_s=60)
    assert running("sleep 41.25")
    target.close()
    assert not running("sleep 41.25")
    assert not list(phone.files.host_path(f"{TMP}/structadmm").glob(".stderr-*"))


def test_the_performance_mode_is_set_and_put_back(target: AdbTarget, phone: EmulatedPhone) -> None:
    mode = phone.files.host_path("/system/etc/power_mode")
    with pytest.raises(KeyboardInterrupt), target.fixed_performance_mode() as agreed:
        assert agreed
        assert mode.read_text() == "true\n"
        raise KeyboardInterrupt
    assert mode.read_text() == "false\n"


def test_the_prompt_on_the_phone_is_explained_with_the_keys_fingerprint(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget]
) -> None:
    phone.authorisation.forget_all()
    reporter = RecordingReporter()
    assert connect(phone, reporter=reporter).shell(["echo", "hi"], timeout_s=10).stdout == b"hi\n"
    assert len(reporter.lines) == 1
    assert "tap Allow" in reporter.lines[0]
    assert len(reporter.lines[0].rsplit(" ", 1)[1]) == len("00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF)")


def test_a_computer_that_is_not_allowed_is_told_what_to_do(tmp_path: Path, connect: Callable[..., AdbTarget]) -> None:
    with EmulatedPhone(tmp_path / "phone", answer=lambda _key: False) as phone:
        with pytest.raises(TargetUnauthorisedError, match=r"has not allowed this computer.*tap Allow") as caught:
            connect(phone, allow_s=0.3).facts()
        assert caught.value.exit_status == 2


@pytest.mark.parametrize("fault", ["offline", "refuse_connections"])
def test_a_phone_that_does_not_answer_is_offline_in_one_line(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget], fault: str
) -> None:
    setattr(phone.faults, fault, True)
    target = connect(phone, connect_timeout_s=0.3)
    with pytest.raises(TargetOfflineError, match=r"is offline .*check its cable") as caught:
        target.shell(["true"], timeout_s=5)
    assert "\n" not in str(caught.value)
    phone.faults.clear()
    assert target.shell(["true"], timeout_s=5).status == 0


def test_a_port_where_nobody_listens_is_offline(phone: EmulatedPhone, connect: Callable[..., AdbTarget]) -> None:
    target = connect(phone)
    phone.stop()
    with pytest.raises(TargetOfflineError, match="Connection refused"):
        target.facts()


def test_a_connection_that_died_while_idle_is_made_again_without_a_word(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget]
) -> None:
    reporter = RecordingReporter()
    target = connect(phone, reporter=reporter)
    target.shell(["true"], timeout_s=5)
    phone.unplug()
    time.sleep(0.1)  # let the reset arrive
    assert target.shell(["echo", "again"], timeout_s=5).stdout == b"again\n"
    assert reporter.lines == []


def test_a_push_goes_on_after_dropped_connections(target: AdbTarget, phone: EmulatedPhone, tmp_path: Path) -> None:
    content = make_file(tmp_path / "x", 5_000_000)
    phone.faults.drop_after_received = 2_000_000
    path = target.push(tmp_path / "x", "x")
    assert phone.faults.struck == {"drop_after_received": 1}
    assert phone.files.host_path(path).read_bytes() == content
    assert left_over(phone) == []


def test_a_command_is_not_run_twice_unless_it_may_be(target: AdbTarget, phone: EmulatedPhone) -> None:
    count = ["sh", "-c", f"echo x >> {TMP}/count; sleep 0.3; yes | head -c 100000"]
    target.shell(["true"], timeout_s=5)
    phone.faults.drop_after_sent = 50_000
    with pytest.raises(TargetOfflineError):
        target.shell(count, timeout_s=10)
    assert phone.files.host_path(f"{TMP}/count").read_text() == "x\n"
    phone.faults.drop_after_sent = 50_000
    assert len(target.shell(count, timeout_s=10, retry=True).stdout) == 100_000
    assert phone.files.host_path(f"{TMP}/count").read_text() == "x\nx\nx\n"


def test_a_program_outlives_no_dropped_connection(target: AdbTarget, phone: EmulatedPhone) -> None:
    target.shell(["true"], timeout_s=5)
    threading.Timer(0.5, phone.unplug).start()
    with pytest.raises(TargetOfflineError):
        target.shell(["setsid", "sleep", "601.5"], timeout_s=10)
    target.shell(["true"], timeout_s=5)  # the next connection cleans up
    assert not running("sleep 601.5")


def test_a_silent_phone_is_given_up_in_the_middle_of_a_push(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    target = connect(phone, io_timeout_s=0.5)
    content = make_file(tmp_path / "x", 5_000_000)
    phone.faults.hang_after_received = 2_000_000
    path = target.push(tmp_path / "x", "x")  # the second attempt
    assert phone.files.host_path(path).read_bytes() == content
    assert phone.faults.struck == {"hang_after_received": 1}


def test_two_sessions_push_the_same_file_at_once(
    phone: EmulatedPhone, connect: Callable[..., AdbTarget], tmp_path: Path
) -> None:
    content = make_file(tmp_path / "x", 4_000_000)
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(connect(phone).push(tmp_path / "x", "x"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3
    assert len(set(paths)) == 1
    assert phone.files.host_path(paths[0]).read_bytes() == content
    assert left_over(phone) == []


def test_several_phones_are_used_at_once(tmp_path: Path, connect: Callable[..., AdbTarget]) -> None:
    make_file(tmp_path / "x", 1_000_000)
    with EmulatedPhone(tmp_path / "one") as one, EmulatedPhone(tmp_path / "two") as two:
        phones, paths = [one, two], ["", ""]

        def push(number: int) -> None:
            paths[number] = connect(phones[number]).push(tmp_path / "x", "x")

        threads = [threading.Thread(target=push, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for phone, path in zip(phones, paths, strict=True):
            assert phone.files.host_path(path).read_bytes() == (tmp_path / "x").read_bytes()


def test_an_address_opens_a_phone_as_a_target(phone: EmulatedPhone) -> None:
    target = open_target(f"adb:127.0.0.1:{phone.port}")
    assert isinstance(target, AdbTarget)
    assert target.name == f"adb:127.0.0.1:{phone.port}"


def test_the_digest_that_names_a_pushed_file_is_of_its_content(target: AdbTarget, tmp_path: Path) -> None:
    content = make_file(tmp_path / "x", 10)
    path = target.push(tmp_path / "x", "y")
    inner = hashlib.sha256(content).hexdigest()
    assert path.split("/")[-2] == hashlib.sha256(f"x:{inner}\n".encode()).hexdigest()[:32]
