"""Masks: which weights are gone for good, and how training is kept from bringing them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from structadmm.errors import InvariantError
from structadmm.graph import CoupledGroup
from train import foreach
from train.constraint import Constraint, GroupConstraint, project_all
from train.unread import unread_supports


@torch.no_grad()
def hard_prune(
    model: nn.Module,
    constraints: Sequence[Constraint],
    masks: Mapping[str, Tensor],
    groups: Sequence[CoupledGroup] = (),
) -> dict[str, Tensor]:
    """Replace the weights by their projection and return all masks, old ones included.

    A group's dead units lose their affine parameters, biases and consumers' channels, too: their output is exactly zero
    and nothing reads it, so that removing them later changes nothing. So do units that lost their last reader.

    Args:
        model: its parameters and buffers are modified in place.
        constraints: of the round.
        masks: supports from earlier rounds, by parameter name.
        groups: of the network, whose units go when nothing reads them any more.
    """
    pruned = dict(masks)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    for name, mask in all_supports(constraints, {**parameters, **buffers}, masks, groups):
        if name in buffers:
            # Running statistics of a dead filter: a BatchNorm without affine parameters would emit -mean / std.
            # Batches of zeros keep them at zero, so they need no mask.
            buffers[name].masked_fill_(~mask, 0.0)
            continue
        pruned[name] = pruned[name] & mask if name in pruned else mask
        parameters[name].masked_fill_(~pruned[name], 0.0)
    return pruned


@torch.no_grad()
def removal_supports(
    constraints: Sequence[Constraint], state: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> list[tuple[str, Tensor]]:
    """What a hard prune leaves of each tensor of the model that loses something: (name, bool mask), names may repeat.

    Args:
        constraints: of the round.
        state: the model's parameters and buffers by name; not modified.
        masks: supports from earlier rounds, by parameter name.
    """
    constrained = {name: state[name].detach() for constraint in constraints for name in constraint.parameters}
    projections, kept = project_all(constraints, constrained, masks)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    supports = [(name, projection.mask) for name, projection in projections.items()]
    for constraint, units in zip(constraints, kept, strict=True):
        if isinstance(constraint, GroupConstraint):
            if units is None:
                raise InvariantError(f"the projection of group {constraint.name} does not say which units it keeps")
            supports.extend(constraint.removal_masks(shapes, units).items())
    return supports


@torch.no_grad()
def all_supports(
    constraints: Sequence[Constraint],
    state: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    groups: Sequence[CoupledGroup],
) -> list[tuple[str, Tensor]]:
    """As `removal_supports`, and what then has no reader among `groups`."""
    supports = removal_supports(constraints, state, masks)
    after = dict(masks)
    for name, mask in supports:
        after[name] = after[name] & mask if name in after else mask
    shapes = {name: tensor.shape for name, tensor in state.items()}
    return supports + list(unread_supports(groups, shapes, after).items())


class MaskedTraining:
    """Keeps masked parameters at zero through any optimizer that leaves a zero with no gradient and no state alone.

    Such are SGD with momentum and weight decay, Adam and AdamW: a masked weight is zero, so its weight decay is zero,
    and its momentum is zero from the start, because every phase begins with a fresh optimizer.

    Args:
        parameters: of the model by name.
        masks: bool, by parameter name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]) -> None:
        self._parameters = {name: parameters[name] for name in masks}
        self._factors = {name: mask.to(parameters[name].dtype) for name, mask in masks.items()}
        self._masks = dict(masks)

    def mask_gradients(self) -> None:
        """Zero the gradient of every masked weight; called between the last addition to the gradients and the step."""
        gradients = {name: parameter.grad for name, parameter in self._parameters.items()}
        trained = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if trained:
            foreach.multiply_(list(trained.values()), [self._factors[name] for name in trained])

    @torch.no_grad()
    def check(self) -> None:
        """Prove that no masked weight has come back.

        Raises:
            InvariantError: one has; names it.
        """
        for name, mask in self._masks.items():
            revived = int(torch.count_nonzero(self._parameters[name].masked_fill(mask, 0.0)))
            if revived:
                raise InvariantError(f"{revived} masked weights of {name} are no longer zero")
