"""How much the network's predictions suffer when one layer, or one group of coupled layers, is pruned by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from structadmm.progress import Task
from train.constraint import Constraint, with_keep
from train.costs import Floats, Ints
from train.masking import removal_supports

# Kept fractions at which a layer is tried: half-halvings down to a sixteenth.
_FRACTIONS = tuple(2.0 ** (-step / 2) for step in range(1, 9))
# Of the steepest slope anywhere: a layer that seems free to prune still prefers to save more.
_LEAST_SLOPE = 1e-4


@dataclass(frozen=True)
class Damage:
    """Estimated damage as a convex function of the units kept.

    Measured points are joined as functions of the number of halvings, and every halving does at least as much damage as
    the one before. That extends the curve below the least kept count that was tried, and it keeps a network that is
    broken already from looking free to prune: predictions that are all wrong hardly change any more.

    Attributes:
        alive: units before.
        halvings: rising, from 0.
        values: the damage there, in nats per image, from 0.
        slope: of the last piece, and beyond it.
        measured: (units kept, divergence) of each trial, as they came.
    """

    alive: int
    halvings: tuple[float, ...]
    values: tuple[float, ...]
    slope: float
    measured: tuple[tuple[int, float], ...] = ()

    @staticmethod
    def of(alive: int, kept: Sequence[int], measured: Sequence[float], least_slope: float) -> Damage:
        """Join measured points.

        Args:
            alive: units before.
            kept: counts that were tried, falling, below `alive`.
            measured: the divergence at each.
            least_slope: per halving, everywhere.
        """
        halvings, values, slope = [0.0], [0.0], least_slope
        highest = 0.0
        for keep, value in zip(kept, measured, strict=True):
            step = math.log2(alive / keep) - halvings[-1]
            highest = max(highest, value)
            slope = max(slope, (highest - values[-1]) / step)
            halvings.append(halvings[-1] + step)
            values.append(values[-1] + slope * step)
        return Damage(alive, tuple(halvings), tuple(values), slope, tuple(zip(kept, measured, strict=True)))

    def at(self, keep: Ints) -> Floats:
        """The damage when `keep` units, at least one, stay."""
        halvings = np.log2(self.alive / keep)
        beyond = np.maximum(halvings - self.halvings[-1], 0.0)
        found: Floats = np.interp(halvings, self.halvings, self.values) + beyond * self.slope
        return found


def trial_counts(alive: int) -> tuple[int, ...]:
    """Kept counts to try, falling and different from each other and from `alive`."""
    counts = (max(1, round(alive * fraction)) for fraction in _FRACTIONS)
    return tuple(keep for keep, _ in itertools.groupby(counts) if keep < alive)


@torch.no_grad()
def measure_damage(
    model: nn.Module,
    batches: Callable[[], Iterator[Tensor]],
    constraints: Sequence[Constraint],
    alive: Sequence[int],
    masks: Mapping[str, Tensor],
    task: Task,
) -> list[Damage]:
    """Prune one constraint at a time to several counts and see how far the predictions move.

    What is measured is the Kullback-Leibler divergence from the network as it is, in evaluation mode: unlike the loss
    it is zero for no change, needs no labels, and does not reward a removal that is lucky on few images. Normalisation
    takes the statistics of the images: a removal that only shifts or scales what comes out of a layer does no damage
    that the first steps of retraining would not undo (EagleEye: Li et al., 2007.02491).

    Args:
        model: changed during the call, and put back.
        batches: yields normalised images that no accuracy is reported on.
        constraints: of a round; their `keep` does not matter.
        alive: units of each.
        masks: supports from earlier rounds.
        task: advanced once for each trial.
    """
    model.eval()
    measured: list[list[float]] = []
    with _statistics_of_each_batch(model):
        reference = [_log_probabilities(model, images) for images in batches()]
        state: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for constraint, units in zip(constraints, alive, strict=True):
            values = []
            for keep in trial_counts(units):
                with _pruned(state, with_keep(constraint, keep), masks):
                    values.append(_divergence(model, batches(), reference))
                task.advance(1, note=constraint.name)
            measured.append(values)
    steepest = max((value for values in measured for value in values), default=0.0)
    least = max(_LEAST_SLOPE * steepest, 1e-12)
    return [Damage.of(units, trial_counts(units), values, least) for units, values in zip(alive, measured, strict=True)]


@contextmanager
def _statistics_of_each_batch(model: nn.Module) -> Iterator[None]:
    """Let every normalisation with running statistics use those of its input instead; they are put back at the end."""

    def adopt(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].float()
        variance, mean = torch.var_mean(values, [axis for axis in range(values.ndim) if axis != 1], correction=0)
        module.running_mean.copy_(mean)  # type: ignore[operator]
        module.running_var.copy_(variance)  # type: ignore[operator]

    layers = [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    before = [(module.running_mean.clone(), module.running_var.clone()) for module in layers]  # type: ignore[operator]
    handles = [module.register_forward_pre_hook(adopt) for module in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, (mean, variance) in zip(layers, before, strict=True):
            module.running_mean.copy_(mean)  # type: ignore[operator]
            module.running_var.copy_(variance)  # type: ignore[operator]


@contextmanager
def _pruned(state: Mapping[str, Tensor], constraint: Constraint, masks: Mapping[str, Tensor]) -> Iterator[None]:
    supports = removal_supports([constraint], state, masks)
    before = {name: state[name].clone() for name, _ in supports}
    try:
        for name, mask in supports:
            state[name].masked_fill_(~mask, 0.0)
        yield
    finally:
        for name, value in before.items():
            state[name].copy_(value)


def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return functional.log_softmax(model(images).double(), dim=1)


def _divergence(model: nn.Module, batches: Iterator[Tensor], reference: Sequence[Tensor]) -> float:
    total, images = 0.0, 0
    for inputs, expected in zip(batches, reference, strict=True):
        found = _log_probabilities(model, inputs)
        total += float(functional.kl_div(found, expected, reduction="sum", log_target=True))
        images += len(inputs)
    # A layer whose removal makes activations overflow is as sensitive as can be.
    return total / images if math.isfinite(total) else 1e6
