"""What a result was made with: versions, machine, device, commit."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structadmm
from structadmm.files import read_json


def describe_environment(records: Mapping[str, dict[str, Any]], run_dir: Path) -> dict[str, Any]:
    """Versions as the stages recorded them, the machine, and the device's own facts.

    Args:
        records: the stages' records by stage.
        run_dir: whose bundles' manifests say which compiler made them.
    """
    manifest = read_json(run_dir / "build" / "pruned.clbundle" / "manifest.json", schema=1)
    versions = {**records["train"]["versions"], **records["export"]["versions"], **manifest["versions"]}
    session, state = records["measure"]["opencl"], records["measure"]["environment"]
    device_fields = ("name", "vendor", "platform", "driver", "version", "type", "compute_units", "clock_mhz", "fp16")
    return {
        "structadmm": structadmm.__version__,
        "commit": source_commit(),
        "versions": dict(sorted(versions.items())),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "device": {"option": records["measure"]["device"], **{field: session[field] for field in device_fields}},
        "state": {name: state[name] for name in ("before", "after", "fixed_performance_mode")},
        "model": records["train"]["model"],
        "data": {field: records["train"]["data"][field] for field in ("name", "train_images", "test_images")},
        "seed": records["train"]["seed"],
    }


def source_commit() -> str:
    """The commit of the source tree that runs, with `+changes` where it was edited; `unknown` outside of one."""
    root = Path(structadmm.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # a source tree without git, or one that git refuses: the version still says what it is


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return answer.stdout.strip()
