"""Budgets from sensitivity measured with BatchNorm's statistics up to date, against with those of the whole network.

    python benchmarks/sensitivity.py

For each seed one dense ResNet-18 of width 16 is trained on scikit-learn's digits and pruned to a budget of CONV
parameters, once for each way to measure; everything else is equal. Top-1 on the test images right after the hard prune
and after three epochs of retraining; a difference is between the two of one seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from digits_budgets import MOMENTS, prune, train_dense
from host_record import record_options, write_record

from results.markdown import markdown_table

WAYS = ("of the whole network", "up to date")
BUDGETS = (("filter", 10.0), ("filter", 30.0), ("column", 20.0), ("column", 60.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    options = record_options(parser, Path("results/reference/sensitivity"))
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            weights = train_dense(seed, Path(folder) / f"dense-{seed}")
            for structure, reduction in BUDGETS:
                for way in WAYS:
                    out = Path(folder) / f"{structure}-{reduction}-{way}-{seed}"
                    with statistics_of(way):
                        top1 = prune(seed, weights, structure, reduction, out)
                    runs.append({"seed": seed, "structure": structure, "reduction": reduction, "way": way, **top1})
                    print(runs[-1], flush=True)
    heads = ("structure", "budget", *(f"{when}, {way}" for when in MOMENTS for way in WAYS), "difference")
    table = markdown_table(heads, [row(runs, structure, reduction) for structure, reduction in BUDGETS])
    print(table)
    write_record(
        options.out,
        made_by=options.made_by,
        kind="host",
        rows=runs,
        table=table,
    )


@contextmanager
def statistics_of(way: str) -> Iterator[None]:
    """Measure sensitivity in one of the `WAYS`."""
    if way == WAYS[1]:
        yield
    else:
        with mock.patch("train.sensitivity._statistics_of_each_batch", lambda _: nullcontext()):
            yield


def row(runs: list[dict[str, Any]], structure: str, reduction: float) -> tuple[str, ...]:
    """Means, and the mean difference after retraining with its standard error."""
    own = [run for run in runs if (run["structure"], run["reduction"]) == (structure, reduction)]
    by_way = {way: [run for run in own if run["way"] == way] for way in WAYS}
    means = [f"{statistics.mean(run[when] for run in by_way[way]):.2f} %" for when in MOMENTS for way in WAYS]
    gains = [b["retrained"] - a["retrained"] for a, b in zip(*by_way.values(), strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return (structure, f"{reduction:g}x", *means, f"{statistics.mean(gains):+.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
