"""Faults at random points of everything that `AdbTarget` does, as many as one has time for.

    python -m tests.phone.fault_soak --trials 500 --seed 1 [--out results/reference/fault_soak]

Each trial makes one thing go wrong while one operation runs. It is *good* when the operation either succeeded, with the
right result, or ended with one line and exit status 2, within its time, and when afterwards a second attempt on the
mended phone succeeds and no file under its final name is anything but whole.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import platform
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from device.adb_address import AdbAddress
from device.adb_keys import load_signer
from device.adb_target import AdbTarget
from device.local_target import choose_local_device, find_local_devices
from device.runner_build import build_runner
from device.runner_events import Check, Event, read_output
from structadmm.errors import StructadmmError
from structadmm.files import write_json, write_text
from structadmm.source import source_commit
from tests.emulated_phone import EmulatedPhone
from tests.hand_made_bundle import scale_add_files, write_files

TRIAL_LIMIT_S = 45.0
"""A trial that takes longer counts as hung. Three attempts end after 20 s on an idle machine."""

_LINES = 40
_PROGRAM = f"""i=0
while [ $i -lt {_LINES} ]; do
    printf '{{"event": "tick", "number": %d, "padding": "........................"}}\\n' $i
    i=$((i+1)); sleep 0.005
done
"""


@dataclass
class Report:
    """What happened in all trials.

    Attributes:
        outcomes: (operation, fault, "succeeded" | "refused" | "did not strike") -> how often.
        bad: one line for each trial that broke a promise.
    """

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    longest_s: float = 0.0

    def total(self, outcome: str) -> int:
        """Trials that ended so."""
        return sum(count for (_, _, how), count in self.outcomes.items() if how == outcome)


class Soak:
    """A phone, a key and files to send, used for one trial after another."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._scratch = scratch
        self._key = scratch / "adbkey"
        load_signer(self._key)
        self._answer = True
        self.report = Report()
        gpu = choose_local_device("", find_local_devices())
        self.phone = EmulatedPhone(
            scratch / "phone",
            answer=lambda _key: self._answer,
            environment={**gpu.driver.environment, "PATH": os.environ["PATH"]},
        )
        self._runner = build_runner("host")
        self._bundle = write_files(scratch / "net.clbundle", scale_add_files())
        self._public = self._key.with_name("adbkey.pub").read_bytes()

    def run(self, trials: int) -> Report:
        """Run so many trials."""
        with self.phone:
            for number in range(trials):
                self._trial(number)
                if (number + 1) % 25 == 0:
                    print(f"{number + 1} trials, {len(self.report.bad)} bad", file=sys.stderr, flush=True)
        return self.report

    def _target(self, *, patient: bool) -> AdbTarget:
        # The second attempt must not fail because the machine is busy; the first one may give up early.
        seconds = 20.0 if patient else 0.8
        return AdbTarget(
            AdbAddress(host="127.0.0.1", port=self.phone.port),
            key=self._key,
            connect_timeout_s=seconds,
            allow_s=seconds,
            io_timeout_s=seconds,
            command_timeout_s=30.0 if patient else 1.5,
        )

    def _trial(self, number: int) -> None:
        phone = self.phone
        phone.faults.clear()
        phone.authorisation.forget_all()
        phone.authorisation.allow(self._public)
        self._answer = True
        operations: dict[str, Callable[[int], Operation]] = {
            "push": self._push,
            "push directory": self._push_directory,
            "pull": self._pull,
            "run": self._run,
            "check": self._check,
            "facts": self._facts,
            "two at once": self._two_pushes,
        }
        name = self._random.choice(list(operations))
        operation = operations[name](number)
        fault = self._random.choice(operation.faults)
        timer = self._arm(fault, operation)
        begun = time.monotonic()
        # What the phone itself damaged stays under its final name until an attempt gets as far as looking at it.
        outcome = self._attempt(operation, patient=fault == "damaged_at_rest")
        took = time.monotonic() - begun
        if timer:
            timer.cancel()
            timer.join()
        self.report.longest_s = max(self.report.longest_s, took)
        what = f"trial {number}, {fault} during {name}"
        if took > TRIAL_LIMIT_S:
            self.report.bad.append(f"{what}: took {took:.0f} s")
        if outcome not in ("succeeded", "refused"):
            self.report.bad.append(f"{what}: {outcome}")
        if not operation.nothing_partial():
            self.report.bad.append(f"{what}: left a partial file under its final name")
        struck = bool(phone.faults.struck) or fault in _ALWAYS_STRIKE
        self._mend()
        again = self._attempt(operation, patient=True)
        if again != "succeeded":
            self.report.bad.append(f"{what}: the second attempt {again}")
        if operation.program_left():
            self.report.bad.append(f"{what}: left its program running")
        self.report.outcomes[name, fault, outcome if struck else "did not strike"] += 1
        operation.forget()

    def _attempt(self, operation: Operation, *, patient: bool) -> str:
        targets = [self._target(patient=patient) for _ in range(operation.sessions)]
        try:
            operation.act(targets, 20.0 if patient else 3.0)
        except StructadmmError as error:
            one_line = "\n" not in str(error) and len(str(error)) > 10
            return "refused" if one_line and error.exit_status == 2 else f"ended with {error!r}"
        except AssertionError as error:
            return f"returned a wrong result ({error})"
        except Exception as error:  # what a user would see as a traceback
            return f"raised {error!r}"
        finally:
            for target in targets:
                target.close()
        return "succeeded"

    def _mend(self) -> None:
        phone = self.phone
        self._answer = True
        phone.faults.clear()
        phone.reboot(0.0)

    def _arm(self, fault: str, operation: Operation) -> threading.Timer | None:
        faults = self.phone.faults
        at = self._random.randrange(1, operation.to_host if fault.endswith("_sent") else operation.to_phone)
        if fault in ("drop_after_received", "drop_after_sent", "hang_after_received", "hang_after_sent"):
            setattr(faults, fault, at)
        elif fault == "disk_full_after_bytes":
            faults.disk_full_after_bytes = at
        elif fault in ("kill_program_after_bytes", "stop_program_after_bytes", "garbage_after_bytes"):
            setattr(faults, fault, self._random.randrange(1, _LINES * 60))
        elif fault == "corrupt_push":
            faults.corrupt_push = True
        elif fault == "damaged_at_rest":
            self._damage_at_rest(operation)
        elif fault == "disk_free_bytes":
            faults.disk_free_bytes = at
        elif fault == "offline":
            faults.offline = True
        elif fault == "unauthorised":
            self._answer = False
            self.phone.authorisation.forget_all()
        elif fault in ("reboot", "unplug"):
            action = self.phone.unplug if fault == "unplug" else lambda: self.phone.reboot(0.5)
            timer = threading.Timer(self._random.uniform(0.0, 0.4), action)
            timer.start()
            return timer
        return None

    def _damage_at_rest(self, operation: Operation) -> None:
        """Let the operation succeed once, then flip a bit of a file that it left on the phone."""
        if self._attempt(operation, patient=True) != "succeeded":
            raise RuntimeError("the phone did not work before the fault")
        files = operation.files_on_phone()
        if not files:
            return  # the operation was to push an empty file
        path = self._random.choice(files)
        content = bytearray(path.read_bytes())
        content[self._random.randrange(len(content))] ^= 1 << self._random.randrange(8)
        path.write_bytes(content)
        self.phone.faults.strike("damaged_at_rest")

    def _file(self, name: str, size: int) -> Path:
        path = self._scratch / name
        path.write_bytes(self._random.randbytes(size))
        return path

    def _push(self, number: int) -> Operation:
        size = self._random.choice([0, 1, 70_000, 1_500_000, 4_000_000])
        return PushOperation(self.phone, [self._file(f"file-{number}", size)], sessions=1)

    def _two_pushes(self, number: int) -> Operation:
        return PushOperation(self.phone, [self._file(f"file-{number}", 1_500_000)], sessions=2)

    def _push_directory(self, number: int) -> Operation:
        directory = self._scratch / f"bundle-{number}"
        directory.mkdir()
        for name in ("plan.txt", "weights.bin", "input_0.npy"):
            self._file(f"bundle-{number}/{name}", self._random.randrange(1, 400_000))
        sums = "".join(f"{_digest(path)}  {path.name}\n" for path in sorted(directory.iterdir()))
        (directory / "SHA256SUMS").write_text(sums)
        return PushOperation(self.phone, sorted(directory.iterdir()), sessions=1, source=directory)

    def _pull(self, number: int) -> Operation:
        return PullOperation(self.phone, self._random.randbytes(2_000_000), self._scratch / f"pulled-{number}")

    def _run(self, number: int) -> Operation:
        return RunOperation(self.phone, f"program-{number}")

    def _check(self, number: int) -> Operation:
        del number
        return CheckOperation(self.phone, self._runner, self._bundle)

    def _facts(self, number: int) -> Operation:
        del number
        return FactsOperation()


