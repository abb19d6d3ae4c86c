"""A few budgets of full-size networks; `python -m tests.full_size_budgets` has all of them."""

from __future__ import annotations

import pytest

from tests.full_size_budgets import Case, full_size, run


@pytest.mark.parametrize(
    "case",
    [Case("resnet50", "channel", "macs", 4.0), Case("alexnet", "column", "conv_params", 15.0)],
    ids=lambda case: case.network,
)
def test_a_budget_of_a_full_size_network_is_met_within_two_percent_and_never_exceeded(case: Case) -> None:
    outcome = run(case, *full_size(case.network))
    assert not outcome.refused
    assert outcome.right
    assert 0.98 * outcome.limit <= outcome.counted <= outcome.limit
