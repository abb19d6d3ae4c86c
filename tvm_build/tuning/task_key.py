"""What identifies a layer in a tuning database: its operator as JSON."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any, Literal

from pydantic import PositiveInt, TypeAdapter, ValidationError

from structadmm.errors import UserError
from tvm_build.ops import Conv2d, Dense, GlobalAverage, Operator, WinogradInput, WinogradOutput

_OPERATORS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in (Conv2d, Dense, GlobalAverage, WinogradInput, WinogradOutput)
}
_COLUMNS: TypeAdapter[Any] = TypeAdapter(dict[Literal["kept", "blocks", "lanes"], PositiveInt])


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


def read_operator(described: dict[str, Any]) -> Operator | None:
    """The operator that was described; None if it leaves out columns: which, is not told.

    Raises:
        UserError: it is of a kind, or has a value, that this version does not know.
    """
    op, is_sparse = _read_line(task_line(described))
    return None if is_sparse else op


@lru_cache(maxsize=1024)  # a database has many trials of one task
def _read_line(line: str) -> tuple[Operator, bool]:
    described = json.loads(line)
    columns = [each["columns"] for each in (described, described.get("shortcut")) if _has_columns(each)]
    adapter = _OPERATORS.get(str(described.get("operator")))
    if adapter is None:
        raise UserError(f"unknown operator {described.get('operator')!r}: expected one of {', '.join(_OPERATORS)}")
    try:
        for each in columns:
            _COLUMNS.validate_json(json.dumps(each), strict=True)
        op = adapter.validate_json(json.dumps(_of_all_columns(described)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, (described["operator"], *first["loc"])))
        raise UserError(f"{place}: {first['msg']}") from None
    if not _is_possible(op):
        raise UserError(f"{described['operator']} has a size that no layer has ({line[:100]})")
    return op, bool(columns)


def _has_columns(described: object) -> bool:
    return isinstance(described, dict) and "columns" in described


def _of_all_columns(described: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _of_all_columns(value) if isinstance(value, dict) else value
        for name, value in described.items()
        if name != "columns"
    }


def _is_possible(op: Operator) -> bool:
    for field in fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Conv2d) and not _is_possible(value):
            return False
        numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if type(number) is int]
        if any(number < (field.name != "padding") for number in numbers):
            return False
    return True


def _describe_columns(op: Conv2d) -> dict[str, int]:
    from tvm_build.kernels.column_sparse import list_entries

    assert op.columns is not None
    return {
        "kept": len(op.columns),
        "blocks": len(list_entries(op, "blocks").offsets),
        "lanes": len(list_entries(op, "lanes").offsets),
    }
