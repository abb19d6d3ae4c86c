"""The tuning databases that come with this project, each good for the device that it was made on."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "results" / "reference" / "tuning"


@lru_cache
def shipped_database(device: str, target: str, directory: Path = DIRECTORY) -> Path | None:
    """The database whose device is the one that `device` means: the same name, and a driver of the same family.

    Args:
        device: as `--device` names it; phones have none.
        target: what is compiled for.
        directory: where the databases lie.
    """
    databases = sorted(directory.glob("*.jsonl"))
    if not device.startswith("local") or not databases:
        return None
    from device.candidates import LocalMeasurer
    from device.errors import DeviceError
    from device.target import open_target
    from structadmm.errors import UserError

    try:
        measurer = LocalMeasurer(open_target(device))
    except (DeviceError, UserError):
        return None  # to build, no device is needed; measuring will say what is the matter with it
    try:
        facts = measurer.device_facts()
    finally:
        measurer.close()
    for path in databases:
        with path.open() as lines:
            first = json.loads(next(lines, "{}"))
        if first.get("target") == target and first.get("device") == facts.model_dump(mode="json"):
            return path
    return None
