"""What every benchmark writes: the machine and versions beside the rows, as JSON, and the rows as a Markdown table."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device.local_target import find_local_devices
from structadmm.files import write_json, write_text
from structadmm.source import source_commit

SCHEMA = 1
_PACKAGES = ("structadmm", "apache-tvm", "onnx", "onnxruntime", "torch")


def environment() -> dict[str, Any]:
    """Commit, versions, machine and its OpenCL devices; `load_average` tells a quiet machine from a busy one."""
    return {
        "commit": source_commit(),
        "versions": {package: version(package) for package in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "devices": {
            device.name: {
                "name": device.info.name,
                "platform": device.info.platform,
                "driver": device.info.driver,
                "type": device.info.type,
            }
            for device in find_local_devices().devices
        },
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch.onnx's warnings about the absence of torchvision and its own use of deprecated functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_record(
    out: Path, *, made_by: str, kind: str, rows: Sequence[dict[str, Any]], table: str, **more: Any
) -> None:
    """Write `OUT/results.json` and `OUT/table.md`.

    Args:
        out: a folder; created.
        made_by: the command line.
        kind: "host" for figures of this machine's OpenCL devices, "predicted" for those of the cost model.
        rows: one mapping per line of the table.
        table: the same, for people.
        more: further fields of the JSON file.
    """
    record = {"schema": SCHEMA, "made_by": made_by, "kind": kind, **more, "environment": environment(), "rows": rows}
    write_json(out / "results.json", record)
    write_text(out / "table.md", f"{table}\n\nMade by `{made_by}`.\n")
