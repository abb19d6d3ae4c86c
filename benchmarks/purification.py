"""What purification buys on a pruned ResNet-18, and what a short retraining gives back.

    structadmm train runs/purification --config pipeline/demo.toml --set train.data.held_out=0.15
    python benchmarks/purification.py runs/purification/train --out results/reference/purification

Every pair of thresholds that empties other units gives one network: shrunk, tested on the test set before and after a
short retraining of the shrunk network (its zero columns stay zero), and once more with the same retraining and no
purification, for a fair comparison. Writes `results.json`, `table.md` and `curve.svg`.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.fixed_point import shrink_fully
from export.purify import purify
from export.shrink import rounded
from structadmm.files import read_json, write_json, write_text
from structadmm.graph import Captured, GraphModule, capture
from structadmm.graph.count import count
from structadmm.graph.save import read_tensors
from train.config import DataConfig
from train.data import load_dataset
from train.models import build_model

ETAS = (0.8, 0.6, 0.4, 0.2, 0.0)
SIGMAS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
EPOCHS, BATCH, LR = 6, 64, 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pruning = read_json(options.train_dir / "pruning.json", schema=1)
    data, _ = load_dataset(DataConfig(name="digits")).hold_out(0.15)  # as the run was trained
    training = data.normalised(data.train_images[:]), data.train_labels
    test = data.normalised(data.test_images[:]), data.test_labels
    model = build_model(pruning["model"]["entry"], pruning["model"]["kwargs"])
    model.load_state_dict(read_tensors(options.train_dir / "pruned.safetensors"))
    network = capture(model.eval(), (torch.zeros(1, *pruning["input_shape"][1:]),))
    state = {name: tensor.detach().clone() for name, tensor in network.state.items()}
    rows = [measured(network, state, None, None, 0, training, test)]
    seen: set[frozenset[tuple[str, int]]] = {frozenset()}
    for sigma, eta in itertools.product(SIGMAS, ETAS):
        purified = purify(network.graph, state, eta=eta, sigma=sigma)
        emptied = frozenset((group, unit) for group, units in purified.emptied.items() for unit in units)
        if emptied not in seen:
            seen.add(emptied)
            rows.append(measured(network, purified.state, eta, sigma, len(emptied), training, test))
            print(rows[-1], flush=True)
    rows.sort(key=lambda row: -int(row["macs"]))
    options.out.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": 1,
        "network": pruning["model"],
        "dense_conv_params": count(network.graph).conv_params,
        "dense_macs": count(network.graph).macs,
        "test_images": len(test[1]),
        "retraining": {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR, "seed": 0},
        "rows": rows,
    }
    write_json(options.out / "results.json", record)
    write_text(options.out / "table.md", table(record))
    write_text(options.out / "curve.svg", curve(record))


def measured(
    network: Captured,
    state: Mapping[str, Tensor],
    eta: float | None,
    sigma: float | None,
    emptied: int,
    training: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Shrink, test, retrain, test."""
    _, exact = shrink_fully(network.graph, {n: t.double() if t.is_floating_point() else t for n, t in state.items()})
    smaller = rounded(exact, torch.float32)
    counts = count(smaller.graph, smaller.state)
    module = GraphModule(smaller.graph, smaller.state)
    before = accuracy(module, test)
    retrain(module, *training)
    return {
        "eta": eta, "sigma": sigma, "emptied": emptied, "conv_params": counts.conv_params, "macs": counts.macs,
        "accuracy_before": before, "accuracy_after": accuracy(module, test),
    }  # fmt: skip


def accuracy(module: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        right = module.eval()(test[0]).argmax(dim=1) == test[1]
    return 100.0 * float(right.double().mean())


def retrain(module: GraphModule, images: Tensor, labels: Tensor) -> None:
    """Momentum SGD with a cosine; weights that are zero stay zero."""
    torch.manual_seed(0)
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    masks = [(weight != 0).float() for weight in weights]
    steps = EPOCHS * math.ceil(len(labels) / BATCH)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    module.train()
    for _ in range(EPOCHS):
        for part in torch.randperm(len(labels)).split(BATCH):
            if len(part) < 2:
                continue  # BatchNorm has no variance of one sample
            optimizer.zero_grad()
            functional.cross_entropy(module(images[part]), labels[part]).backward()
            for weight, mask in zip(weights, masks, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(mask)
            optimizer.step()
            schedule.step()


def table(record: Mapping[str, Any]) -> str:
    lines = [
        "| η | σ | Units emptied | CONV params | MACs | Top-1 % before | and after retraining |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        thresholds = [f"{row[key]:.1f}" if row[key] is not None else "none" for key in ("eta", "sigma")]
        ratios = (record[f"dense_{key}"] / row[key] for key in ("conv_params", "macs"))
        cells = [*thresholds, str(row["emptied"]), *(f"{ratio:.1f}×" for ratio in ratios)]
        cells += [f"{row[key]:.2f}" for key in ("accuracy_before", "accuracy_after")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "CONV params and MACs: those of the dense network over what is left.",
        f"{record['network']['entry']} {record['network']['kwargs']} on scikit-learn's digits, one run each.",
        f"One of the {record['test_images']} test images is {100 / record['test_images']:.2f} points.",
        "Made by `benchmarks/purification.py`.",
    ]
    return "\n".join(lines) + "\n"


def curve(record: Mapping[str, Any]) -> str:
    import io

    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    rows = sorted(record["rows"], key=lambda row: -row["conv_params"])
    ratios = [record["dense_conv_params"] / row["conv_params"] for row in rows]
    for key, colour, label in (
        ("accuracy_before", "#b45309", "before retraining"),
        ("accuracy_after", "#0f766e", f"after {EPOCHS} epochs"),
    ):
        axes.plot(ratios, [row[key] for row in rows], "o-", color=colour, markersize=4, label=label)
    axes.set_xlabel("CONV parameters, dense / left")
    axes.set_ylabel("test accuracy, %")
    axes.legend(frameon=False)
    # The same salt for the same picture every time.
    with matplotlib.rc_context({"svg.hashsalt": "purification"}), io.BytesIO() as stream:
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
        return "\n".join(line.rstrip() for line in stream.getvalue().decode().splitlines()) + "\n"


if __name__ == "__main__":
    main()