_LINK_FAULTS = ("drop_after_received", "drop_after_sent", "hang_after_received", "hang_after_sent", "reboot", "unplug")
_ALWAYS_STRIKE = ("offline", "unauthorised", "reboot", "unplug", "disk_free_bytes")
_GATE_FAULTS = ("offline", "unauthorised")


class Operation:
    """Something a user does with a phone, and how to tell whether it was done right."""

    faults: tuple[str, ...] = _LINK_FAULTS + _GATE_FAULTS
    sessions = 1
    to_phone = 3_000
    """About how many bytes cross the connection this way, so that faults fall into it."""
    to_host = 1_500

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        """Do it; AssertionError where it seemed to succeed and did not."""
        raise NotImplementedError

    def nothing_partial(self) -> bool:
        """Whether every file under a final name is whole."""
        return True

    def program_left(self) -> bool:
        """Whether something still runs on the phone."""
        return False

    def files_on_phone(self) -> list[Path]:
        """What a success left there, at least one byte each."""
        return []

    def forget(self) -> None:
        """Free the disk."""


class PushOperation(Operation):
    """Push a file or a directory, in one session or several at once."""

    faults = (
        *_LINK_FAULTS,
        *_GATE_FAULTS,
        "disk_full_after_bytes",
        "disk_free_bytes",
        "corrupt_push",
        "damaged_at_rest",
    )

    def __init__(self, phone: EmulatedPhone, files: list[Path], *, sessions: int, source: Path | None = None) -> None:
        self._phone = phone
        self._files = files
        self.sessions = sessions
        self._source = source or files[0]
        self._store = phone.files.host_path("/data/local/tmp/structadmm/store")
        self.to_phone = sum(path.stat().st_size for path in files) * sessions + 3_000 * len(files)
        self.to_host = 1_000 * len(files) * sessions

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        del timeout_s
        errors: list[Exception] = []

        def push(target: AdbTarget) -> None:
            try:
                self._push(target)
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=push, args=(target,)) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((error for error in errors if not isinstance(error, StructadmmError)), errors[0])

    def _push(self, target: AdbTarget) -> None:
        path = self._phone.files.host_path(target.push(self._source, self._source.name))
        for file in self._files:
            there = path / file.name if self._source.is_dir() else path
            assert there.read_bytes() == file.read_bytes(), f"{file.name} differs on the phone"

    def nothing_partial(self) -> bool:
        whole = {file.name: file.read_bytes() for file in self._files}
        return all(
            path.read_bytes() == whole.get(path.name)
            for path in self._store.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )

    def files_on_phone(self) -> list[Path]:
        return [path for path in self._store.rglob("*") if path.is_file() and path.stat().st_size]

    def forget(self) -> None:
        subprocess.run(["rm", "-rf", self._store, self._source], check=True)


