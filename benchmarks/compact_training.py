"""A training step on what masks leave of CIFAR ResNet-18, against one on the whole masked network.

    python benchmarks/compact_training.py --turns 5

Rounds of half of the filters, one after the other; the steps of all networks alternate. Each is everything that a plain
step does in bf16 with batch 128, the whole network's optimizer included. Wall-clock time, all threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from host_record import record_options, write_record
from torch import Tensor
from torch.nn import functional

from export.living import living_network
from results.markdown import markdown_table
from structadmm.graph import capture
from train.config import OptimizerConfig, RoundConfig
from train.layers import Network
from train.living import LivingPart
from train.loop import make_optimizer
from train.masking import hard_prune
from train.models import build_model
from train.rounds import plan_round

HALF = RoundConfig.model_validate({"structure": "filter", "sparsity": 0.5, "multiple": 4, "first_layer": True})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    options = record_options(parser, Path("results/reference/compact_training"))
    torch.manual_seed(0)
    layout = torch.channels_last
    model = build_model("cifar_resnet18", {}).to(memory_format=layout).train()  # type: ignore[call-overload]
    graph, state = capture(model, (torch.zeros(2, 3, 32, 32),))
    images = torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=layout)
    labels = torch.arange(options.batch) % 10
    optimizer = make_optimizer(OptimizerConfig(), model, 1e-3)

    def seconds(logits: Callable[[Tensor], Tensor]) -> float:
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(logits(images).float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.perf_counter() - started

    networks: list[tuple[int, Callable[[Tensor], Tensor]]] = [(0, model)]
    masks: dict[str, Tensor] = {}
    for number in range(1, options.rounds + 1):
        masks = hard_prune(model, plan_round(HALF, Network.of(graph), masks).constraints, masks)
        smaller = living_network(graph, {**state, **dict(model.state_dict())}, masks)
        assert smaller is not None  # three quarters of the parameters are gone
        networks.append((number, LivingPart(smaller, model)))
    times: dict[int, list[float]] = {number: [] for number, _ in networks}
    for turn in range(options.turns + 1):
        for number, logits in networks:
            taken = seconds(logits)
            if turn:  # the first one allocates
                times[number].append(taken)
    rows = [
        {
            "rounds": number,
            "filters": round(100 / 2**number, 1),
            "step_ms": round(1e3 * statistics.median(found), 1),
            "speedup": round(statistics.median(a / b for a, b in zip(times[0], found, strict=True)), 2),
        }
        for number, found in times.items()
    ]
    table = markdown_table(
        ("rounds of half of the filters", "filters left", "ms a step", "faster than whole"),
        [(f"{row['rounds']}", f"{row['filters']} %", f"{row['step_ms']}", f"{row['speedup']}x") for row in rows],
    )
    print(table)
    write_record(
        options.out,
        made_by=options.made_by,
        kind="host",
        rows=rows,
        table=table,
    )


if __name__ == "__main__":
    main()
