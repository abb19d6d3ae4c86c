"""Launches of two profiles put together by layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from results.report_data import LayerTime
from tvm_build.launch_names import layer_of


def match_layer_times(baseline: Sequence[dict[str, Any]], pruned: Sequence[dict[str, Any]]) -> list[LayerTime]:
    """Sum each network's launches by layer.

    Args:
        baseline: launches of the unpruned network's profile, in launch order, each with `layer` and `median_ms`.
        pruned: likewise, of the pruned network.

    Returns:
        One entry per layer, in the baseline's order; layers that only the pruned network has come last.
    """
    before, after = _by_layer(baseline), _by_layer(pruned)
    names = [*before, *(name for name in after if name not in before)]
    return [LayerTime(name, before.get(name), after.get(name)) for name in names]


def _by_layer(launches: Iterable[dict[str, Any]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for launch in launches:
        layer = layer_of(launch["layer"])
        totals[layer] = totals.get(layer, 0.0) + float(launch["median_ms"])
    return totals
