"""The whole line on a network small enough for a test; it needs TVM and an OpenCL device, which the set-up installs."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

CONFIG = """name = "small"

[train]
seed = 3
threads = 1

[train.model]
entry = "cifar_resnet20"
kwargs = { width = 8 }

[train.dense]
epochs = 2

[[train.rounds]]
structure = "filter"
sparsity = 0.5
admm_epochs = 1
retrain_epochs = 1

[[train.rounds]]
structure = "column"
sparsity = 0.5
block = 4
admm_epochs = 1
retrain_epochs = 1

[measure]
runs = 20
warmup_ms = 20
profile_runs = 3
"""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    def one_line(self) -> str:
        """Its last line on standard error, the only one that is an error; progress may stand before it."""
        lines = self.stderr.splitlines()
        assert [line for line in lines if line.startswith("structadmm: ")] == lines[-1:]
        assert "Traceback" not in self.stderr
        return lines[-1]


Command = Callable[..., Finished]


def argv(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "structadmm", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "NO_COLOR": "1"}


def structadmm(*arguments: str | Path, cwd: Path | None = None) -> Finished:
    """Run the command line as a user would, in a process of its own."""
    done = subprocess.run(
        argv(*arguments), capture_output=True, text=True, env=environment(), timeout=500, check=False, cwd=cwd
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="session")
def finished_run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory that went through undisturbed; the processes of a test session share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    out = shared / "undisturbed"
    with (shared / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first process makes it while the others wait
        if not (out / "report" / "report.html").exists():
            done = structadmm("run", config, "--out", out)
            assert done.status == 0, done.stderr
            assert str(out / "report" / "report.html") in done.stdout
    return out
