"""Kernels for this computer's processor are not what a phone is measured with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import device.stage
from device.config import MeasureConfig
from structadmm.errors import UserError
from structadmm.progress import SilentReporter


@pytest.mark.parametrize(
    ("built_for", "kind", "refused"),
    [("opencl-cpu", "phone", True), ("opencl-cpu", "host", False), ("adreno-640", "phone", False)],
)
def test_a_phone_is_not_measured_with_kernels_for_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built_for: str, kind: str, refused: bool
) -> None:
    for name in ("baseline", "pruned"):
        bundle = tmp_path / f"{name}.clbundle"
        bundle.mkdir()
        (bundle / "manifest.json").write_text(json.dumps({"target": built_for}))
    target: Any = SimpleNamespace(kind=kind, name="adb:X", facts=lambda: {"gpu": "Adreno640v2"}, close=lambda: None)
    monkeypatch.setattr(device.stage, "open_target", lambda *_: target)
    monkeypatch.setattr(device.stage, "measure", lambda *_: {})
    if not refused:
        device.stage.run_measure(MeasureConfig(), tmp_path, tmp_path, "adb:X", SilentReporter())
        assert (tmp_path / "measurement.json").exists()
        return
    with pytest.raises(UserError, match=r"built for opencl-cpu, and adb:X is a phone with Adreno640v2: name its GPU"):
        device.stage.run_measure(MeasureConfig(), tmp_path, tmp_path, "adb:X", SilentReporter())
    assert not (tmp_path / "measurement.json").exists()
