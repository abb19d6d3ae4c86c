"""ADMM against one-shot and gradual magnitude pruning: same network, data, epochs, budget and ranking of the units.

    python benchmarks/admm_vs_magnitude.py            # goes on where it was stopped; results are kept in runs/
    python benchmarks/admm_vs_magnitude.py --quick    # one seed, few epochs: shows that the script works

Every method starts from the same dense network of its seed, removes exactly as many units of every layer, ranks them by
the same norm and trains for `BEFORE + AFTER` epochs more:

    one-shot   prune, then train all epochs under the mask
    gradual    prune in STEPS steps of the cubic schedule of Zhu and Gupta (1710.01878) within BEFORE epochs, then AFTER
    ADMM       BEFORE epochs under the penalty, in progressive rounds of about 3x, then AFTER
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from structadmm.files import atomic_path, read_json, write_json, write_text
from structadmm.graph import trace
from structadmm.progress import SilentReporter
from train.budget import keep_count
from train.config import DataConfig, RoundConfig, TrainConfig
from train.data import load_dataset
from train.layers import Network
from train.models import build_model
from train.rounds import plan_round
from train.stage import run_train

# One block per stage: small enough that high sparsities hurt on 8x8 digits, and a run takes seconds.
MODEL: dict[str, Any] = {
    "entry": "train.models.cifar_resnet:CifarResNet",
    "kwargs": {"blocks": [1, 1, 1], "width": 8, "num_classes": 10, "in_channels": 1},
}
SEEDS = (0, 1, 2)
SPARSITIES = {"column": (0.8, 0.9, 0.95, 0.98), "filter": (0.5, 0.75, 0.875)}
METHODS = ("one-shot", "gradual", "admm")
DENSE_EPOCHS = 12
BEFORE = 20
AFTER = 20
STEPS = 6
STEP_RATIO = 3.2
# Share of a round's epochs, the last one's excepted, in which what is left recovers under the mask.
BETWEEN = 0.5
LR = 0.02
RETRAIN_LR = 0.05
ADMM = {"rho": 0.2, "rho_growth": 2.0, "rho_max": 20.0, "update_every": 1}

Keep = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Case:
    """One run of the comparison."""

    structure: str
    sparsity: float
    method: str
    seed: int

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.structure}-{self.sparsity:g}-{self.method}-seed{self.seed}"


@dataclass(frozen=True)
class Length:
    """Epochs of the phases."""

    dense: int = DENSE_EPOCHS
    before: int = BEFORE
    after: int = AFTER


def cases(seeds: tuple[int, ...]) -> Iterator[Case]:
    for structure, sparsities in SPARSITIES.items():
        for seed in seeds:
            for sparsity in sparsities:
                for method in METHODS:
                    yield Case(structure, sparsity, method, seed)


def units(structure: str, sparsity: float) -> dict[str, tuple[int, int]]:
    """Units of each layer or group before and after, as a round of the project would keep them."""
    dataset = load_dataset(DataConfig(name="digits"))
    model = build_model(MODEL["entry"], MODEL["kwargs"])
    network = Network.of(trace(model, (dataset.normalised(dataset.test_images[:2]),)))
    config = RoundConfig.model_validate({"structure": structure, "sparsity": sparsity})
    return plan_round(config, network, {}).units


def rounds(case: Case, length: Length) -> list[dict[str, Any]]:
    """The rounds of `[train]` that make the method."""
    alive = units(case.structure, case.sparsity)
    final = {name: kept for name, (_, kept) in alive.items()}
    shared = {"structure": case.structure, "lr": LR, "retrain_lr": RETRAIN_LR, **ADMM}
    whole = {name: 1 - kept / alive[name][0] for name, kept in final.items()}
    if case.method == "one-shot":
        return [{**shared, "sparsity": whole, "admm_epochs": 0, "retrain_epochs": length.before + length.after}]
    steps = STEPS if case.method == "gradual" else admm_rounds(case.sparsity)
    goals = [final]
    for step in range(steps - 1, 0, -1):
        # The cubic schedule cuts most at first; rounds of ADMM have one ratio.
        if case.method == "gradual":
            sparsity = case.sparsity * (1 - (1 - step / steps) ** 3)
        else:
            sparsity = 1 - (1 - case.sparsity) ** (step / steps)
        goal = {name: max(final[name], keep_count(alive[name][0], sparsity)) for name in final}
        if goal not in (goals[0], {name: before for name, (before, _) in alive.items()}):
            goals.insert(0, goal)
    found: list[dict[str, Any]] = []
    current = {name: before for name, (before, _) in alive.items()}
    for number, goal in enumerate(goals, start=1):
        last = number == len(goals)
        after = length.after if last else 0
        if case.method == "admm":
            epochs = share(length.before, number, len(goals))
            between = 0 if last else int(epochs * BETWEEN)
            course = {"admm_epochs": epochs - between, "retrain_epochs": between + after}
        elif last and number > 1:
            course = {"admm_epochs": 0, "retrain_epochs": after}
        elif last:
            course = {"admm_epochs": 0, "retrain_epochs": length.before + after}
        else:
            # The first cut comes at once and the last after BEFORE epochs: one interval less than cuts.
            epochs = share(length.before, number, len(goals) - 1)
            course = {"admm_epochs": 0, "retrain_epochs": epochs, "retrain_lr": LR, "retrain_schedule": "constant"}
        rates = {name: 1 - goal[name] / current[name] for name in final if goal[name] < current[name]}
        found.append({**shared, **course, "sparsity": rates})
        current = goal
    return found


def admm_rounds(sparsity: float) -> int:
    """Rounds of at most about 3x each."""
    return max(1, math.ceil(math.log(1 / (1 - sparsity)) / math.log(STEP_RATIO)))


def share(total: int, step: int, steps: int) -> int:
    """The epochs of step 1, 2 ... `steps` of `total`."""
    return total * step // steps - total * (step - 1) // steps


def settings(seed: int, changes: dict[str, Any]) -> TrainConfig:
    values = {
        "seed": seed,
        "threads": 1,
        "device": "cpu",
        "batch_size": 64,
        "channels_last": True,
        "model": MODEL,
        "data": {"name": "digits"},
        "optimizer": {"weight_decay": 5e-4},
    }
    return TrainConfig.model_validate(values | changes)


def dense_network(seed: int, length: Length, work: Path) -> Path:
    """Train the seed's dense network, once: the file with its weights."""
    out = work / f"dense-seed{seed}"
    if not (out / "pruning.json").exists():
        # A run has at least one round; this one takes nothing away and trains nothing.
        nothing = {"structure": "column", "sparsity": 0.0, "admm_epochs": 0, "retrain_epochs": 0}
        run_train(settings(seed, {"dense": {"epochs": length.dense}, "rounds": [nothing]}), out, SilentReporter())
    return out / "dense.safetensors"


