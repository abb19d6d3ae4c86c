"""What identifies a layer in a tuning database: its operator as JSON."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from typing import Any

from tvm_build.ops import Conv2d, Operator


def describe_operator(op: Operator) -> dict[str, Any]:
    """`op` as plain data; fields that have their default value are left out.

    Lists of kept columns that have equally many columns, blocks of four and taps are one task: kernels for them differ
    in the numbers of an offset table and in nothing that a schedule depends on.
    """
    described: dict[str, Any] = {"operator": type(op).__name__}
    for field in fields(op):
        value = getattr(op, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        if isinstance(value, Conv2d):
            value = describe_operator(value)
        elif field.name == "columns":
            value = _describe_columns(op)  # type: ignore[arg-type]  # only Conv2d has columns
        described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def operator_key(op: Operator) -> str:
    """`describe_operator` as one canonical line."""
    return task_line(describe_operator(op))


def task_line(described: dict[str, Any]) -> str:
    """The canonical line of a description, as it comes from a database."""
    return json.dumps(described, sort_keys=True, separators=(",", ":"))


def read_convolution(described: dict[str, Any]) -> Conv2d | None:
    """The convolution that was described; None if it is something else, or leaves out columns: which, is not told."""
    values = dict(described)
    shortcut = values.pop("shortcut", None)
    whole = values.pop("operator", None) == "Conv2d" and "columns" not in values
    if not whole or (shortcut is not None and "columns" in shortcut):
        return None
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Conv2d(**plain, shortcut=None if shortcut is None else read_convolution(shortcut))


def _describe_columns(op: Conv2d) -> dict[str, int]:
    from tvm_build.kernels.column_sparse import list_entries

    assert op.columns is not None
    return {
        "kept": len(op.columns),
        "blocks": len(list_entries(op, "blocks").offsets),
        "lanes": len(list_entries(op, "lanes").offsets),
    }
