"""Which source tree runs, and on what machine: what records of results say of how they were made."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path


def source_commit() -> str:
    """The commit of the source tree that runs, with `+changes` where it was edited; `unknown` outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"  # a source tree without git, or one that git refuses: the version still says what it is


def describe_machine() -> dict[str, str]:
    """Operating system and processor."""
    return {"system": platform.platform(), "processor": platform.machine()}


def _git(root: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return answer.stdout.strip()
