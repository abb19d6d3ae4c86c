"""How fast files reach a phone: this project's adb transfer against Google's adb, to the same daemon.

    python benchmarks/push_throughput.py --megabytes 64 --rounds 15

Both send to one emulated phone in a process of its own, in turn. Google's figure is the wall time of `adb push` with
its server running and the phone connected; ours is the wall time of the same transfer on an open connection, and,
apart, of a whole `AdbTarget.send_file`, which also compares SHA-256 on both sides. `adb_shell` by itself is timed too.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import adbutils
from adb_shell.adb_device import AdbDeviceTcp

from device.adb_address import AdbAddress
from device.adb_keys import load_signer
from device.adb_sync import sync_session
from device.adb_target import AdbTarget

ROOT = Path(__file__).resolve().parent.parent
REMOTE = "/data/local/tmp/throughput"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _time(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def measure(scratch: Path, megabytes: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way to push, by name, in round order."""
    content = os.urandom(1 << 20) * megabytes
    source = scratch / "content"
    source.write_bytes(content)
    port, server_port = _free_port(), _free_port()
    environment = {**os.environ, "HOME": str(scratch)}
    google = [str(Path(adbutils.__file__).parent / "binaries" / "adb"), "-P", str(server_port)]
    phone = subprocess.Popen(
        [sys.executable, "-m", "tests.emulated_phone", "--port", str(port), "--root", str(scratch / "phone")],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    there = scratch / "phone" / REMOTE.lstrip("/")

    def adb(*arguments: str) -> None:
        subprocess.run([*google, *arguments], env=environment, check=True, capture_output=True)

    try:
        _wait_for(port)
        signer = load_signer(scratch / "adbkey")
        target = AdbTarget(AdbAddress(host="127.0.0.1", port=port), key=scratch / "adbkey")
        library = AdbDeviceTcp("127.0.0.1", port)
        library.connect(rsa_keys=[signer], auth_timeout_s=10)
        serial = f"127.0.0.1:{port}"
        adb("connect", serial)
        adb("-s", serial, "wait-for-device")

        def ours() -> None:
            with source.open("rb") as stream, sync_session(target._connected()) as session:
                session.send(stream, REMOTE, 0o644, lambda _count: None)

        def whole() -> None:
            there.unlink()
            target.send_file(source, REMOTE)

        ways: dict[str, Callable[[], object]] = {
            "google adb push": lambda: adb("-s", serial, "push", str(source), REMOTE),
            "this project's transfer": ours,
            "AdbTarget.send_file with SHA-256": whole,
            "adb_shell alone": lambda: library.push(str(source), REMOTE),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            for name, way in ways.items():
                seconds = _time(way)
                if there.read_bytes() != content:
                    print(f"{name}: the file on the phone differs from what was sent")
                    continue
                if number > 0:  # the first round warms caches up
                    times[name].append(seconds)
        library.close()
        target.close()
    finally:
        subprocess.run([*google, "kill-server"], env=environment, check=False, capture_output=True)
        phone.terminate()
        phone.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="push-throughput-") as scratch:
        times = measure(Path(scratch), arguments.megabytes, arguments.rounds)
    reference = times["google adb push"]
    print(f"{arguments.megabytes} MiB, {arguments.rounds} rounds, host figures; load {os.getloadavg()[0]:.1f}")
    for name, seconds in times.items():
        if not seconds:
            print(f"{name:34s} never arrived whole")
            continue
        ratios = [google / own for google, own in zip(reference, seconds, strict=False)]
        print(
            f"{name:34s} median {statistics.median(seconds):.3f} s "
            f"({arguments.megabytes / statistics.median(seconds):.0f} MiB/s), "
            f"{statistics.median(ratios):.2f}x of Google's throughput ({len(seconds)} whole)"
        )


if __name__ == "__main__":
    main()
