"""What a bridge answers for a candidate that its own machine, and not the device, has trouble with."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from device.candidates import Trial
from device.rpc import bridge
from device.rpc.archive import pack_bundle
from device.rpc.bridge import Bridge
from device.rpc.frames import Frames
from device.rpc.serve_config import Predecessor, ServeConfig
from device.rpc.trials import trial_to_json
from tests.hand_made_bundle import scale_add_files, write_files

CONFIG = ServeConfig(device="local", tracker="127.0.0.1:1", key="k")
A_DEVICE: Any = None  # nothing here gets as far as the device


@pytest.fixture
def made() -> Iterator[Bridge]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Bridge(CONFIG, Frames(ours, max_payload=0), Predecessor())


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    return pack_bundle(write_files(tmp_path / "net.clbundle", scale_add_files()))


def test_a_full_disk_is_no_candidates_fault(
    made: Bridge, archive: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bridge.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", refuse)
    answer, lost = made._answer(A_DEVICE, A_DEVICE, {"trial": trial_to_json(Trial())}, archive)
    assert not lost
    expected = "its machine cannot keep a candidate (No space left on device): free some space in"
    assert answer == {"refused": f"{expected} {tmp_path}"}
    assert list(tmp_path.glob("structadmm-candidate-*")) == []
