"""Seconds from an ONNX file to a bundle, each in a fresh process as a user starts it: `structadmm compile`.

    python benchmarks/compile_times.py

Aims on two cores: CIFAR ResNet-18 in 15 s, ResNet-50 in 60 s. Processor time is printed beside wall-clock time, because
a busy machine stretches the latter.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from host_record import quiet, record_options, write_record
from random_masks import calibrated, save_onnx

from results.markdown import markdown_table
from structadmm.graph import capture
from train.models import build_model
from tvm_build.precision import PRECISIONS

# Input size and seconds aimed at.
NETWORKS = {"cifar_resnet18": (32, 15.0), "resnet50": (224, 60.0)}
TARGET = "adreno-640"


def timed(command: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of a command that must succeed."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return time.perf_counter() - started, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    options = record_options(parser, Path("results/reference/compiler/compile_times"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory, quiet():
        for name in options.networks:
            size, aim = NETWORKS[name]
            shape = (1, 3, size, size)
            captured = capture(calibrated(build_model(name, {}), shape), (torch.zeros(shape),))
            path = save_onnx(captured, Path(directory) / f"{name}.onnx")
            for dtype in options.dtypes:
                command = ["compile", str(path), "--out", f"{directory}/{name}.clbundle"]
                command += ["--target", TARGET, "--dtype", dtype]
                wall_s, cpu_s = timed([sys.executable, "-m", "structadmm", *command])
                rows.append({"network": name, "dtype": dtype, "wall_s": wall_s, "processor_s": cpu_s, "aim_s": aim})
                print(rows[-1], flush=True)
    table = markdown_table(
        ["network", "dtype", "wall-clock s", "processor s", "aim s"],
        ([r["network"], r["dtype"], f"{r['wall_s']:.1f}", f"{r['processor_s']:.1f}", f"{r['aim_s']:g}"] for r in rows),
    )
    print(table)
    write_record(options.out, made_by=options.made_by, kind="host", rows=rows, table=table)


if __name__ == "__main__":
    main()
