"""Schedules as JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from structadmm.errors import UserError
from tvm_build.kernels import Schedule
from tvm_build.kernels.conv_tiling import ConvSchedule
from tvm_build.kernels.dense import DenseSchedule
from tvm_build.kernels.pointwise import FlatSchedule
from tvm_build.kernels.pool import MeanSchedule
from tvm_build.kernels.winograd import TransformSchedule

_KINDS = {kind.__name__: kind for kind in (ConvSchedule, DenseSchedule, FlatSchedule, MeanSchedule, TransformSchedule)}


def describe_schedule(schedule: Schedule) -> dict[str, Any]:
    """A schedule with all of its fields, the default ones too: defaults may change."""
    return {"kind": type(schedule).__name__, **asdict(schedule)}


def schedule_line(described: dict[str, Any]) -> str:
    """The canonical line of a description: equal lines, equal schedules."""
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def read_schedule(described: dict[str, Any]) -> Schedule:
    """The schedule that was described.

    Raises:
        UserError: it is of a kind, or has a field, that this version does not know.
    """
    values = dict(described)
    kind = _KINDS.get(str(values.pop("kind", None)))
    if kind is None:
        raise UserError(f"unknown schedule {described.get('kind')!r}: expected one of {', '.join(_KINDS)}")
    known = {field.name for field in fields(kind)}
    if strange := sorted(set(values) - known):
        raise UserError(f"{kind.__name__} has no field {strange[0]!r}: the database is of a newer version")
    for field in fields(kind):
        if field.name in values and type(values[field.name]) is not type(getattr(kind(), field.name)):
            raise UserError(f"{kind.__name__}.{field.name}: got {values[field.name]!r}: the database is damaged")
    return kind(**values)
