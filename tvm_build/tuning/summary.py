"""What a tuning database holds, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvm_build.explain import describe
from tvm_build.tuning.database import TrialRecord, read_database
from tvm_build.tuning.schedules import read_schedule


def summarize(path: Path) -> list[dict[str, Any]]:
    """One row for each device, number type and layer, in the order of their first trials.

    Raises:
        UserError: the database is absent or malformed.
    """
    groups: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in read_database(path):
        groups.setdefault(record.identity[:4], []).append(record)
    rows = []
    for (device, target, dtype, _), records in groups.items():
        successes = [(record.cost_ms, record) for record in records if record.cost_ms is not None]
        best_ms, best = min(successes, key=lambda item: item[0], default=(None, None))
        rows.append(
            {
                "device": device,
                "target": target,
                "dtype": dtype,
                "layer": layer_words(records[0].task),
                "trials": len(records),
                "failed": len(records) - len(successes),
                "best_ms": best_ms,
                "schedule": "" if best is None else describe(read_schedule(best.schedule)),
            }
        )
    return rows


def layer_words(task: dict[str, Any]) -> str:
    """A task in words, such as `Conv2d 64 to 128 channels, 3x3, 32x32, residual`."""
    name = str(task.get("operator"))
    words = [name]
    if name == "Conv2d":
        words = [f"Conv2d {task['in_channels']} to {task['out_channels']} channels"]
        words.append("x".join(map(str, task["kernel"])))
        words.append(f"{task['in_height']}x{task['in_width']}")
        if task.get("stride", [1, 1]) != [1, 1]:
            words.append(f"stride {task['stride'][0]}")
        if task.get("groups", 1) != 1:
            words.append(f"{task['groups']} groups")
        if "columns" in task:
            words.append(f"{task['columns']['kept']} columns kept")
        words += [word for word, key in (("residual", "has_residual"), ("shortcut", "shortcut")) if task.get(key)]
    elif name == "Dense":
        words = [f"Dense {task['in_features']} to {task['out_features']}"]
    elif name == "GlobalAverage":
        words = [f"GlobalAverage of {task['channels']} channels, {task['height']}x{task['width']}"]
    return ", ".join(words)
