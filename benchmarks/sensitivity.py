"""Budgets from sensitivity measured with BatchNorm's statistics up to date, against with those of the whole network.

    python benchmarks/sensitivity.py --seeds 8

For each seed one dense ResNet-18 of width 16 is trained on scikit-learn's digits and pruned to a budget of CONV
parameters, once for each way to measure; everything else is equal. Top-1 on the test images right after the hard prune
and after three epochs of retraining; a difference is between the two of one seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from host_record import write_record

from results.markdown import markdown_table
from structadmm.progress import SilentReporter
from train.config import TrainConfig
from train.stage import run_train

WAYS = ("of the whole network", "up to date")
BUDGETS = (("filter", 10.0), ("filter", 30.0), ("column", 20.0), ("column", 60.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("results/reference/sensitivity"))
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            dense = Path(folder) / f"dense-{seed}"
            run_train(configuration(seed, {"epochs": 12, "lr": 0.1}, ("filter", None)), dense, SilentReporter())
            for structure, reduction in BUDGETS:
                for way in WAYS:
                    out = Path(folder) / f"{structure}-{reduction}-{way}-{seed}"
                    config = configuration(seed, {"epochs": 0}, (structure, reduction), dense / "dense.safetensors")
                    with statistics_of(way):
                        run_train(config, out, SilentReporter())
                    runs.append({"seed": seed, "structure": structure, "reduction": reduction, "way": way, **top1(out)})
                    print(runs[-1], flush=True)
    heads = ("structure", "budget", *(f"{when}, {way}" for when in ("cut", "retrained") for way in WAYS), "difference")
    table = markdown_table(heads, [row(runs, structure, reduction) for structure, reduction in BUDGETS])
    print(table)
    write_record(
        options.out,
        made_by=f"python benchmarks/sensitivity.py --seeds {options.seeds}",
        kind="host",
        rows=runs,
        table=table,
    )


def configuration(
    seed: int, dense: dict[str, Any], budget: tuple[str, float | None], weights: Path | None = None
) -> TrainConfig:
    """A run of one round; without a reduction it prunes nothing."""
    structure, reduction = budget
    entry: dict[str, Any] = {"structure": structure, "admm_epochs": 0, "retrain_epochs": 0, "sparsity": 0.0}
    if reduction is not None:
        entry = {
            "structure": structure,
            "target": {"measure": "conv_params", "reduction": reduction},
            "first_layer": True,
            **{"admm_epochs": 4, "retrain_epochs": 3, "rho": 0.2, "rho_growth": 1.5, "rho_max": 5.0},
            **{"lr": 0.02, "retrain_lr": 0.05},
            **({"block": 4} if structure == "column" else {"multiple": 4}),
        }
    return TrainConfig.model_validate(
        {
            "seed": seed,
            "threads": 1,
            "batch_size": 64,
            "channels_last": True,
            "model": {"entry": "cifar_resnet18", "kwargs": {"width": 16}, "weights": weights},
            "data": {"name": "digits", "held_out": 0.05},
            "optimizer": {"weight_decay": 5e-4},
            "dense": dense,
            "rounds": [entry],
        }
    )


@contextmanager
def statistics_of(way: str) -> Iterator[None]:
    """Measure sensitivity in one of the `WAYS`."""
    if way == WAYS[1]:
        yield
    else:
        with mock.patch("train.sensitivity._statistics_of_each_batch", lambda _: nullcontext()):
            yield


def top1(out: Path) -> dict[str, float]:
    """Accuracies of a run, percent."""
    pruning = json.loads((out / "pruning.json").read_text())
    images = pruning["accuracy"]["test_images"]
    cut, retrained = (pruning["rounds"][0][f"{when}_correct"] for when in ("hard_pruned", "retrained"))
    return {"cut": 100 * cut / images, "retrained": 100 * retrained / images}


def row(runs: list[dict[str, Any]], structure: str, reduction: float) -> tuple[str, ...]:
    """Means, and the mean difference after retraining with its standard error."""
    own = [run for run in runs if (run["structure"], run["reduction"]) == (structure, reduction)]
    by_way = {way: [run for run in own if run["way"] == way] for way in WAYS}
    means = [
        f"{statistics.mean(run[when] for run in by_way[way]):.2f} %" for when in ("cut", "retrained") for way in WAYS
    ]
    gains = [b["retrained"] - a["retrained"] for a, b in zip(*by_way.values(), strict=True)]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return (structure, f"{reduction:g}x", *means, f"{statistics.mean(gains):+.2f} ± {error:.2f}")


if __name__ == "__main__":
    main()
