"""What every benchmark writes: the machine and versions beside the rows, as JSON, and the rows as a Markdown table."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device.local_target import find_local_devices
from structadmm.errors import InvariantError
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


def command_line(command: Sequence[str] | None = None) -> str:
    """What was typed to start the benchmark."""
    return shlex.join(
        ["python", f"benchmarks/{Path(sys.argv[0]).name}", *(sys.argv[1:] if command is None else command)]
    )


def record_options(
    parser: argparse.ArgumentParser, record: Path, command: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options of a benchmark, `out` and `made_by` among them.

    A run with options of its own (one device, one network, fewer rounds) must not take the place of the record that
    comes with the project and that its documents quote: it says with `--out` where to write.

    Args:
        parser: with the benchmark's own options.
        record: the folder of the record that the options' defaults make.
        command: the arguments; those of the process by default.
    """
    parser.add_argument("--out", type=Path, help=f"a folder for the record [{record} where no other option is given]")
    options = parser.parse_args(command)
    differing = [name for name, value in vars(options).items() if name != "out" and value != parser.get_default(name)]
    if options.out is None and differing:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in differing)
        parser.error(f"{record} holds the record of a run without {names}: give --out FOLDER for this one")
    options.made_by = command_line(command)
    options.out = options.out or record
    return options


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

    Raises:
        InvariantError: nothing was measured.
    """
    if not rows:
        raise InvariantError(f"`{made_by}` measured nothing: {out} is left as it was")
    record = {"schema": SCHEMA, "made_by": made_by, "kind": kind, **more, "environment": environment(), "rows": rows}
    write_json(out / "results.json", record)
    write_text(out / "table.md", f"{table}\n\nMade by `{made_by}`.\n")
