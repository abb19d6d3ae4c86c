"""A round's budget for the whole network, and the units that every layer keeps so that it is met."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from structadmm.errors import InvariantError, UserError
from structadmm.graph import CoupledGroup, Graph
from structadmm.progress import Reporter
from train.allocate import Choices, allocate
from train.config import RoundConfig, TargetConfig
from train.constraint import Constraint, with_keep
from train.costs import load_costs
from train.footprint import Footprint
from train.footprint_model import FootprintModel
from train.layers import Network
from train.masking import all_supports
from train.rounds import NOT_NAMED, RoundPlan, plan_round
from train.sensitivity import Damage, measure_damage, trial_counts

#: A budget is met when at least this share of it is used.
TOLERANCE = 0.02
_ATTEMPTS = 20


@dataclass(frozen=True)
class Allocation:
    """What a round keeps to meet its target.

    Attributes:
        keeps: units by constraint name; constraints that keep all of their units are listed, too.
        alive: units before.
        size: of the network when exactly these are kept, in the measure's unit.
        sensitivity: (units kept, damage in nats per image) as measured, by constraint name.
    """

    keeps: dict[str, int]
    alive: dict[str, int]
    size: float
    sensitivity: dict[str, list[tuple[int, float]]]

    @property
    def rates(self) -> dict[str, float]:
        """The same as fractions to remove, in the form that `sparsity` takes."""
        return {
            name: round(1 - keep / self.alive[name], 6) for name, keep in self.keeps.items() if keep < self.alive[name]
        }


class Budget:
    """The target of one round.

    Args:
        config: of the round; its `target` is given.
        network: what is pruned.
        graph: the same, traced.

    Raises:
        UserError: the cost table does not fit, or the limit is not below what the dense network has.
    """

    def __init__(self, config: RoundConfig, network: Network, graph: Graph) -> None:
        target = config.target
        assert target is not None  # the caller asks only for rounds that have one
        self._config = config
        self._target: TargetConfig = target
        self._network = network
        table = load_costs(target.costs, graph) if target.costs is not None else None
        self.footprint = Footprint(graph, target.measure, table)
        self.dense = self.footprint.total({})
        self.limit = self.dense / target.reduction if target.reduction is not None else float(target.limit or 0)
        if self.limit >= self.dense:
            raise UserError(
                f"target {target.measure}: the limit {self.limit:g} is not below the {self.dense:g} "
                f"{self.footprint.unit} of the dense network: lower it"
            )

    def allocate(
        self,
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        damages: Callable[[Sequence[Constraint], Sequence[int]], list[Damage]],
    ) -> Allocation:
        """Choose the counts.

        Args:
            state: the model's parameters and buffers by name.
            masks: supports from earlier rounds.
            damages: measures constraints with so many units each.

        Raises:
            UserError: the limit cannot be met; says what can.
        """
        constraints = self._constraints(masks)
        model = FootprintModel(self.footprint, constraints, state, masks, self._network.coupling.groups)
        measured = damages(constraints, model.alive)
        keeps, size = self._fit(model, constraints, measured, model.alive, state, masks)
        names = [constraint.name for constraint in constraints]
        return Allocation(
            dict(zip(names, keeps, strict=True)),
            dict(zip(names, model.alive, strict=True)),
            size,
            {name: list(damage.measured) for name, damage in zip(names, measured, strict=True)},
        )

    def settle(self, keeps: Mapping[str, int], state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Allocation:
        """Meet the limit with the weights that ADMM ended with.

        Which units go decides how many columns, removed earlier, go with them; units whose norms changed places since
        the counts were chosen can leave the network a little too large or too small. Then counts change by a few.
        """
        constraints = self._constraints(masks)
        model = FootprintModel(self.footprint, constraints, state, masks, self._network.coupling.groups)
        start = [keeps[constraint.name] for constraint in constraints]
        size = self._exact(constraints, start, state, masks)
        if not (1 - TOLERANCE) * self.limit <= size <= self.limit:
            start, size = self._fit(model, constraints, neutral(model.alive), start, state, masks)
        names = [constraint.name for constraint in constraints]
        alive = dict(zip(names, model.alive, strict=True))
        return Allocation(dict(zip(names, start, strict=True)), alive, size, {})

    def plan(self, keeps: Mapping[str, int], masks: Mapping[str, Tensor]) -> RoundPlan:
        """The round with these counts."""
        return plan_round(self._config, self._network, masks, keeps)

    def record(self, allocation: Allocation, planned: float) -> dict[str, Any]:
        """What `pruning.json` says about the target."""
        return {
            "measure": self._target.measure,
            "unit": self.footprint.unit,
            "dense": self.dense,
            "limit": self.limit,
            "planned": planned,
            "reached": allocation.size,
            "used": allocation.size / self.limit,
            "met": self.met(allocation.size),
        }

    def met(self, size: float) -> bool:
        """At most the limit, and at least 98 % of it."""
        return (1 - TOLERANCE) * self.limit <= size <= self.limit

    def describe(self, size: float) -> str:
        """One line about a size."""
        share = size / self.limit
        remark = "" if self.met(size) else "; the layers' units are too large for a closer fit"
        return (
            f"target {self._target.measure}: {size:.6g} of {self.limit:.6g} {self.footprint.unit} ({share:.1%}), "
            f"{self.dense / size:.2f}x less than dense{remark}"
        )

    def _constraints(self, masks: Mapping[str, Tensor]) -> tuple[Constraint, ...]:
        return plan_round(self._config, self._network, masks, {}).constraints

    def _fit(
        self,
        model: FootprintModel,
        constraints: Sequence[Constraint],
        damages: Sequence[Damage],
        start: Sequence[int],
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> tuple[list[int], float]:
        choices = [
            Choices(alive, max(1, round(alive * self._target.least_kept)), self._config.multiple)
            for alive in model.alive
        ]
        goal = self.limit
        for _ in range(_ATTEMPTS):
            keeps = allocate(model, damages, choices, start, goal)
            if keeps is None:
                least = model.total([choice.lowest for choice in choices])
                raise UserError(
                    f"target {self._target.measure}: {self.limit:.6g} {self.footprint.unit} cannot be met by removing "
                    f"{self._config.structure}s, {least:.6g} is the least: raise the limit, or allow more "
                    "(first_layer, linear, least_kept, multiple)"
                )
            size = self._exact(constraints, keeps, state, masks)
            if size <= self.limit:
                return keeps, size
            goal *= self.limit / size * (1 - 1e-6)
        raise InvariantError(f"target {self._target.measure}: no choice of units ended below {self.limit:.6g}")

    def _exact(
        self,
        constraints: Sequence[Constraint],
        keeps: Sequence[int],
        state: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
    ) -> float:
        pruned = [with_keep(constraint, keep) for constraint, keep in zip(constraints, keeps, strict=True)]
        return self.footprint.total(masks_after(pruned, state, masks, self._network.coupling.groups))


def masks_after(
    constraints: Sequence[Constraint],
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    groups: Sequence[CoupledGroup],
) -> dict[str, Tensor]:
    """All masks after a hard prune of `state`, which is not modified, in a network of `groups`."""
    found = dict(masks)
    for name, mask in all_supports(constraints, state, masks, groups):
        found[name] = found[name] & mask if name in found else mask
    return found


def neutral(alive: Sequence[int]) -> list[Damage]:
    """Damage that depends on the halvings alone: every layer is as sensitive as the others."""
    return [Damage(units, (0.0,), (0.0,), 1.0) for units in alive]


def measured_damages(
    model: nn.Module, batches: Callable[[], Iterator[Tensor]], masks: Mapping[str, Tensor], reporter: Reporter
) -> Callable[[Sequence[Constraint], Sequence[int]], list[Damage]]:
    """A `damages` argument of `Budget.allocate` that tries the network on images."""

    def measure(constraints: Sequence[Constraint], alive: Sequence[int]) -> list[Damage]:
        trials = sum(len(trial_counts(units)) for units in alive)
        with reporter.task("train: sensitivity", trials) as task:
            return measure_damage(model, batches, constraints, alive, masks, task)

    return measure


def dry_run(
    rounds: Sequence[RoundConfig],
    network: Network,
    graph: Graph,
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
) -> list[str]:
    """Plan all rounds on the initial weights and masks, so that a mistake in the last is found before the first epoch.

    Returns:
        What a person should know: layers that a pattern names and that stay whole all the same.

    Raises:
        UserError: a pattern names no layer, a target cannot be met, or a round has nothing to prune.
    """
    notes = []
    for number, config in enumerate(rounds, start=1):
        if config.target is None:
            plan = plan_round(config, network, masks)
            notes += _left_whole(number, config, plan)
        else:
            budget = Budget(config, network, graph)
            plan = budget.plan(budget.allocate(state, masks, lambda _, alive: neutral(alive)).keeps, masks)
        masks = masks_after(plan.constraints, state, masks, network.coupling.groups)
    return notes


def _left_whole(number: int, config: RoundConfig, plan: RoundPlan) -> list[str]:
    rates = config.sparsity.values() if isinstance(config.sparsity, Mapping) else [config.sparsity or 0.0]
    if not plan.constraints and max(rates) > 0:
        told = [entry for entry in plan.unpruned if entry.reason != NOT_NAMED]
        reasons = "; ".join(f"{', '.join(entry.layers)}: {entry.reason}" for entry in told[:4])
        raise UserError(
            f"round {number} ({config.structure}) has nothing to prune ({reasons or 'there is no such layer'}): "
            "name other layers, or take the round out"
        )
    if not isinstance(config.sparsity, Mapping):
        return []
    named = [entry for entry in plan.unpruned if entry.reason != NOT_NAMED]
    return [f"round {number}: {', '.join(entry.layers)} stays whole: {entry.reason}" for entry in named]


def as_toml(rates: Mapping[str, float]) -> str:
    """Rates as a line that takes the place of `target` in a configuration."""
    return f"sparsity = {{ {', '.join(f'{json.dumps(name)} = {rate}' for name, rate in rates.items())} }}"
