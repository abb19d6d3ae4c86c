"""ADMM against one-shot and gradual magnitude pruning: same network, data, epochs and budget.

    python benchmarks/admm_vs_magnitude.py            # goes on where it was stopped; results are kept in runs/
    python benchmarks/admm_vs_magnitude.py --validate # on held-out training images: for choosing settings
    python benchmarks/admm_vs_magnitude.py --report   # tables and plot of the results file, and of newer runs in runs/
    python benchmarks/admm_vs_magnitude.py --quick    # one seed, few epochs: shows that the script works

Every method starts from the same dense network of its seed, removes exactly as many units of every layer and trains for
EPOCHS epochs more, with settings of its own chosen on held-out training images. Filters are removed as channels of the
layers that read them.

    one-shot   prune, then train all epochs under the mask
    gradual    prune in steps of the cubic schedule of Zhu and Gupta (1710.01878), then train under the mask
    gradual, 6 cuts
               of filters, the same with fewer steps; "by filters" ranks them by themselves instead of their readers
    ADMM       one round whose sparsity rises within the phase, the loss taken at the projection, so that what was
               removed can come back by its gradient
    ADMM, no return
               of columns, the same with a penalty so great that next to nothing comes back: what returning gains
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from structadmm.errors import UserError
from structadmm.files import atomic_path, read_json, write_json, write_text
from structadmm.graph import trace
from structadmm.progress import SilentReporter
from train.budget import keep_count
from train.config import DataConfig, RoundConfig, TrainConfig
from train.data import Dataset, load_dataset
from train.layers import Network
from train.models import build_model
from train.rounds import plan_round
from train.stage import run_train

# One block per stage: small enough that high sparsities hurt on 8x8 digits, and a run takes seconds.
MODEL: dict[str, Any] = {
    "entry": "train.models.cifar_resnet:CifarResNet",
    "kwargs": {"blocks": [1, 1, 1], "width": 8, "num_classes": 10, "in_channels": 1},
}
# Seeds, of which there are more where methods differ by little more than networks do.
SEEDS = {
    "column": {0.8: 3, 0.9: 3, 0.95: 50, 0.98: 50},
    "filter": {0.5: 3, 0.75: 3, 0.875: 50, 0.9375: 50},
}
# Of accuracies: test images times levels whose mean is taken.
UNITS = 360 * 4
# Levels with more seeds than that have their differences given seed by seed.
FEW = 3
# Seeds from here on are a test of their own: settings, levels, statistic and number were fixed before the first ran.
LATER = 20
METHODS = {
    "one-shot": "one-shot",
    "gradual": "gradual",
    "gradual-6": "gradual, 6 cuts",
    "gradual-filters": "gradual, 6 cuts, by filters",
    "admm": "ADMM",
    "no-return": "ADMM, no return",
}
# Methods that are not run everywhere: structures, least sparsity, seeds at most.
ONLY = {
    "one-shot": (("column", "filter"), 0.0, 10),
    "gradual-6": (("filter",), 0.9375, 12),
    "gradual-filters": (("filter",), 0.9375, 12),
    "no-return": (("column",), 0.95, 5),
}
DENSE_EPOCHS = 12
EPOCHS = 40
# Of gradual pruning: how many cuts, and how many of EPOCHS come before the last.
CUTS = {"column": (6, 12), "filter": (12, 14)}
SIX_CUTS = (6, 12)
# Of all phases and methods.
LR = 0.2
# What units are ranked by: removing a channel of the layers that read it removes the filter, too.
UNIT = {"column": "column", "filter": "channel"}
ADMM = {"penalise": "removed", "loss_at": "projection", "rho_growth": 1.0, "update_every": 1}
RHO = {("column", "admm"): 0.1, ("column", "no-return"): 2.0, ("filter", "admm"): 0.3}
# Of ADMM's single round: epochs in which the sparsity rises, and all those under the penalty.
RAMP = 10
PHASE = {"column": 20, "filter": 14}
FOLDS = 5


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
    """Epochs: of the dense network, and of everything after it."""

    dense: int = DENSE_EPOCHS
    pruning: int = EPOCHS

    def share(self, epochs: int) -> int:
        """As many of this run's epochs as `epochs` are of EPOCHS."""
        return epochs * self.pruning // EPOCHS


def fold(number: int) -> Dataset:
    """Digits whose test images are a fold of the training images: settings are chosen without the test images."""
    whole = load_dataset(DataConfig(name="digits"))
    order = torch.randperm(len(whole.train_labels), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(order), dtype=torch.bool)
    held[order[number::FOLDS]] = True
    images = whole.train_images[torch.arange(len(order))]
    return replace(
        whole,
        train_images=images[~held],
        train_labels=whole.train_labels[~held],
        test_images=images[held],
        test_labels=whole.train_labels[held],
    )