def run(case: Case, length: Length, work: Path) -> dict[str, Any]:
    """The result of one case, from its file if it was run before."""
    cached = work / f"{case.key}.json"
    if cached.exists():
        return read_json(cached, schema=1)
    model = {**MODEL, "weights": str(dense_network(case.seed, length, work))}
    out = work / case.key
    config = settings(case.seed, {"model": model, "dense": {"epochs": 0}, "rounds": rounds(case, length)})
    run_train(config, out, SilentReporter())
    record = json.loads((out / "pruning.json").read_text())
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["type"] == "epoch"]
    primal = [
        max(layer["primal"] for layer in line["layers"].values()) for line in lines if line["type"] == "residuals"
    ]
    if len(epochs) != length.before + length.after:
        raise AssertionError(f"{case.key} trained {len(epochs)} epochs, expected {length.before + length.after}")
    result = {
        "schema": 1,
        **asdict(case),
        "dense": record["accuracy"]["dense"],
        "pruned": record["accuracy"]["pruned"],
        "after_cut": next(line for line in reversed(lines) if line["type"] == "hard_prune")["test_accuracy"],
        "loss": epochs[-1]["loss"],
        "largest_primal": primal[-1] if primal else None,
        "kept_params": record["conv_params"]["pruned"],
        "ratio": record["conv_params"]["ratio"],
        "seconds": sum(line["seconds"] for line in epochs),
    }
    write_json(cached, result)
    return result


def mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: accuracy of each method by structure and sparsity."""
    lines = [
        "| structure | removed | CONV smaller | one-shot % | gradual % | ADMM % |",
        "|---|---|---|---|---|---|",
    ]
    for structure, sparsities in SPARSITIES.items():
        for sparsity in sparsities:
            here = [r for r in results if (r["structure"], r["sparsity"]) == (structure, sparsity)]
            by = {method: [r for r in here if r["method"] == method] for method in METHODS}
            if not all(by.values()):
                continue
            final = [mean_and_deviation([r["pruned"] for r in by[method]]) for method in METHODS]
            ratio = f"{statistics.mean(r['ratio'] for r in by['admm']):.1f}x"
            lines.append(" | ".join(["| " + structure, f"{sparsity:.1%}", ratio, *final]) + " |")
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SPARSITIES), figsize=(9, 3.6), layout="constrained")
    dense = statistics.mean({(r["seed"], r["dense"]): r["dense"] for r in results}.values())
    for axis, structure in zip(axes, SPARSITIES, strict=True):
        for method, marker in zip(METHODS, "sod", strict=True):
            here = [r for r in results if r["structure"] == structure and r["method"] == method]
            levels = sorted({r["sparsity"] for r in here})
            points = [[r["pruned"] for r in here if r["sparsity"] == level] for level in levels]
            axis.errorbar(
                range(len(levels)),
                [statistics.mean(p) for p in points],
                yerr=[[statistics.mean(p) - min(p) for p in points], [max(p) - statistics.mean(p) for p in points]],
                marker=marker,
                capsize=3,
                label=method,
            )
            axis.set_xticks(range(len(levels)), [f"{level:.1%}" for level in levels])
        axis.axhline(dense, color="gray", linestyle="--", linewidth=1, label="dense")
        axis.set(xlabel=f"{structure}s removed", ylabel="test accuracy %", title=f"{structure}s")
        axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/reference/admm_vs_magnitude"))
    parser.add_argument("--work", type=Path, default=Path("runs/admm_vs_magnitude"))
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, into the work folder: for parallel processes")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, tables in the work folder only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    length = Length(2, 5, 2) if arguments.quick else Length()
    work = arguments.work / ("quick" if arguments.quick else "full")
    out = work if arguments.quick else arguments.out
    results = []
    for case in cases(tuple(arguments.seeds or (SEEDS[:1] if arguments.quick else SEEDS))):
        result = run(case, length, work)
        results.append(result)
        print(f"{case.key}: {result['pruned']:.2f} % ({result['seconds']:.0f} s)", flush=True)
    if arguments.seeds:
        return
    for structure, sparsities in SPARSITIES.items():
        for sparsity in sparsities:
            here = [r for r in results if (r["structure"], r["sparsity"]) == (structure, sparsity)]
            if len({r["kept_params"] for r in here}) != 1:
                raise AssertionError(f"{structure} {sparsity}: the methods kept {[r['kept_params'] for r in here]}")
    write_json(out / "results.json", {"schema": 1, "length": asdict(length), "model": MODEL, "runs": results})
    write_text(out / "table.md", table(results) + "\n")
    plot(results, out / "accuracy.svg")
    print(table(results))


if __name__ == "__main__":
    main()
