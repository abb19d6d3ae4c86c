"""The emulated phone against clients that are not ours: Debian's adb and Google's, as adbutils carries it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.emulated_phone import ALL_FEATURES, EmulatedPhone

BIG_BYTES = 64 << 20


def _google_adb() -> str:
    import adbutils

    return str(Path(adbutils.__file__).parent / "binaries" / "adb")


class AdbClient:
    """An adb with a server, a home and keys of its own."""

    def __init__(self, program: str, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._command = [program, "-P", str(port)]
        self._environment = {**os.environ, "HOME": str(home), "ANDROID_USER_HOME": str(home / ".android")}
        for name in ("ANDROID_ADB_SERVER_PORT", "ADB_SERVER_SOCKET", "ANDROID_SERIAL", "ADB_VENDOR_KEYS"):
            self._environment.pop(name, None)
        self._serial = ""

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command on the connected phone."""
        return self.run("-s", self._serial, *arguments)

    def connect(self, phone: EmulatedPhone) -> None:
        self._serial = phone.serial
        self.run("connect", self._serial)  # Debian's release returns before the key was accepted
        waited = self("wait-for-device")
        assert waited.returncode == 0, waited.stderr

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [*self._command, *arguments]
        return subprocess.run(
            command, env=self._environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )


@pytest.fixture(scope="module", params=["debian", "google"])
def adb(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbClient]:
    program = _google_adb() if request.param == "google" else shutil.which("adb")
    if program is None:
        pytest.skip("needs adb: apt-get install adb")
    home = tmp_path_factory.mktemp("home")
    (home / ".android").mkdir()
    client = AdbClient(program, home)
    client.run("start-server")
    yield client
    client.run("kill-server")


@pytest.fixture(params=[(), ALL_FEATURES], ids=["v1", "v2"])
def phone_and_adb(
    request: pytest.FixtureRequest, adb: AdbClient, tmp_path: Path
) -> Iterator[tuple[EmulatedPhone, AdbClient]]:
    with EmulatedPhone(tmp_path / "phone", features=request.param) as phone:
        adb.connect(phone)
        yield phone, adb
        adb.run("disconnect", phone.serial)


def test_a_real_client_connects_pushes_pulls_lists_and_runs_commands(
    phone_and_adb: tuple[EmulatedPhone, AdbClient], tmp_path: Path
) -> None:
    phone, adb = phone_and_adb
    content = os.urandom(1 << 20) * (BIG_BYTES >> 20)
    (tmp_path / "sent").write_bytes(content)

    pushed = adb("push", str(tmp_path / "sent"), "/data/local/tmp/big file")
    assert pushed.returncode == 0, pushed.stderr
    assert phone.files.host_path("/data/local/tmp/big file").read_bytes() == content

    pulled = adb("pull", "/data/local/tmp/big file", str(tmp_path / "back"))
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "back").read_bytes() == content

    listed = adb("ls", "/data/local/tmp")
    assert listed.stdout.splitlines()[-1].endswith(b"big file")
    assert int(listed.stdout.splitlines()[-1].split()[1], 16) == BIG_BYTES

    shell = adb("shell", "getprop ro.product.model; cat /sys/class/kgsl/kgsl-3d0/gpu_model")
    assert shell.stdout == b"Emulated Phone\nAdreno640v2\n"

    assert adb("exec-out", "head -c 300000 '/data/local/tmp/big file'").stdout == content[:300000]
    assert phone.protocol_errors == []


def test_a_real_client_reports_what_the_phone_refuses(
    phone_and_adb: tuple[EmulatedPhone, AdbClient], tmp_path: Path
) -> None:
    phone, adb = phone_and_adb
    (tmp_path / "sent").write_bytes(bytes(300_000))
    phone.faults.disk_full_after_bytes = 100_000
    full = adb("push", str(tmp_path / "sent"), "/data/local/tmp/x")
    assert full.returncode != 0
    assert b"No space left on device" in full.stdout + full.stderr
    read_only = adb("push", str(tmp_path / "sent"), "/system/bin/sh")
    assert read_only.returncode != 0
    assert b"Read-only file system" in read_only.stdout + read_only.stderr
    assert adb("pull", "/data/local/tmp/nothing", str(tmp_path / "back")).returncode != 0
    assert adb("reboot").returncode != 0
    assert phone.protocol_errors == []


def test_shell_v2_gives_a_real_client_the_exit_status_and_both_outputs(
    phone_and_adb: tuple[EmulatedPhone, AdbClient],
) -> None:
    phone, adb = phone_and_adb
    result = adb("shell", "echo out; echo err >&2; exit 41")
    if "shell_v2" in phone.features:
        assert (result.returncode, result.stdout, result.stderr) == (41, b"out\n", b"err\n")
    else:
        # Version 1 has one stream and no status.
        assert result.returncode == 0
        assert sorted(result.stdout.split()) == [b"err", b"out"]
