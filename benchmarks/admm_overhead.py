"""What ADMM adds to a training step, on CIFAR ResNet-18 with batch 128.

    python benchmarks/admm_overhead.py --pairs 8

Plain SGD steps and ADMM steps alternate, in changing order, on one network; each step is everything the training loop
does between two batches. The targets are a median ratio of at most 1.05, and an update of Z and U of the whole network
in at most 0.25 of a step. One thread; times are CPU time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch.nn import functional

from structadmm.graph import trace
from train.admm import Admm
from train.config import OptimizerConfig, RoundConfig
from train.layers import Network
from train.loop import make_optimizer
from train.masking import MaskedTraining
from train.models import build_model
from train.rounds import plan_round


def seconds(work: Callable[[], None]) -> float:
    """CPU seconds of one thread: other processes on the machine hardly change them, as they do wall-clock time."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(structure: str, batch: int, pairs: int, width: int, loss_at: str = "weights") -> dict[str, object]:
    torch.manual_seed(0)
    model = build_model("cifar_resnet18", {"width": width})
    network = Network.of(trace(model, (torch.zeros(2, 3, 32, 32),)))
    config = RoundConfig.model_validate({"structure": structure, "sparsity": 0.9, "first_layer": True})
    plan = plan_round(config, network, {})
    parameters = dict(model.named_parameters())
    projected = loss_at == "projection"
    admm = Admm(parameters, plan.constraints, {}, plan.rho(config), removed_only=projected, at_projection=projected)
    masked = MaskedTraining(parameters, {})
    optimizer = make_optimizer(OptimizerConfig(), model, 0.01)
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    model.train()

    def step(penalty: Admm | None) -> None:
        optimizer.zero_grad(set_to_none=True)
        with penalty.at_loss_point() if penalty is not None else nullcontext():
            functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        if penalty is not None:
            penalty.add_penalty_gradient()
        masked.mask_gradients()
        optimizer.step()

    step(admm)  # allocates
    plain, with_admm, penalties, updates = [], [], [], []
    for pair in range(pairs):
        for kind in (0, 1) if pair % 2 else (1, 0):
            (with_admm if kind else plain).append(seconds(lambda kind=kind: step(admm if kind else None)))  # type: ignore[misc]
        penalties.append(seconds(admm.add_penalty_gradient))
        updates.append(seconds(lambda: admm.update(1.3, 1.0) and None))
    one_step = statistics.median(plain)
    return {
        "structure": structure,
        "constraints": len(plan.constraints),
        "plain_step_ms": 1e3 * one_step,
        "admm_step_ms": 1e3 * statistics.median(with_admm),
        "median_ratio": statistics.median(a / p for a, p in zip(with_admm, plain, strict=True)),
        "penalty_ms": 1e3 * statistics.median(penalties),
        "penalty_share": statistics.median(penalties) / one_step,
        "update_ms": 1e3 * statistics.median(updates),
        "update_share": statistics.median(updates) / one_step,
        "samples_ms": {"plain": [1e3 * t for t in plain], "admm": [1e3 * t for t in with_admm]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--structures", nargs="+", default=["filter", "column"])
    parser.add_argument("--loss-at", choices=["weights", "projection"], default="weights")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for structure in arguments.structures:
        found = measure(structure, arguments.batch, arguments.pairs, arguments.width, arguments.loss_at)
        if arguments.json:
            print(json.dumps(found))
            continue
        print(
            f"{structure}: plain step {found['plain_step_ms']:.0f} ms, ADMM step {found['admm_step_ms']:.0f} ms, "
            f"median ratio {found['median_ratio']:.3f}; the penalty alone {found['penalty_ms']:.1f} ms "
            f"({found['penalty_share']:.1%} of a step), Z/U update {found['update_ms']:.0f} ms "
            f"({found['update_share']:.1%})"
        )


if __name__ == "__main__":
    main()
