"""What pruning was to reach, and what kernels really compute, in words for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results.device_figures import network_samples
from results.figures import milliseconds, times
from results.statistics import spread

_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3}


def computed_macs(build: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    """The multiply-accumulates of both networks' kernels: where few columns are gone, these are computed as zeros."""
    dense, pruned = (int(build["networks"][name]["macs"]) for name in ("baseline", "pruned"))
    left = int(export["macs"]["pruned"])
    besides = "" if pruned == left else f"; {times(pruned / left)} what is left of the pruned network"
    reduction = f" ({times(dense / pruned)} fewer)" if pruned else ""
    return f"{dense:,} multiply-accumulates by the baseline's kernels, {pruned:,} by the pruned{reduction}{besides}"


def budgets(train: Mapping[str, Any], measurement: Mapping[str, Any]) -> dict[str, str]:
    """The last round's budget of each measure; a latency is held against the measured one.

    Args:
        train: what `pruning.json` holds.
        measurement: what `measurement.json` holds.
    """
    targets = [entry["target"] for entry in train.get("rounds", []) if entry.get("target")]
    return {f"Budget of {target['measure']}": _budget(target, measurement) for target in targets}


def _budget(target: Mapping[str, Any], measurement: Mapping[str, Any]) -> str:
    if target["measure"] != "latency":
        return f"at most {target['limit']:,.0f}; reached {target['reached']:,.0f}"
    unit = str(target["unit"])
    told = f"at most {target['limit']:g} {unit}; {target['reached']:g} {unit} by the table of costs"
    if unit not in _MS:
        return told  # of multiply-accumulates, say
    limit_ms = float(target["limit"]) * _MS[unit]
    median_ms = spread(network_samples(measurement)[1], "pruned").median
    verdict = "kept" if median_ms <= limit_ms else f"missed by {100 * (median_ms / limit_ms - 1):.0f} %"
    return f"{told}, {milliseconds(median_ms)} measured on this device: {verdict}"
