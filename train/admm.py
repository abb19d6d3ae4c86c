"""The ADMM state of one round in scaled form (StructADMM, arXiv 1807.11091; Boyd et al. 2011, section 3.1.1).

Minimise f(W) subject to W in S through

    W <- argmin f(W) + sum_l rho_l / 2 ||W_l - Z_l + U_l||_F^2      by the training loop's optimizer
    Z <- projection of W + U onto S
    U <- U + W - Z
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from train import foreach
from train.constraint import Constraint, project_all


@dataclass(frozen=True)
class Residual:
    """How far the weights of one constraint are from convergence.

    Attributes:
        primal: ||W - Z|| / ||W||.
        dual: rho * ||Z - Z_prev||.
    """

    primal: float
    dual: float


class Admm:
    """Z, U and rho of every constrained weight of a round.

    Args:
        weights: all constrained weights by name; written only by `at_loss_point`, which restores them.
        constraints: what Z satisfies.
        masks: supports from earlier rounds; Z and U are zero outside of them.
        rho: penalty weight by name.
        removed_only: penalise what Z removes and leave the rest of W to the loss alone. Within the support of Z the
            projection changes nothing, so that the best Z there is W + U: this is the same penalty with that part of Z
            minimised at every step instead of at every update. Otherwise it holds W at its last place there.
        at_projection: the loss is taken at the projection of W (`at_loss_point`), with `removed_only`. What Z removes
            then settles where the loss's gradient there and the penalty balance, W = -gradient / rho. That is what U
            converges to for these weights (rho U = -gradient wherever the W-step is exact), so W carries the dual
            itself and U stays zero: W + U ranks units that stay by their weights, the others by their gradient.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        constraints: Sequence[Constraint],
        masks: Mapping[str, Tensor],
        rho: Mapping[str, float],
        removed_only: bool = False,
        at_projection: bool = False,
    ) -> None:
        self._removed_only = removed_only
        self._at_projection = at_projection
        self._constraints = tuple(constraints)
        self._masks = masks
        self._names = tuple(dict.fromkeys(name for constraint in constraints for name in constraint.parameters))
        self._weights = [weights[name] for name in self._names]
        self._rho = [rho[name] for name in self._names]
        self._U = [torch.zeros_like(weight) for weight in self._weights]
        self._Z = self._projected()

    @property
    def rho(self) -> dict[str, float]:
        """Current penalty weights by name."""
        return dict(zip(self._names, self._rho, strict=True))

    def state(self) -> dict[str, Tensor]:
        """Z, U and what Z removes, as `Z.NAME`, `U.NAME` and `removed.NAME`; with `rho` all a checkpoint needs."""
        Z = {f"Z.{name}": value for name, value in zip(self._names, self._Z, strict=True)}
        U = {f"U.{name}": value for name, value in zip(self._names, self._U, strict=True)}
        removed = {f"removed.{name}": value for name, value in zip(self._names, self._removed, strict=True)}
        return Z | U | removed

    def load_state(self, state: Mapping[str, Tensor], rho: Mapping[str, float]) -> None:
        """Restore what `state` and `rho` gave."""
        for name, Z, U in zip(self._names, self._Z, self._U, strict=True):
            Z.copy_(state[f"Z.{name}"])
            U.copy_(state[f"U.{name}"])
        for name, removed in zip(self._names, self._removed, strict=True):
            removed.copy_(state[f"removed.{name}"])
        self._rho = [rho[name] for name in self._names]

    @torch.no_grad()
    def penalty(self) -> float:
        """The regulariser sum_l rho_l / 2 ||W_l - Z_l + U_l||_F^2, with its square."""
        total = 0.0
        for weight, Z, U, removed, rho in zip(self._weights, self._Z, self._U, self._removed, self._rho, strict=True):
            difference = (weight - Z + U).double()
            if self._removed_only:
                difference = difference * removed
            total += rho / 2 * float(difference.square().sum())
        return total

    @torch.no_grad()
    def add_penalty_gradient(self) -> None:
        """Add the penalty's gradient, rho (W - Z + U), to the `grad` of each weight.

        The same as adding the penalty to the loss, without a second graph: a few fused passes over the weights. Weight
        decay is the optimizer's and acts on W beside this, as part of f.
        """
        difference = foreach.subtract(self._weights, self._Z)
        foreach.add_(difference, self._U)
        foreach.multiply_(difference, self._rho)
        if self._removed_only:
            foreach.multiply_(difference, self._removed)
        for weight in self._weights:
            if weight.grad is None:  # the loss does not depend on it
                weight.grad = torch.zeros_like(weight)
        foreach.add_([weight.grad for weight in self._weights if weight.grad is not None], difference)

    @contextmanager
    def at_loss_point(self) -> Iterator[None]:
        """While open, the weights are where the loss is taken: at W, or at its projection onto the support of Z."""
        if not self._at_projection:
            yield
            return
        with torch.no_grad():
            carried = foreach.multiply(self._weights, self._removed)
            foreach.subtract_(self._weights, carried)
        try:
            yield
        finally:
            with torch.no_grad():
                foreach.add_(self._weights, carried)  # exact: one of the two is zero

    @torch.no_grad()
    def update(
        self, rho_growth: float, rho_max: float, constraints: Sequence[Constraint] | None = None
    ) -> dict[str, Residual]:
        """Do the Z-step and the U-step, then multiply rho, and return each constraint's residuals at the old rho.

        U is the dual divided by rho, so a greater rho means a smaller U for the same dual.

        Args:
            rho_growth: factor on rho.
            rho_max: rho grows no further than this.
            constraints: what Z satisfies from now on, of the same weights; by default what it satisfied before.
        """
        previous = self._Z
        if constraints is not None:
            self._constraints = tuple(constraints)
        self._Z = self._projected()
        gap = foreach.subtract(self._weights, self._Z)
        if not self._at_projection:
            foreach.add_(self._U, gap)
        # One transfer for all layers: on a GPU each float() waits for the queue.
        gaps, sizes, moves = (
            foreach.norms(values).tolist() for values in (gap, self._weights, foreach.subtract(self._Z, previous))
        )
        place = {name: i for i, name in enumerate(self._names)}
        residuals = {}
        for constraint in self._constraints:
            own = [place[name] for name in constraint.parameters]
            size = math.hypot(*(sizes[i] for i in own))
            residuals[constraint.name] = Residual(
                primal=math.hypot(*(gaps[i] for i in own)) / size if size > 0 else 0.0,
                dual=math.hypot(*(self._rho[i] * moves[i] for i in own)),
            )
        grown = [max(rho, min(rho * rho_growth, rho_max)) for rho in self._rho]
        foreach.multiply_(self._U, [old / new for old, new in zip(self._rho, grown, strict=True)])
        self._rho = grown
        return residuals

    @torch.no_grad()
    def _projected(self) -> list[Tensor]:
        named = {name: weight + U for name, weight, U in zip(self._names, self._weights, self._U, strict=True)}
        projections = project_all(self._constraints, named, self._masks).projections
        # As floats, so that the penalty's gradient is one product.
        self._removed = [(~projections[name].mask).to(named[name].dtype) for name in self._names]
        return [projections[name].tensor for name in self._names]
