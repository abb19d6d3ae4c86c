"""Progressive pruning: from the rounds of a configuration to phases of training, and to constraints on weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from structadmm.graph import AxisSlice, CoupledGroup
from train.budget import Rates, first_match, keep_count
from train.config import DistillConfig, MixConfig, RoundConfig, Schedule, TrainConfig
from train.constraint import Constraint, GroupConstraint, LayerConstraint, with_keep
from train.layers import ConvLayer, Network, layer_name
from train.project import column_units
from train.unread import living_units

PhaseKind = Literal["dense", "admm", "retrain"]

NOT_NAMED = "no pattern names it"
_FIXED = "its weights are not trained (requires_grad is False)"


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs with one objective, one optimizer and one learning rate schedule.

    Attributes:
        kind: what is minimised.
        round: index of the round, -1 for the dense network.
        epochs: how many.
        lr: its highest learning rate.
        schedule: the learning rate's course.
        warmup_epochs: linear rise from 0 at the start.
        restart_every: epochs after which the schedule starts again.
    """

    kind: PhaseKind
    round: int
    epochs: int
    lr: float
    schedule: Schedule
    warmup_epochs: float
    restart_every: int


def distilled(config: TrainConfig, phase: Phase) -> DistillConfig | None:
    """How `phase` distils from the dense network; None if it does not."""
    section = config.distill
    if section is None or phase.kind == "dense":
        return None
    return section if section.phases == "all" or _is_last(config, phase) else None


def mixed(config: TrainConfig, phase: Phase) -> MixConfig | None:
    """How `phase` blends its images; None if it does not."""
    section = config.mix
    return section if section is not None and (section.phases == "all" or _is_last(config, phase)) else None


def _is_last(config: TrainConfig, phase: Phase) -> bool:
    return phase.kind == "retrain" and phase.round == len(config.rounds) - 1


def phases(config: TrainConfig) -> tuple[Phase, ...]:
    """The phases of a run, in order: dense, then ADMM and masked retraining for each round."""
    dense = config.dense
    found = [Phase("dense", -1, dense.epochs, dense.lr, dense.schedule, dense.warmup_epochs, max(1, dense.epochs))]
    for index, entry in enumerate(config.rounds):
        found.append(Phase("admm", index, entry.admm_epochs, entry.lr, entry.schedule, 0.0, entry.update_every))
        length = max(1, entry.retrain_epochs)
        found.append(
            Phase("retrain", index, entry.retrain_epochs, entry.retrain_lr, entry.retrain_schedule, 0.0, length)
        )
    return tuple(found)


@dataclass(frozen=True)
class Unpruned:
    """A layer, or a group of layers, that a round leaves as it is, and why."""

    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class RoundPlan:
    """What a round does to the network.

    Attributes:
        constraints: one per layer or group that loses something.
        units: for each constraint by name, how many units are alive before and after.
        unpruned: everything else.
    """

    constraints: tuple[Constraint, ...]
    units: dict[str, tuple[int, int]]
    unpruned: tuple[Unpruned, ...]

    def ramped(self, progress: float) -> tuple[Constraint, ...]:
        """The constraints with part of their units still to be removed.

        A cubic schedule takes most at first, where there is most to take (Zhu and Gupta, 1710.01878).

        Args:
            progress: 1 or more gives the round's own constraints.
        """
        left = (1 - min(1.0, progress)) ** 3
        found = []
        for constraint in self.constraints:
            alive, keep = self.units[constraint.name]
            found.append(with_keep(constraint, keep + round((alive - keep) * left)))
        return tuple(found)

    def rho(self, config: RoundConfig) -> dict[str, float]:
        """The initial penalty weight of each constrained weight."""
        names = [name for constraint in self.constraints for name in constraint.parameters]
        return {name: first_match(config.rho_layers, layer_name(name)) or config.rho for name in names}


def plan_round(
    config: RoundConfig, network: Network, masks: Mapping[str, Tensor], keeps: Mapping[str, int] | None = None
) -> RoundPlan:
    """Decide how many units of what the round keeps.

    Args:
        config: of the round.
        network: what is pruned.
        masks: supports from earlier rounds; sparsity counts what they leave.
        keeps: of a round with a target: units by constraint name. What is not listed keeps a single one, so that an
            empty mapping gives all constraints that the round can have.

    Raises:
        UserError: a pattern in `sparsity` or `rho_layers` names no layer, or coupled layers are given different rates.
    """
    if config.structure in ("filter", "channel"):
        return _plan_groups(config, network, masks, keeps)
    return _plan_layers(config, network, masks, keeps)


