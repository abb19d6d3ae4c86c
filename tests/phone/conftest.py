from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device.adb_address import AdbAddress
from device.adb_keys import load_signer
from device.adb_target import AdbTarget
from structadmm.progress import Reporter
from tests.emulated_phone import EmulatedPhone


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adb key for all tests: making one costs a good part of a second."""
    path = tmp_path_factory.mktemp("keys") / "adbkey"
    load_signer(path)
    return path


@pytest.fixture
def phone(tmp_path: Path, key: Path) -> Iterator[EmulatedPhone]:
    with EmulatedPhone(tmp_path / "phone") as phone:
        phone.authorisation.allow(key.with_name("adbkey.pub").read_bytes())
        yield phone


@pytest.fixture
def connect(key: Path) -> Iterator[Callable[..., AdbTarget]]:
    """Makes targets with short time-outs and closes them."""
    targets: list[AdbTarget] = []

    def make(phone: EmulatedPhone, *, reporter: Reporter | None = None, **options: Any) -> AdbTarget:
        chosen = {"connect_timeout_s": 2.0, "allow_s": 1.0, "io_timeout_s": 2.0, "command_timeout_s": 5.0}
        chosen |= options
        address = AdbAddress(host="127.0.0.1", port=phone.port)
        targets.append(AdbTarget(address, reporter=reporter, key=key, **chosen))
        return targets[-1]

    yield make
    for target in targets:
        target.close()


@pytest.fixture
def target(phone: EmulatedPhone, connect: Callable[..., AdbTarget]) -> AdbTarget:
    return connect(phone)
