from __future__ import annotations

from typing import Any

import pytest

from results.stage import _pruned_correct
from structadmm.errors import InvariantError

TRAINED = {"pruned_correct": 350, "test_images": 360}


def exported(emptied: dict[str, list[int]], images: int = 360) -> dict[str, Any]:
    return {"purified": {"emptied": emptied, "test": {"correct": 340, "images": images}}}


def test_the_accuracy_told_is_of_the_exported_network() -> None:
    assert _pruned_correct(TRAINED, {"purified": None}) == 350
    assert _pruned_correct(TRAINED, exported({})) == 350
    assert _pruned_correct(TRAINED, exported({"conv": [1]})) == 340


def test_accuracies_of_different_test_sets_are_not_set_side_by_side() -> None:
    with pytest.raises(InvariantError, match="100 images"):
        _pruned_correct(TRAINED, exported({"conv": [1]}, images=100))
