"""The tuning databases that come with this project, each good for the device that it was made on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "results" / "reference" / "tuning"


@lru_cache
def shipped_database(device: str, target: str, dtype: str, directory: Path = DIRECTORY) -> Path | None:
    """The database that was made on the very device that `device` means, with the same driver.

    Args:
        device: as `--device` names it; phones have none.
        target: what is compiled for.
        dtype: what kernels store and compute in.
        directory: where the databases lie.
    """
    databases = sorted(directory.glob("*.jsonl"))
    if not device.startswith("local") or not databases:
        return None
    from device.candidates import LocalMeasurer
    from device.errors import DeviceError
    from device.target import open_target
    from structadmm.errors import UserError
    from tvm_build.tuning.database import read_database

    try:
        measurer = LocalMeasurer(open_target(device))
    except (DeviceError, UserError):
        return None  # to build, no device is needed; measuring will say what is the matter with it
    try:
        facts = measurer.device_facts()
    finally:
        measurer.close()
    for path in databases:
        records = read_database(path)
        if any((each.device, each.target, each.dtype) == (facts, target, dtype) for each in records):
            return path
    return None
