"""Schedules as JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin, get_type_hints

from structadmm.errors import UserError
from tvm_build.kernels import Schedule
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.winograd import TransformSchedule

_KINDS = {kind.__name__: kind for kind in (ConvSchedule, DenseSchedule, FlatSchedule, MeanSchedule, TransformSchedule)}
_HINTS = {kind: get_type_hints(kind) for kind in _KINDS.values()}


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule with all of its fields, the default ones too: defaults may change."""
    return {"kind": type(schedule).__name__, **asdict(schedule)}


def schedule_line(described: dict[str, Any]) -> str:
    """The canonical line of a description: equal lines, equal schedules."""
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def read_schedule(described: dict[str, Any]) -> Schedule:
    """The schedule that was described.

    Raises:
        UserError: it is of a kind, or has a field or a value, that this version does not know.
    """
    values = dict(described)
    kind = _KINDS.get(str(values.pop("kind", None)))
    if kind is None:
        raise UserError(f"unknown schedule {described.get('kind')!r}: expected one of {', '.join(_KINDS)}")
    hints = _HINTS[kind]
    for name, value in values.items():
        if name not in hints:
            raise UserError(f"{kind.__name__} has no field {name!r} in this version")
        if not _is_possible(name, value, hints[name]):
            raise UserError(f"{kind.__name__}.{name}: got {value!r}, which is no value of it")
    return kind(**values)


def _is_possible(name: str, value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if type(value) is not hint:
        return False
    return value in (4, 8, 16) if name == "lanes" else hint is not int or value >= 1
