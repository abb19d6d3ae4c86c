from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from train.project import (
    Member,
    Projection,
    column_units,
    project_channels,
    project_columns,
    project_filters,
    project_group,
    project_nonstructured,
)

# Small integers make equal norms frequent, so that ties are part of every property.
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.integers(1, 2))


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    shape = draw(SHAPES)
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        return torch.randint(-2, 3, shape, generator=generator).float()
    return torch.randn(shape, generator=generator)


def filter_supports(weight: Tensor) -> Iterator[Tensor]:
    for unit in range(weight.shape[0]):
        support = torch.zeros_like(weight, dtype=torch.bool)
        support[unit] = True
        yield support


def channel_supports(weight: Tensor) -> Iterator[Tensor]:
    for unit in range(weight.shape[1]):
        support = torch.zeros_like(weight, dtype=torch.bool)
        support[:, unit] = True
        yield support


def column_supports(weight: Tensor, block: int = 1) -> Iterator[Tensor]:
    for start, y, x in itertools.product(
        range(0, weight.shape[1], block), range(weight.shape[2]), range(weight.shape[3])
    ):
        support = torch.zeros_like(weight, dtype=torch.bool)
        support[:, start : start + block, y, x] = True
        yield support


def element_supports(weight: Tensor) -> Iterator[Tensor]:
    for element in range(weight.numel()):
        support = torch.zeros_like(weight, dtype=torch.bool)
        support.view(-1)[element] = True
        yield support


STRUCTURES: dict[str, tuple[Callable[..., Projection], Callable[[Tensor], Iterator[Tensor]]]] = {
    "filter": (project_filters, filter_supports),
    "channel": (project_channels, channel_supports),
    "column": (project_columns, column_supports),
    "column, block of 4": (
        lambda weight, keep, mask=None: project_columns(weight, keep, mask, block=4),
        lambda weight: column_supports(weight, 4),
    ),
    "nonstructured": (project_nonstructured, element_supports),
}


def nearest_by_brute_force(weight: Tensor, units: list[Tensor], keep: int) -> float:
    """Smallest squared distance to `weight` over all supports of `keep` units."""
    exact = weight.double()
    total = float(exact.square().sum())
    return min(
        total - sum(float(exact[unit].square().sum()) for unit in chosen)
        for chosen in itertools.combinations(units, keep)
    )


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(weight=weights(), data=st.data())
def test_a_projection_is_as_near_as_the_best_of_all_supports(
    structure: str, weight: Tensor, data: st.DataObject
) -> None:
    project, supports = STRUCTURES[structure]
    units = list(supports(weight))[:9]  # 9 choose 4 supports at the most
    small = torch.stack(units).any(dim=0)
    weight = weight.where(small, 0.0)
    keep = data.draw(st.integers(1, len(units)))
    projection = project(weight, keep)
    distance = float((weight - projection.tensor).double().square().sum())
    # Both are float64 sums of at most 60 squares in different orders.
    assert distance == pytest.approx(nearest_by_brute_force(weight, units, keep), rel=1e-12, abs=1e-12)
    assert sum(bool(projection.tensor[unit].any()) for unit in units) <= keep


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(weight=weights(), data=st.data())
def test_a_projection_is_idempotent_and_its_mask_is_its_support(
    structure: str, weight: Tensor, data: st.DataObject
) -> None:
    project, supports = STRUCTURES[structure]
    units = list(supports(weight))
    keep = data.draw(st.integers(1, len(units)))
    projection = project(weight, keep)
    # Exactly `keep` whole units are in the mask, whatever the ties and even where weights are zero.
    assert sum(bool(projection.mask[unit].all()) for unit in units) == keep
    assert torch.equal(projection.tensor, weight.where(projection.mask, 0.0))
    again = project(projection.tensor, keep, projection.mask)
    assert torch.equal(again.tensor, projection.tensor)
    assert torch.equal(again.mask, projection.mask)


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(weight=weights(), data=st.data())
def test_no_random_feasible_point_is_nearer_than_the_projection(
    structure: str, weight: Tensor, data: st.DataObject
) -> None:
    project, supports = STRUCTURES[structure]
    units = list(supports(weight))
    keep = data.draw(st.integers(1, len(units)))
    distance = float((weight - project(weight, keep).tensor).double().square().sum())
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    for _ in range(20):
        chosen = torch.randperm(len(units), generator=generator)[:keep].tolist()
        support = torch.stack([units[unit] for unit in chosen]).any(dim=0)
        point = (weight + torch.randn(weight.shape, generator=generator) * 0.1).where(support, 0.0)
        # The slack covers rounding of the two sums only.
        assert distance <= float((weight - point).double().square().sum()) + 1e-9


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(weight=weights(), data=st.data())
def test_what_a_mask_excludes_stays_zero_and_one_unit_always_stays(
    structure: str, weight: Tensor, data: st.DataObject
) -> None:
    project, supports = STRUCTURES[structure]
    units = list(supports(weight))
    alive = data.draw(st.lists(st.booleans(), min_size=len(units), max_size=len(units)).filter(any))
    mask = torch.stack([unit for unit, there in zip(units, alive, strict=True) if there]).any(dim=0)
    keep = data.draw(st.integers(1, len(units)))
    projection = project(weight, keep, mask)
    assert not (projection.mask & ~mask).any()
    # Norms of dead units are zero, so they must not win a tie against a living unit whose weights are zero, too.
    assert sum(bool(projection.mask[unit].any()) for unit in units) == min(keep, sum(alive)) >= 1