class PullOperation(Operation):
    """Fetch a file over an older one."""

    to_host = 2_001_000

    def __init__(self, phone: EmulatedPhone, content: bytes, local: Path) -> None:
        self._content = content
        self._local = local
        self._local.write_bytes(b"old")
        self._there = phone.files.host_path("/data/local/tmp/result")
        self._there.write_bytes(content)

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        del timeout_s
        targets[0].pull("/data/local/tmp/result", self._local)
        assert self._local.read_bytes() == self._content, "the pulled file differs"

    def nothing_partial(self) -> bool:
        return self._local.read_bytes() in (b"old", self._content)

    def forget(self) -> None:
        self._local.unlink()


class Tick(Event):
    """A line of the program."""

    number: int


class RunOperation(Operation):
    """Run a program on the phone that prints JSON lines for a while, as the runner does."""

    faults = (
        *_LINK_FAULTS,
        *_GATE_FAULTS,
        "kill_program_after_bytes",
        "stop_program_after_bytes",
        "garbage_after_bytes",
    )
    to_host = _LINES * 70

    def __init__(self, phone: EmulatedPhone, name: str) -> None:
        self._path = f"/data/local/tmp/{name}"
        self._there = phone.files.host_path(self._path)
        self._there.write_text("#!/bin/sh\n" + _PROGRAM)
        self._there.chmod(0o755)

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        output = read_output(targets[0].shell([self._path], timeout_s=timeout_s))
        numbers = [tick.number for tick in output.all("tick", Tick)]
        assert numbers == list(range(_LINES)), f"{len(numbers)} of {_LINES} lines"

    def program_left(self) -> bool:
        return subprocess.run(["pgrep", "-f", str(self._there)], stdout=subprocess.DEVNULL, check=False).returncode == 0

    def forget(self) -> None:
        self._there.unlink()


