"""What it costs to keep planned memory within its bound on an Adreno: predictions, no measurement.

    python benchmarks/memory_bound.py      # writes results/reference/compiler/memory_bound

Networks for 224x224 in half precision, compiled four times: activations in images wherever that is predicted to be
faster, whatever memory they take; within the bound of `tvm_build.storage`, as `structadmm compile` does; all of them in
the arena, read as images of one dimension or through pointers; and with pointers alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from cost_model_check import OURS_ALONE, PUBLISHED, SIZE, TARGET
from host_record import quiet, record_options, write_record
from random_masks import save_onnx

from results.markdown import markdown_table
from structadmm.graph import capture
from train.models import build_model
from tvm_build import storage
from tvm_build.compile import compile_onnx

DTYPE = "float16"
# Where activations may lie, and planned bytes over live ones above which no image is added.
FORMS: Mapping[str, tuple[str, float]] = {
    "images, unbound": ("auto", float("inf")),
    "images, bound": ("auto", storage.MEMORY_BOUND),
    "arena, read as images": ("auto", 0.0),
    "arena, pointers": ("buffer", 0.0),
}


def row(name: str, folder: Path) -> dict[str, Any]:
    """Predicted milliseconds, and planned over live bytes, for each form of one network."""
    torch.manual_seed(0)
    model = OURS_ALONE[name]() if name in OURS_ALONE else build_model(name, {})
    path = save_onnx(capture(model.eval(), (torch.zeros(1, 3, SIZE, SIZE),)), folder / f"{name}.onnx")
    found: dict[str, Any] = {"network": name, "predicted_ms": {}, "memory_ratio": {}}
    for form, (memory, bound) in FORMS.items():
        with patch.object(storage, "MEMORY_BOUND", bound):
            summary = compile_onnx(path, folder / "n.clbundle", target=TARGET, dtype=DTYPE, memory=memory)
        found["predicted_ms"][form] = round(summary.predicted_ms, 3)
        found["memory_ratio"][form] = round(summary.activation_bytes / summary.live_bytes, 3)
        found["live_bytes"] = summary.live_bytes
    path.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    options = record_options(parser, Path("results/reference/compiler/memory_bound"))
    rows = []
    with tempfile.TemporaryDirectory() as scratch, quiet():
        for name in options.networks:
            rows.append(row(name, Path(scratch)))
            print(rows[-1], flush=True)
    cells = (
        [
            one["network"],
            f"{one['live_bytes'] / 1e6:.2f}",
            *(f"{one['predicted_ms'][form]:.2f} ms, {one['memory_ratio'][form]:.2f}" for form in FORMS),
        ]
        for one in rows
    )
    write_record(
        options.out,
        made_by=options.made_by,
        kind="predicted",
        rows=rows,
        table=markdown_table(["network", "alive, MB", *FORMS], cells)
        + f"\n\nPredicted for {TARGET}, {DTYPE}, {SIZE}x{SIZE}: time, and planned activations over what is alive.",
        bound=storage.MEMORY_BOUND,
        target=TARGET,
    )


if __name__ == "__main__":
    main()