def test_project_filters_keeps_exactly_keep_filters_when_norms_tie() -> None:
    projection = project_filters(torch.ones(4, 3, 3, 3), keep=2)
    assert projection.tensor.flatten(1).any(dim=1).tolist() == [True, True, False, False]


def test_ties_go_to_the_lower_index_in_a_large_layer() -> None:
    # An unstable sort passes on four units by luck and fails on thousands.
    projection = project_nonstructured(torch.ones(64, 64, 3, 3), keep=1000)
    assert projection.mask.flatten()[:1000].all()
    assert int(projection.mask.sum()) == 1000


def test_column_blocks_are_aligned_and_the_last_may_be_ragged() -> None:
    weight = torch.zeros(2, 6, 1, 2)
    weight[:, 3, 0, 0] = 1.0  # in block 0
    weight[:, 5, 0, 1] = 2.0  # in block 1, which has only channels 4 and 5
    assert column_units(weight.shape, block=4) == 4
    projection = project_columns(weight, keep=2, block=4)
    assert projection.mask[:, :4, 0, 0].all()
    assert projection.mask[:, 4:, 0, 1].all()
    assert int(projection.mask.sum()) == 2 * (4 + 2)


@pytest.mark.parametrize("keep", [0, -1, 5])
def test_a_keep_out_of_range_is_refused_with_the_range_and_the_shape(keep: int) -> None:
    with pytest.raises(ValueError, match=rf"keep={keep} is outside \[1, 4\] for weight \(4, 4, 1, 1\)"):
        project_filters(torch.ones(4, 4, 1, 1), keep)
    with pytest.raises(ValueError, match=rf"keep={keep} is outside \[1, 4\]"):
        project_columns(torch.ones(4, 4, 1, 1), keep)
    with pytest.raises(ValueError, match=rf"keep={keep} is outside \[1, 4\]"):
        project_nonstructured(torch.ones(4), keep)


def test_a_group_is_ranked_by_the_joint_norm_of_its_members() -> None:
    # Alone, `left` would keep unit 0 and `right` unit 1; together unit 2 is the greatest.
    left = torch.tensor([3.0, 0.0, 2.5]).view(3, 1, 1, 1)
    right = torch.tensor([0.0, 3.0, 2.5]).view(3, 1, 1, 1)
    units = torch.arange(3).unsqueeze(1)
    (first, second), kept = project_group([Member(left, 0, units), Member(right, 0, units)], keep=1)
    assert kept.tolist() == [False, False, True]
    assert torch.equal(first.mask, second.mask)
    assert first.tensor.flatten().tolist() == [0.0, 0.0, 2.5]


def test_a_group_unit_may_own_several_slices_and_leave_others_alone() -> None:
    # As after a flatten: two columns of a linear layer per channel, behind an offset of one column that is another's.
    linear = torch.tensor([[9.0, 1.0, 1.0, 5.0, 5.0]])
    units = torch.tensor([[1, 2], [3, 4]])
    (projection,), kept = project_group([Member(linear, 1, units)], keep=1)
    assert kept.tolist() == [False, True]
    assert projection.tensor.tolist() == [[9.0, 0.0, 0.0, 5.0, 5.0]]


def test_members_with_different_numbers_of_units_are_refused() -> None:
    weight = torch.ones(4, 1, 1, 1)
    with pytest.raises(ValueError, match=r"\[4, 2\] units"):
        project_group([Member(weight, 0, torch.arange(4)[:, None]), Member(weight, 0, torch.arange(2)[:, None])], 1)
