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


class ReachedError(Exception):
    """Nothing was refused before the runner was to be started."""

    @classmethod
    def reach(cls, *_: Any, **__: Any) -> None:
        raise cls


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
    monkeypatch.setattr(device.stage, "Runner", ReachedError.reach)
    bundles = {name: tmp_path / f"{name}.clbundle" for name in ("baseline", "pruned")}
    if not refused:
        with pytest.raises(ReachedError):
            device.stage.measure(MeasureConfig(), bundles, target, SilentReporter())
        return
    with pytest.raises(UserError, match=r"chosen for opencl-cpu, and adb:X is a phone with Adreno640v2: name its GPU"):
        device.stage.measure(MeasureConfig(), bundles, target, SilentReporter())