class CheckOperation(Operation):
    """Push the real runner and a bundle, and check the bundle on a real OpenCL device."""

    faults = (
        *_LINK_FAULTS,
        *_GATE_FAULTS,
        "disk_full_after_bytes",
        "corrupt_push",
        "damaged_at_rest",
        "kill_program_after_bytes",
        "stop_program_after_bytes",
        "garbage_after_bytes",
    )

    def __init__(self, phone: EmulatedPhone, runner: Path, bundle: Path) -> None:
        self._phone = phone
        self._runner = runner
        self._bundle = bundle
        self._store = phone.files.host_path("/data/local/tmp/structadmm/store")
        self._sources = {path.name: path.read_bytes() for path in bundle.iterdir()} | {"runner": runner.read_bytes()}
        self.to_phone = sum(map(len, self._sources.values())) + 3_000 * len(self._sources)
        self.to_host = 1_000 * len(self._sources)

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        target = targets[0]
        runner = target.push(self._runner, "runner")
        bundle = target.push(self._bundle, "bundle")
        output = read_output(target.shell([runner, "check", bundle], timeout_s=timeout_s))
        assert output.one("check", Check).passed, "the check did not pass"

    def nothing_partial(self) -> bool:
        files = [path for path in self._store.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return all(path.read_bytes() == self._sources[path.name] for path in files)

    def program_left(self) -> bool:
        return self._phone.signal_programs(0) > 0

    def files_on_phone(self) -> list[Path]:
        return [path for path in self._store.rglob("*") if path.is_file() and path.stat().st_size]

    def forget(self) -> None:
        subprocess.run(["rm", "-rf", self._store], check=True)


class FactsOperation(Operation):
    """Ask the phone about itself."""

    def act(self, targets: list[AdbTarget], timeout_s: float) -> None:
        del timeout_s
        facts = targets[0].facts()
        assert facts.get("gpu") == "Adreno640v2", facts
        assert facts.get("battery_percent") == 87, facts


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def soak(trials: int, seed: int, scratch: Path) -> Report:
    """Run trials in an empty directory."""
    return Soak(scratch, seed).run(trials)


def record(report: Report, trials: int, seed: int, duration_s: float) -> dict[str, Any]:
    """The outcome as JSON."""
    rows = [
        {"operation": operation, "fault": fault, "outcome": outcome, "trials": count}
        for (operation, fault, outcome), count in sorted(report.outcomes.items())
    ]
    return {
        "schema": 1,
        "command": shlex.join(["python", "-m", "tests.phone.fault_soak", "--trials", str(trials), "--seed", str(seed)]),
        "commit": source_commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load_average": round(os.getloadavg()[0], 1),
        "trials": sum(report.outcomes.values()),
        "seed": seed,
        "duration_s": round(duration_s),
        "longest_trial_s": round(report.longest_s, 1),
        "trial_limit_s": TRIAL_LIMIT_S,
        "succeeded": report.total("succeeded"),
        "ended_with_one_line": report.total("refused"),
        "without_the_fault": report.total("did not strike"),
        "bad": report.bad,
        "rows": rows,
    }


def table(summary: dict[str, Any]) -> str:
    """The outcome as markdown: a line for each fault."""
    outcomes = ("succeeded", "refused", "did not strike")
    counts: Counter[tuple[str, str]] = Counter()
    for row in summary["rows"]:
        counts[row["fault"], row["outcome"]] += row["trials"]
    lines = ["| fault | succeeded, by trying again | one line, exit status 2 | did not strike |", "|---|---|---|---|"]
    for fault in sorted({fault for fault, _ in counts}):
        lines.append(f"| {fault} | " + " | ".join(str(counts[fault, outcome]) for outcome in outcomes) + " |")
    lines += [
        "",
        f"{summary['trials']} trials in {summary['duration_s']} s on the emulated phone:",
        f"{summary['succeeded']} succeeded, {summary['ended_with_one_line']} ended with one line and exit status 2,"
        f" in {summary['without_the_fault']} the fault came too late to strike.",
        f"{len(summary['bad'])} broke a promise: in all others the second attempt succeeded and no half-written file"
        " was found. The longest first attempt",
        f"took {summary['longest_trial_s']} s ({summary['trial_limit_s']:.0f} s would count as hung).",
        "",
        f"`{summary['command']}`, {summary['machine']}, load average {summary['load_average']} at the end,"
        f" commit {summary['commit'][:7]}.",
    ]
    lines += ["", *(f"- {line}" for line in summary["bad"])] if summary["bad"] else []
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print what happened; exit status 1 where a trial broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.phone.fault_soak", description=__doc__)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a directory for results.json and table.md")
    arguments = parser.parse_args()
    faulthandler.dump_traceback_later(4 * TRIAL_LIMIT_S + 10 * arguments.trials, exit=True)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fault-soak-") as scratch:
        report = soak(arguments.trials, arguments.seed, Path(scratch))
    summary = record(report, arguments.trials, arguments.seed, time.monotonic() - begun)
    print(table(summary))
    if arguments.out:
        write_json(arguments.out / "results.json", summary)
        write_text(arguments.out / "table.md", table(summary))
    raise SystemExit(1 if report.bad else 0)


if __name__ == "__main__":
    main()