def cases(seeds: Sequence[int] | None = None) -> Iterator[Case]:
    """All runs, or those of some seeds, in an order that is useful when it is interrupted."""
    for structure, sparsities in SEEDS.items():
        for sparsity, count in reversed(sparsities.items()):
            for seed in range(count) if seeds is None else seeds:
                for method in METHODS:
                    places, least, most = ONLY.get(method, ((structure,), 0.0, count))
                    if structure in places and sparsity >= least and seed < most:
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
    structure = "filter" if case.method == "gradual-filters" else UNIT[case.structure]
    rho = RHO.get((case.structure, case.method))
    if rho is not None:
        phase = length.share(PHASE[case.structure])
        return [
            {
                "structure": structure,
                "sparsity": case.sparsity,
                "lr": LR,
                "rho": rho,
                **ADMM,
                "ramp_epochs": length.share(RAMP),
                "admm_epochs": phase,
                "retrain_epochs": length.pruning - phase,
                "retrain_lr": LR,
            }
        ]
    alive = {name: before for name, (before, _) in units(case.structure, case.sparsity).items()}
    final = {name: kept for name, (_, kept) in units(case.structure, case.sparsity).items()}
    goals = [final]
    cuts, before = {"one-shot": (1, 0), "gradual": CUTS[case.structure]}.get(case.method, SIX_CUTS)
    for step in range(cuts - 1, 0, -1):
        sparsity = case.sparsity * (1 - (1 - step / cuts) ** 3)
        goal = {name: max(final[name], keep_count(alive[name], sparsity)) for name in final}
        if goal not in (goals[0], alive):
            goals.insert(0, goal)
    found: list[dict[str, Any]] = []
    current = dict(alive)
    spent = 0
    for number, goal in enumerate(goals, start=1):
        course: dict[str, Any] = {"retrain_epochs": length.pruning - spent, "retrain_lr": LR}
        if number < len(goals):
            # The first cut is at once and the last after `before` epochs: one interval less than cuts.
            epochs = share(length.share(before), number, len(goals) - 1)
            course = {"retrain_epochs": epochs, "retrain_lr": LR, "retrain_schedule": "constant"}
            spent += epochs
        rates = {name: 1 - goal[name] / current[name] for name in final if goal[name] < current[name]}
        found.append({"structure": structure, **course, "admm_epochs": 0, "sparsity": rates})
        current = goal
    return found


def share(total: int, step: int, steps: int) -> int:
    """The epochs of step 1, 2 ... `steps` of `total`."""
    return total * step // steps - total * (step - 1) // steps


def settings(seed: int, validate: bool, changes: dict[str, Any]) -> TrainConfig:
    data = {"name": "admm_vs_magnitude:fold", "kwargs": {"number": seed % FOLDS}} if validate else {"name": "digits"}
    values = {
        "seed": seed,
        "threads": 1,
        "device": "cpu",
        "batch_size": 64,
        "channels_last": True,
        "model": MODEL,
        "data": data,
        "optimizer": {"weight_decay": 5e-4},
    }
    return TrainConfig.model_validate(values | changes)


def dense_network(seed: int, length: Length, work: Path, validate: bool) -> Path:
    """Train the seed's dense network, once: the file with its weights."""
    out = work / f"dense-seed{seed}"
    if not (out / "pruning.json").exists():
        # A run has at least one round; this one takes nothing away and trains nothing.
        nothing = {"structure": "column", "sparsity": 0.0, "admm_epochs": 0, "retrain_epochs": 0}
        config = settings(seed, validate, {"dense": {"epochs": length.dense}, "rounds": [nothing]})
        run_train(config, out, SilentReporter())
    return out / "dense.safetensors"


def run(case: Case, length: Length, work: Path, validate: bool) -> dict[str, Any]:
    """The result of one case, from its file if it was run before."""
    cached = work / f"{case.key}.json"
    if cached.exists():
        return read_json(cached, schema=1)
    model = {**MODEL, "weights": str(dense_network(case.seed, length, work, validate))}
    out = work / case.key
    config = settings(case.seed, validate, {"model": model, "dense": {"epochs": 0}, "rounds": rounds(case, length)})
    run_train(config, out, SilentReporter())
    record = json.loads((out / "pruning.json").read_text())
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["type"] == "epoch"]
    primal = [
        max(layer["primal"] for layer in line["layers"].values()) for line in lines if line["type"] == "residuals"
    ]
    if len(epochs) != length.pruning:
        raise AssertionError(f"{case.key} trained {len(epochs)} epochs, expected {length.pruning}")
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


