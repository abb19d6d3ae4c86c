"""What columns that go in blocks of channels cost in accuracy, against single ones.

    python benchmarks/column_blocks.py --seeds 8

For each seed one dense ResNet-18 of width 16 is trained on scikit-learn's digits and pruned to a budget of CONV
parameters in columns, once for each size of block; everything else is equal. Top-1 on the test images right after the
hard prune and after three epochs of retraining; a difference is from single columns of the same seed, with its standard
error. What blocks are worth in time is in `benchmarks/column_sparse.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from digits_budgets import MOMENTS, prune, train_dense
from host_record import record_options, write_record

from results.markdown import markdown_table

BLOCKS = (1, 2, 4, 8)
REDUCTIONS = (10.0, 20.0, 60.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    options = record_options(parser, Path("results/reference/column_blocks"))
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            weights = train_dense(seed, Path(folder) / f"dense-{seed}")
            for reduction in REDUCTIONS:
                for block in BLOCKS:
                    out = Path(folder) / f"{reduction}-{block}-{seed}"
                    top1 = prune(seed, weights, "column", reduction, out, block=block)
                    runs.append({"seed": seed, "reduction": reduction, "block": block, **top1})
                    print(runs[-1], flush=True)
    heads = ("budget", "block", *MOMENTS, "difference, cut", "difference, retrained")
    table = markdown_table(heads, [row(runs, reduction, block) for reduction in REDUCTIONS for block in BLOCKS])
    print(table)
    write_record(
        options.out,
        made_by=options.made_by,
        kind="host",
        rows=runs,
        table=table,
    )


def row(runs: list[dict[str, Any]], reduction: float, block: int) -> tuple[str, ...]:
    """Means, and the mean differences from single columns."""
    single, own = (
        [run for run in runs if (run["reduction"], run["block"]) == (reduction, size)] for size in (1, block)
    )
    means = [f"{statistics.mean(run[when] for run in own):.2f} %" for when in MOMENTS]
    if block == 1:
        return (f"{reduction:g}x", "1", *means, "", "")
    return (f"{reduction:g}x", f"{block}", *means, *(difference(single, own, when) for when in MOMENTS))


def difference(single: list[dict[str, Any]], own: list[dict[str, Any]], when: str) -> str:
    """Its mean over the seeds, with the standard error."""
    found = [b[when] - a[when] for a, b in zip(single, own, strict=True)]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return f"{statistics.mean(found):+.2f} ± {error:.2f}"


if __name__ == "__main__":
    main()