def _plan_layers(
    config: RoundConfig, network: Network, masks: Mapping[str, Tensor], keeps: Mapping[str, int] | None
) -> RoundPlan:
    layers = network.layers
    rates = Rates(_rates_of(config), [layer.name for layer in layers])
    Rates(config.rho_layers, [layer.name for layer in layers])
    constraints: list[Constraint] = []
    units: dict[str, tuple[int, int]] = {}
    unpruned = []
    for position, layer in enumerate(layers):
        rate = rates.of_layer(layer.name)
        reason = None
        if rate is None:
            reason = NOT_NAMED
        elif layer.parameter not in network.trainable:
            reason = _FIXED
        elif config.structure == "column" and layer.transposed:
            reason = "columns of a transposed convolution are not contiguous"
        elif config.structure == "column" and layer.groups != 1:
            reason = "columns of a grouped convolution differ from group to group"
        elif config.structure == "column" and len(layer.shape) != 4:
            reason = "columns are those of two-dimensional convolutions"
        elif position == 0 and rates.uniform and not config.first_layer:
            reason = "first layer (first_layer = true prunes it)"
        if rate is None or reason is not None:
            unpruned.append(Unpruned((layer.name,), reason or ""))
            continue
        if config.structure == "column":
            alive = _alive_columns(layer, masks.get(layer.parameter), config.block)
            keep = keep_count(alive, rate) if keeps is None else keeps.get(layer.name, 1)
            constraint = LayerConstraint(layer.name, layer.parameter, "column", keep, config.block)
        else:
            mask = masks.get(layer.parameter)
            alive = layer.params if mask is None else int(mask.sum())
            keep = keep_count(alive, rate)
            constraint = LayerConstraint(layer.name, layer.parameter, "nonstructured", keep)
        if keep >= alive:
            unpruned.append(Unpruned((layer.name,), _kept_whole(rate, alive, keeps)))
            continue
        constraints.append(constraint)
        units[layer.name] = (alive, keep)
    return RoundPlan(tuple(constraints), units, tuple(unpruned))


def _alive_columns(layer: ConvLayer, mask: Tensor | None, block: int) -> int:
    if mask is None:
        return column_units(layer.shape, block)
    columns = mask.any(dim=0)  # [I, kh, kw]
    return sum(int(columns[start : start + block].any(dim=0).sum()) for start in range(0, len(columns), block))


def _rates_of(config: RoundConfig) -> float | Mapping[str, float]:
    # A target is like a single rate: it is about all layers that are not excluded.
    return 0.0 if config.sparsity is None else config.sparsity


def _kept_whole(rate: float, alive: int, keeps: Mapping[str, int] | None, multiple: int = 1) -> str:
    if keeps is not None:
        return f"the target leaves all {alive} units"
    if (wanted := keep_count(alive, rate)) < alive:
        return f"multiple = {multiple} rounds the {wanted} units to keep up to all {alive}"
    return f"{rate:g} of {alive} units is less than one"


def _plan_groups(
    config: RoundConfig, network: Network, masks: Mapping[str, Tensor], keeps: Mapping[str, int] | None
) -> RoundPlan:
    layers, coupling, trainable = network.layers, network.coupling, network.trainable
    convolutions = {layer.parameter for layer in layers}
    first = layers[0].parameter
    producers = [part.parameter for group in coupling.groups for part in group.producers]
    names = [layer_name(name) for name in dict.fromkeys(producers) if name in convolutions or config.linear]
    rates = Rates(_rates_of(config), [*names, *(group.name for group in coupling.groups if group.producers)])
    Rates(config.rho_layers, [layer_name(part.parameter) for group in coupling.groups for part in group.slices])
    constraints: list[Constraint] = []
    units: dict[str, tuple[int, int]] = {}
    unpruned = []
    for group in coupling.groups:
        owners = tuple(dict.fromkeys(layer_name(part.parameter) for part in group.producers))
        if not owners:
            continue  # the network's input, or a constant: nothing that has filters
        rate = rates.of_group(owners, group.name)
        ranked = _ranked(config, group)
        reason = None
        if group.frozen is not None:
            reason = group.frozen
        elif rate is None:
            reason = NOT_NAMED
        elif not config.linear and not any(part.parameter in convolutions for part in group.producers):
            reason = "linear layer (linear = true prunes it)"
        elif rates.uniform and not config.first_layer and any(part.parameter == first for part in group.producers):
            reason = "shares its filters with the first layer (first_layer = true prunes them)"
        elif config.structure == "channel" and not group.consumers:
            reason = "no layer reads its channels"
        elif not ranked or any(part.parameter in network.fixed for part in ranked):
            reason = _FIXED
        if rate is None or reason is not None:
            unpruned.append(Unpruned(owners, reason or ""))
            continue
        alive = _alive_units(group, masks)
        keep = keep_count(alive, rate, config.multiple) if keeps is None else keeps.get(group.name, 1)
        if keep >= alive:
            unpruned.append(Unpruned(owners, _kept_whole(rate, alive, keeps, config.multiple)))
            continue
        members = ranked
        if config.structure == "filter":
            # BatchNorm undoes the scale of a filter, so that weights alone can shrink a thousandfold and change nothing
            # until they are cut off. A filter is gone when its gamma and beta are, too: they are projected with it.
            members += tuple(part for part in group.affine if part.parameter in trainable)
        constraints.append(GroupConstraint(group.name, group, members, keep))
        units[group.name] = (alive, keep)
    return RoundPlan(tuple(constraints), units, tuple(unpruned))


def _ranked(config: RoundConfig, group: CoupledGroup) -> tuple[AxisSlice, ...]:
    """Whose weights decide which units of a group stay: those that are trained, or could be."""
    parts = group.producers if config.structure == "filter" else group.consumers
    return tuple(part for part in parts if not part.buffer)


def _alive_units(group: CoupledGroup, masks: Mapping[str, Tensor]) -> int:
    living = living_units(group, masks)
    return group.units if living is None else int(living.sum())