def chosen_settings(length: Length) -> dict[str, Any]:
    """What runs must have in common to stand in one table."""
    rho = {"-".join(key): value for key, value in RHO.items()}
    pruning = {"lr": LR, "cuts": CUTS, "admm": ADMM, "rho": rho, "ramp": RAMP, "phase": PHASE}
    found: dict[str, Any] = json.loads(json.dumps({"length": asdict(length), "model": MODEL, **pruning}))
    return found  # as a file gives it back


def recorded_runs(path: Path, length: Length) -> dict[Case, dict[str, Any]]:
    """The runs of a results file.

    Raises:
        UserError: they were made with other settings.
    """
    if not path.exists():
        return {}
    record = read_json(path, schema=1)
    if record.get("settings") != chosen_settings(length):
        raise UserError(f"{path} was made with other settings than this script's: run it without --report")
    return {Case(r["structure"], r["sparsity"], r["method"], r["seed"]): r for r in record["runs"]}


def percent(fraction: float) -> str:
    return f"{100 * fraction:g} %"


def mean_and_deviation(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {deviation:.2f}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: accuracy of each method by structure and sparsity."""
    heads = [f"{name} %" for name in METHODS.values()]
    lines = [
        f"| structure | removed | CONV smaller | seeds | {' | '.join(heads)} |",
        "|---" * (4 + len(heads)) + "|",
    ]
    for structure, sparsities in SEEDS.items():
        for sparsity in sparsities:
            here = [r for r in results if (r["structure"], r["sparsity"]) == (structure, sparsity)]
            if not here:
                continue
            by = {method: [r["pruned"] for r in here if r["method"] == method] for method in METHODS}
            seeds = len(by["admm"])
            final = [
                mean_and_deviation(found) + (f" ({len(found)} seeds)" if len(found) != seeds else "") if found else ""
                for found in by.values()
            ]
            ratio = f"{statistics.mean(r['ratio'] for r in here):.1f}x"
            lines.append(" | ".join(["| " + structure, percent(sparsity), ratio, str(seeds), *final]) + " |")
    return "\n".join(lines)


def sign_flip_p(gains: list[float]) -> float:
    """Two-sided p-value of paired differences: how many of all choices of their signs give a sum as far from zero.

    Exact, and without a normal distribution: that no method is better means that each sign is as likely as the other.
    """
    # Accuracies are ratios of counts, and so is a mean of theirs: in these units the sums are integers.
    steps = [round(gain * UNITS / 100) for gain in gains]
    if any(abs(step - gain * UNITS / 100) > 1e-6 for step, gain in zip(steps, gains, strict=True)):
        raise AssertionError(f"differences that are no multiples of 1 / {UNITS}: {gains}")
    reach = sum(map(abs, steps))
    share = torch.zeros(2 * reach + 1, dtype=torch.float64)  # of all choices, by their sum + reach
    share[reach] = 1.0
    for step in steps:
        share = (share.roll(step) + share.roll(-step)) / 2
    sums = torch.arange(-reach, reach + 1)
    return float(share[sums.abs() >= abs(sum(steps))].sum())


def paired(results: list[dict[str, Any]]) -> str:
    """Markdown: ADMM's accuracy minus another method's with the same seed, mean ± standard error.

    The last rows have each seed's mean over all levels of high sparsity: one test instead of several, of all seeds and
    of those that no decision was made on.
    """
    accuracy = {(r["structure"], r["sparsity"], r["method"], r["seed"]): r["pruned"] for r in results}
    levels = [
        (structure, sparsity)
        for structure in SEEDS
        for sparsity in SEEDS[structure]
        if SEEDS[structure][sparsity] > FEW
    ]
    others = [name for name in METHODS if name != "admm"]

    def gains(structure: str, sparsity: float, method: str) -> dict[int, float]:
        here = {seed: value for (*place, seed), value in accuracy.items() if place == [structure, sparsity, method]}
        admm = {seed: accuracy.get((structure, sparsity, "admm", seed)) for seed in here}
        return {seed: ours - here[seed] for seed, ours in admm.items() if ours is not None}

    rows = [
        (f"{percent(sparsity)} of the {structure}s", method, list(gains(structure, sparsity, method).values()))
        for structure, sparsity in levels
        for method in others
    ]
    for method in others:
        found = [gains(*level, method) for level in levels]
        common = sorted(set[int].intersection(*(set(gain) for gain in found)))
        means = {seed: statistics.mean(gain[seed] for gain in found) for seed in common}
        name = f"mean of the {len(levels)} levels"
        rows.append((name, method, list(means.values())))
        rows.append((f"{name}, later seeds", method, [mean for seed, mean in means.items() if seed >= LATER]))
    lines = [
        "| removed | minus | seeds | difference of accuracy % | ADMM better, equal, worse | p |",
        "|---|---|---|---|---|---|",
    ]
    for place, method, values in rows:
        if len(values) < 2:
            continue
        error = statistics.stdev(values) / len(values) ** 0.5
        counts = (sum(value > 0 for value in values), values.count(0.0), sum(value < 0 for value in values))
        lines.append(
            f"| {place} | {METHODS[method]} | {len(values)} | {statistics.mean(values):+.2f} ± {error:.2f} | "
            f"{', '.join(map(str, counts))} | {sign_flip_p(values):.3f} |"
        )
    return "\n".join(lines)


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SEEDS), figsize=(9, 3.6), layout="constrained")
    dense = statistics.mean({(r["seed"], r["dense"]): r["dense"] for r in results}.values())
    for axis, structure in zip(axes, SEEDS, strict=True):
        # One scale for all methods: not each was run at every sparsity.
        ticks = sorted({r["sparsity"] for r in results if r["structure"] == structure})
        axis.set_xticks(range(len(ticks)), [percent(level) for level in ticks])
        for (method, label), marker in zip(METHODS.items(), "sodvx^", strict=True):
            here = [r for r in results if r["structure"] == structure and r["method"] == method]
            if not here:
                continue
            levels = sorted({r["sparsity"] for r in here})
            points = [[r["pruned"] for r in here if r["sparsity"] == level] for level in levels]
            axis.errorbar(
                [ticks.index(level) for level in levels],
                [statistics.mean(p) for p in points],
                yerr=[[statistics.mean(p) - min(p) for p in points], [max(p) - statistics.mean(p) for p in points]],
                marker=marker,
                capsize=3,
                label=label,
            )
        axis.axhline(dense, color="gray", linestyle="--", linewidth=1, label="dense")
        axis.set(xlabel=f"{structure}s removed", ylabel="test accuracy %", title=f"{structure}s")
        axis.legend()
    figure.suptitle("means, with bars from the lowest to the highest seed", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/reference/admm_vs_magnitude"))
    parser.add_argument("--work", type=Path, default=Path("runs/admm_vs_magnitude"))
    parser.add_argument("--seeds", type=int, nargs="+", help="only these, into the work folder: for parallel processes")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), help="likewise, only these")
    parser.add_argument("--only", help="likewise, only names that begin so: filter-0.9375")
    parser.add_argument("--quick", action="store_true", help="one seed, few epochs, tables in the work folder only")
    parser.add_argument("--report", action="store_true", help="train nothing: tables and plot of the runs there are")
    parser.add_argument("--validate", action="store_true", help="test on held-out training images, tables likewise")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    length = Length(2, 20) if arguments.quick else Length()
    work = arguments.work / ("quick" if arguments.quick else "folds" if arguments.validate else "full")
    out = work if arguments.quick or arguments.validate else arguments.out
    recorded = recorded_runs(out / "results.json", length) if arguments.report else {}
    results = []
    for case in cases(arguments.seeds or ([0] if arguments.quick else None)):
        if arguments.methods and case.method not in arguments.methods:
            continue
        if arguments.only and not case.key.startswith(arguments.only):
            continue
        if arguments.report and not (work / f"{case.key}.json").exists():
            if case in recorded:
                results.append(recorded[case])
            continue
        result = run(case, length, work, arguments.validate)
        results.append(result)
        print(f"{case.key}: {result['pruned']:.2f} % ({result['seconds']:.0f} s)", flush=True)
    if arguments.seeds or arguments.methods or arguments.only:
        return
    for structure, sparsities in SEEDS.items():
        for sparsity in sparsities:
            here = [r for r in results if (r["structure"], r["sparsity"]) == (structure, sparsity)]
            if len({r["kept_params"] for r in here}) > 1:
                raise AssertionError(f"{structure} {sparsity}: the methods kept {[r['kept_params'] for r in here]}")
    if not results:
        raise UserError(f"no run in {work} or {out / 'results.json'}: start without --report")
    write_json(out / "results.json", {"schema": 1, "settings": chosen_settings(length), "runs": results})
    tables = table(results) + "\n\n" + paired(results) + "\n"
    write_text(out / "table.md", tables)
    plot(results, out / "accuracy.svg")
    print(tables)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"admm_vs_magnitude: {error}")
