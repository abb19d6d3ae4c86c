"""Budgets of the full-size networks, without training: is every target met within 2 %, and never exceeded?

    python -m tests.full_size_budgets [--networks resnet50 alexnet] [--out FILE.json]

Weights are the initial ones and every layer's sensitivity is made up, a random increasing curve: neither changes what a
budget promises. What is left is counted by another path than the one that chose it: on the network that the export
shrinks, or, for columns, on the zeros of the pruned weights. A budget that cannot be met must be refused with the
least that can.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.shrink import shrink
from export.unused_paths import remove_unused_paths
from structadmm.errors import UserError
from structadmm.files import write_json
from structadmm.graph import Graph, capture
from structadmm.graph.count import Counts, count
from train.config import RoundConfig
from train.constraint import Constraint
from train.layers import Network
from train.models import build_model
from train.sensitivity import Damage, trial_counts
from train.target import TOLERANCE, Budget, masks_after

INPUT = 224
NETWORKS = ("alexnet", "resnet18", "resnet50", "mobilenet_v2")
STRUCTURES = ("filter", "channel", "column")
MEASURES = ("conv_params", "params", "macs")
REDUCTIONS = (2.0, 4.0, 15.0)
SEED = 0


@dataclass(frozen=True)
class Case:
    """One budget of one network."""

    network: str
    structure: str
    measure: str
    reduction: float


@dataclass(frozen=True)
class Outcome:
    """What became of a budget.

    Attributes:
        limit: what may stay.
        chosen: what the budget says stays; the least that can, if it was refused.
        counted: what the pruned network has.
        refused: no choice of units meets the limit.
        seconds: that choosing took.
    """

    limit: float
    chosen: float
    counted: float
    refused: bool
    seconds: float

    @property
    def right(self) -> bool:
        """Met within 2 %, not exceeded, and counted alike; or refused where even the least is too much."""
        if self.refused:
            return self.chosen > self.limit
        return (1 - TOLERANCE) * self.limit <= self.counted <= self.limit and self.counted == self.chosen


def full_size(name: str) -> tuple[Graph, dict[str, Tensor]]:
    """The network as its paper has it, for ImageNet's images and classes."""
    torch.manual_seed(SEED)
    graph, state = capture(build_model(name, {}).eval(), (torch.zeros(2, 3, INPUT, INPUT),))
    return graph, dict(state)


def made_up_damages(constraints: Sequence[Constraint], alive: Sequence[int]) -> list[Damage]:
    """A random increasing curve for every layer."""
    del constraints
    generator = np.random.default_rng(SEED)
    measured = [generator.random(len(trial_counts(units))).cumsum() for units in alive]
    return [
        Damage.of(units, trial_counts(units), values.tolist(), 1e-3)
        for units, values in zip(alive, measured, strict=True)
    ]


def run(case: Case, graph: Graph, state: dict[str, Tensor]) -> Outcome:
    """Choose the units of a budget, prune by them, and count what is left."""
    config = RoundConfig.model_validate(
        {
            "structure": case.structure,
            "first_layer": True,
            "linear": True,
            "target": {"measure": case.measure, "reduction": case.reduction},
        }
    )
    started = time.perf_counter()
    budget = Budget(config, Network.of(graph), graph)
    try:
        allocation = budget.allocate(state, {}, made_up_damages)
    except UserError as refusal:
        least = float(str(refusal).split(" is the least")[0].rsplit(" ", 1)[1])
        return Outcome(budget.limit, least, least, True, time.perf_counter() - started)
    seconds = time.perf_counter() - started
    masks = masks_after(budget.plan(allocation.keeps, {}).constraints, state, {}, Network.of(graph).coupling.groups)
    pruned = {name: value * masks[name] if name in masks else value for name, value in state.items()}
    if case.structure == "column":
        counted = _amount(count(graph, pruned), case.measure)
    else:
        counted = _amount(count(shrink(remove_unused_paths(graph, pruned)).graph), case.measure)
    return Outcome(budget.limit, allocation.size, counted, False, seconds)


def _amount(counts: Counts, measure: str) -> float:
    return float(getattr(counts, measure))


def cases(networks: Sequence[str]) -> Iterator[Case]:
    for network, structure, measure, reduction in itertools.product(networks, STRUCTURES, MEASURES, REDUCTIONS):
        yield Case(network, structure, measure, reduction)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--out", type=Path, help="a JSON file for the outcomes")
    arguments = parser.parse_args()
    outcomes = []
    for network in arguments.networks:
        graph, state = full_size(network)
        for case in cases([network]):
            outcome = run(case, graph, state)
            outcomes.append({**asdict(case), **asdict(outcome), "right": outcome.right})
            told = f"refused, {outcome.chosen:.6g} is the least" if outcome.refused else f"{outcome.counted:.9g}"
            share = outcome.counted / outcome.limit
            print(
                f"{network} {case.structure} {case.measure} {case.reduction:g}x: {told} of {outcome.limit:.9g} "
                f"({share:.2%}), {outcome.seconds:.1f} s{'' if outcome.right else ' WRONG'}",
                flush=True,
            )
    if arguments.out:
        write_json(arguments.out, {"schema": 1, "outcomes": outcomes})
    refused = sum(bool(outcome["refused"]) for outcome in outcomes)
    wrong = sum(not outcome["right"] for outcome in outcomes)
    print(f"{len(outcomes)} budgets: {len(outcomes) - refused - wrong} met, {refused} refused, {wrong} wrong")


if __name__ == "__main__":
    main()
