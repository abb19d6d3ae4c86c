from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from train.admm import Admm
from train.constraint import LayerConstraint
from train.project import project_columns


def columns(keep: int) -> LayerConstraint:
    return LayerConstraint("conv", "conv.weight", "column", keep)


def parameter(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def minimise(weight: nn.Parameter, target: Tensor, curvature: Tensor, admm: Admm) -> None:
    """The W-step of f(W) = 1/2 sum curvature (W - target)^2, by gradient descent to convergence."""
    steepest = float(curvature.max()) + max(admm.rho.values())
    for _ in range(400):
        weight.grad = curvature * (weight.detach() - target)
        admm.add_penalty_gradient()
        weight.data -= weight.grad / steepest


@pytest.mark.parametrize("removed_only", [False, True])
@pytest.mark.parametrize("growth", [1.0, 1.05])
def test_admm_converges_to_the_constrained_minimum_of_a_strongly_convex_problem(
    growth: float, removed_only: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = parameter()
    target = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    curvature = 1 + torch.rand(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    strong = torch.zeros(3, 3, 3, dtype=torch.float64)
    strong.view(-1)[torch.tensor([1, 4, 9, 13, 20])] = 1.0
    target = target * (0.2 + 4 * strong)
    # f is separable, so its minimum over a support is the target there; the best five columns cost most to remove.
    costs = (curvature * target.square()).sum(dim=0).flatten()
    best = costs.argsort(descending=True)[:5]
    assert set(best.tolist()) == {1, 4, 9, 13, 20}
    answer = torch.where(strong.bool(), target, 0.0)

    weight.data = target.clone()
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 2.0}, removed_only)
    for _ in range(60):
        minimise(weight, target, curvature, admm)
        residuals = admm.update(growth, rho_max=100.0)
    # 60 iterations contract the error by at least 1/2 each (curvature <= rho): what is left is far below 1e-6.
    assert float((weight.detach() - answer).abs().max()) < 1e-6
    assert residuals["conv"].primal < 1e-6
    assert residuals["conv"].dual < 1e-5


def test_at_the_projection_units_return_by_their_gradient_until_the_best_ones_are_kept() -> None:
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64)
    strong = torch.zeros(27, dtype=torch.float64)
    strong[[1, 4, 9, 13, 20]] = 1.0
    target = target * (0.2 + 4 * strong.view(3, 3, 3))
    # f(W) = 1/2 ||W - target||^2 is separable: its minimum over five columns keeps the longest five of the target.
    answer = target * strong.view(3, 3, 3)
    # It starts where the best columns are the shortest, so that magnitude would remove exactly those.
    weight = nn.Parameter(target * (1 - strong.view(3, 3, 3)))
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 1.0}, removed_only=True, at_projection=True)
    wrong = admm.state()["removed.conv.weight"][0].flatten()
    assert bool(wrong[strong.bool()].all())
    for _ in range(3):
        for _ in range(60):
            with admm.at_loss_point():
                weight.grad = weight.detach() - target
            admm.add_penalty_gradient()
            weight.data -= 0.3 * weight.grad
        residuals = admm.update(1.0, 1.0)
    removed = admm.state()["removed.conv.weight"]
    assert torch.equal(removed[0].flatten() == 0, strong.bool())
    # 60 steps leave 0.7^60 = 5e-10 of the way within the support, and settle the rest at -gradient / rho.
    with admm.at_loss_point():
        assert float((weight.detach() - answer).abs().max()) < 1e-8
    assert float((weight.detach() - target).abs().max()) < 1e-8
    assert not admm.state()["U.conv.weight"].any()
    assert residuals["conv"].primal > 0  # W carries the dual of what is removed


def test_the_loss_point_is_the_projection_and_gives_the_weights_back_even_after_an_error() -> None:
    weight = parameter()
    before = weight.detach().clone()
    projection = project_columns(before, 7).tensor
    for at_projection in (False, True):
        admm = Admm({"conv.weight": weight}, [columns(7)], {}, {"conv.weight": 1.0}, True, at_projection)
        with pytest.raises(KeyboardInterrupt), admm.at_loss_point():
            assert torch.equal(weight.detach(), projection if at_projection else before)
            raise KeyboardInterrupt
        assert torch.equal(weight.detach(), before)


