from __future__ import annotations

import pytest
from pydantic import ValidationError

from structadmm.errors import UserError
from train.budget import Rates, keep_count
from train.config import RoundConfig, TrainConfig

LAYERS = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1"]


def test_kept_units_are_rounded_up_to_a_multiple_but_never_beyond_what_is_alive() -> None:
    assert keep_count(64, 0.7, multiple=4) == 20
    assert keep_count(64, 0.7) == 19
    assert keep_count(6, 0.1, multiple=4) == 6
    assert keep_count(3, 0.99, multiple=4) == 3
    assert keep_count(100, 0.999) == 1


def test_the_first_pattern_that_matches_a_layer_counts() -> None:
    rates = Rates({"layer1.0.conv2": 0.25, "layer1.*": 0.5}, LAYERS)
    assert [rates.of_layer(layer) for layer in LAYERS] == [None, 0.5, 0.25, None]


def test_a_pattern_that_names_no_layer_is_refused_with_near_names() -> None:
    with pytest.raises(UserError, match=r"'layer1\.0\.conv9'.*layer1\.0\.conv"):
        Rates({"layer1.0.conv9": 0.5}, LAYERS)


def test_coupled_layers_follow_the_named_one_and_conflicts_are_refused() -> None:
    rates = Rates({"layer1.0.conv2": 0.25, "conv1": 0.5}, LAYERS)
    assert rates.of_group(["layer1.0.conv2", "layer2.0.conv1"]) == 0.25
    assert rates.of_group(["layer2.0.conv1"]) is None
    with pytest.raises(UserError, match=r"layer1\.0\.conv2 = 0\.25, conv1 = 0\.5"):
        rates.of_group(["layer1.0.conv2", "conv1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsity": 1.0}, "less than 1"),
        ({"sparsity": -0.1}, "greater than or equal to 0"),
        ({"sparsity": {}}, "no layer is named"),
        ({"sparsity": {"a": 1.5}}, "less than 1"),
        ({"structure": "filter", "block": 4}, "block=4 is for columns"),
        ({"structure": "column", "multiple": 4}, "multiple=4 is for filters and channels"),
        ({"structure": "rows"}, "'filter', 'channel', 'column' or 'nonstructured'"),
        ({"rho": 0.0}, "greater than 0"),
        ({"sparcity": 0.5}, "Extra inputs"),
        ({"update_every": 0}, "greater than or equal to 1"),
        ({"ramp_epochs": 11}, "must fit in admm_epochs=10"),
        ({"update_every": 11}, "leaves admm_epochs=10 without an update"),
        ({"structure": "column", "loss_at": "projection"}, 'add penalise = "removed"'),
        ({"penalise": "removed", "loss_at": "projection"}, "no gradient to return by"),
    ],
)
def test_a_bad_round_is_refused_where_it_is_built(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RoundConfig.model_validate({"structure": "filter", "sparsity": 0.5, **changes})


def test_a_configuration_without_rounds_is_refused() -> None:
    with pytest.raises(ValidationError, match="rounds"):
        TrainConfig.model_validate({"rounds": []})
    with pytest.raises(ValidationError, match="nesterov"):
        TrainConfig.model_validate(
            {"rounds": [{"structure": "filter", "sparsity": 0.5}], "optimizer": {"momentum": 0.0}}
        )
