"""What a tuning database holds, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm_build.explain import describe
from tvm_build.gpu import gpu_by_name
from tvm_build.ops import Conv2d
from tvm_build.precision import precision_by_name
from tvm_build.tuning.database import UNTUNED, TrialRecord, read_database, usable_records
from tvm_build.tuning.schedules import read_schedule
from tvm_build.tuning.task_key import read_operator
from tvm_build.tuning.tuned import TunedSchedules
from tvm_build.winograd import fastest_form, form_name, measured_forms_us


def summarize(path: Path) -> list[dict[str, Any]]:
    """One row for each device, number type and launch, in the order of their first trials.

    `schedule` and `best_ms` are of the fastest that was tried alone. `settled` is what took the least in the newest
    comparison within a network that had this launch, whichever network that was of, with its median `settled_ms`;
    "untuned" where the untuned network won. Of a convolution that was also measured in Winograd's form, `forms_ms` has
    the milliseconds of each form, and `form` the one that is compiled.

    Raises:
        UserError: the database is absent or malformed.
    """
    groups: dict[tuple[str, ...], list[TrialRecord]] = {}
    contests: dict[tuple[str, ...], list[TrialRecord]] = {}
    by_device: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in usable_records(read_database(path)):
        (contests if record.contest else groups).setdefault(record.identity[:4], []).append(record)
        by_device.setdefault(record.identity[:3], []).append(record)
    measured = {
        key: TunedSchedules(records, path.name, gpu_by_name(key[1]), precision_by_name(key[2]))
        for key, records in by_device.items()
    }
    rows = []
    for key, records in groups.items():
        device, target, dtype, _ = key
        successes = [(record.cost_ms, record) for record in records if record.cost_ms is not None]
        best_ms, best = min(successes, key=lambda item: item[0], default=(None, None))
        forms_ms = _forms_ms(records[0].task, dtype, measured[device, target, dtype])
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
                **_settled(contests.get(key, ())),
                "form": form_name(fastest_form(forms_ms)) if forms_ms else None,
                "forms_ms": {form_name(tile): ms for tile, ms in forms_ms.items()},
            }
        )
    return rows


def _settled(records: Sequence[TrialRecord]) -> dict[str, Any]:
    newest = max((record.contest for record in records), default="")
    times = [(record.cost_ms, record) for record in records if record.contest == newest and record.cost_ms is not None]
    best_ms, best = min(times, key=lambda item: item[0], default=(None, None))
    words = "" if best is None else "untuned" if newest.endswith(UNTUNED) else describe(read_schedule(best.schedule))
    return {"settled": words, "settled_ms": best_ms}


def _forms_ms(task: dict[str, Any], dtype: str, tuned: TunedSchedules) -> dict[int | None, float]:
    """Milliseconds by m of F(m, 3), None for the direct form; empty where there is no choice."""
    op = read_operator(task)
    times_us = measured_forms_us(op, precision_by_name(dtype), tuned) if isinstance(op, Conv2d) else {}
    return {form: us / 1e3 for form, us in times_us.items()} if len(times_us) > 1 else {}


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
        if "filter_sets" in task:
            words.append(f"{task['filter_sets']} sets of filters")
        words += [word for word, key in (("residual", "has_residual"), ("shortcut", "shortcut")) if task.get(key)]
    elif name in ("WinogradInput", "WinogradOutput"):
        side = "to" if name == "WinogradInput" else "from"
        size = "in" if name == "WinogradInput" else "out"
        words = [f"{side} tiles of F({task['tile']}, 3), {task['channels']} channels"]
        words.append(f"{task[f'{size}_height']}x{task[f'{size}_width']}")
        words += ["residual"] if task.get("has_residual") else []
    elif name == "Dense":
        words = [f"Dense {task['in_features']} to {task['out_features']}"]
    elif name == "GlobalAverage":
        words = [f"GlobalAverage of {task['channels']} channels, {task['height']}x{task['width']}"]
    return ", ".join(words)