def test_the_penalty_gradient_is_that_of_the_squared_norm() -> None:
    # Trap: norm() instead of norm()**2 has a gradient of constant length, whatever the distance.
    weight = parameter()
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.3})
    weight.data += 0.5
    admm.update(1.0, 1.0)
    state = admm.state()
    difference = weight - state["Z.conv.weight"] + state["U.conv.weight"]
    penalty = 0.15 * difference.square().sum()
    (expected,) = torch.autograd.grad(penalty, weight)
    (unsquared,) = torch.autograd.grad(0.15 * (weight - state["Z.conv.weight"] + state["U.conv.weight"]).norm(), weight)
    weight.grad = torch.full_like(weight, 7.0)
    admm.add_penalty_gradient()
    # Two float64 roundings of numbers near 1.
    torch.testing.assert_close(weight.grad - 7.0, expected, rtol=0, atol=1e-14)
    assert not torch.allclose(weight.grad - 7.0, unsquared)
    assert admm.penalty() == pytest.approx(float(penalty.detach()), rel=1e-12)


def test_penalising_what_is_removed_leaves_the_rest_to_the_loss() -> None:
    weight = parameter()
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.3}, removed_only=True)
    weight.data += 0.5
    kept = project_columns(weight.detach(), 5).mask
    admm.update(1.0, 1.0)
    weight.data += 0.25
    weight.grad = torch.zeros_like(weight)
    admm.add_penalty_gradient()
    assert not weight.grad[kept].any()
    state = admm.state()
    expected = 0.3 * (weight.detach() + state["U.conv.weight"])  # Z is zero there
    # Two float64 roundings of numbers near 1.
    torch.testing.assert_close(weight.grad[~kept], expected[~kept], rtol=0, atol=1e-14)
    assert admm.penalty() == pytest.approx(float(expected[~kept].square().sum() / 0.6), rel=1e-12)


def test_growing_rho_keeps_the_dual_by_rescaling_u() -> None:
    # Trap: the dual is rho * U; growing rho alone multiplies it, and the next W-step jumps.
    weight = parameter()
    steady = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.2})
    growing = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.2})
    weight.data *= 1.1
    steady.update(1.0, 10.0)
    growing.update(1.7, 10.0)
    assert growing.rho["conv.weight"] == pytest.approx(0.34)
    # One multiplication and one division in float64.
    torch.testing.assert_close(
        0.34 * growing.state()["U.conv.weight"], 0.2 * steady.state()["U.conv.weight"], rtol=1e-14, atol=0
    )


def test_rho_grows_no_further_than_its_maximum_and_never_shrinks() -> None:
    weight = parameter()
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.5})
    admm.update(4.0, 1.0)
    assert admm.rho == {"conv.weight": 1.0}
    large = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 3.0})
    large.update(2.0, 1.0)
    assert large.rho == {"conv.weight": 3.0}


def test_residuals_are_those_of_the_definitions() -> None:
    weight = parameter()
    admm = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.2})
    before = admm.state()["Z.conv.weight"].clone()
    weight.data = weight.data.roll(1, dims=1) + 0.1
    expected_Z = project_columns(weight.detach(), 5).tensor  # U was zero
    residual = admm.update(1.3, 1.0)["conv"]
    assert residual.primal == pytest.approx(
        float((weight.detach() - expected_Z).norm() / weight.detach().norm()), rel=1e-12
    )
    assert residual.dual == pytest.approx(0.2 * float((expected_Z - before).norm()), rel=1e-12)


def test_z_and_u_stay_zero_outside_an_existing_mask() -> None:
    weight = parameter()
    mask = project_columns(weight.detach(), 9).mask
    weight.data *= mask
    admm = Admm({"conv.weight": weight}, [columns(4)], {"conv.weight": mask}, {"conv.weight": 0.1})
    admm.update(1.3, 1.0)
    state = admm.state()
    assert not state["Z.conv.weight"][~mask].any()
    assert not state["U.conv.weight"][~mask].any()


def test_the_state_goes_on_where_it_was_saved() -> None:
    weight = parameter()
    one = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.2})
    weight.data *= 1.1
    one.update(1.3, 1.0)
    other = Admm({"conv.weight": weight}, [columns(5)], {}, {"conv.weight": 0.2})
    other.load_state({name: value.clone() for name, value in one.state().items()}, one.rho)
    weight.data *= 0.9
    assert one.update(1.3, 1.0) == other.update(1.3, 1.0)
    for name, value in one.state().items():
        assert torch.equal(value, other.state()[name])


def test_new_constraints_hold_from_the_update_that_brings_them() -> None:
    weight = parameter()
    admm = Admm({"conv.weight": weight}, [columns(20)], {}, {"conv.weight": 0.2})
    for keep in (20, 9, 5):
        Z = admm.state()["Z.conv.weight"]
        assert int(Z.any(dim=0).sum()) == keep
        if keep > 5:
            admm.update(1.0, 1.0, [columns({20: 9, 9: 5}[keep])])
    admm.update(1.0, 1.0)
    assert int(admm.state()["Z.conv.weight"].any(dim=0).sum()) == 5
