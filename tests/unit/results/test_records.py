from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from results.records import Reduction, Result, read_result, write_result
from structadmm.errors import InvariantError, UserError

from .synthetic import synthetic_data


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    write_result(tmp_path / "result.json", synthetic_data().result)
    parsed: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    return parsed


def test_a_result_is_the_same_after_writing_and_reading(tmp_path: Path) -> None:
    result = synthetic_data().result
    write_result(tmp_path / "result.json", result)
    assert read_result(tmp_path / "result.json") == result


def test_the_file_has_every_field_of_schema_1(values: dict[str, Any]) -> None:
    assert values["schema"] == 1
    for reduced in ("conv_params", "params", "macs"):
        assert set(values[reduced]) == {"dense", "pruned", "ratio"}
    assert {"dense", "pruned"} <= set(values["accuracy"])
    assert {"device", "kind", "baseline", "pruned", "speedup", "warnings"} == set(values["latency_ms"])
    assert {"median", "p10", "p90"} <= set(values["latency_ms"]["baseline"])
    assert set(values["latency_ms"]["speedup"]) == {"median", "ci95"}
    assert set(values["checks"]) == {"masked_vs_shrunk", "shrunk_vs_onnx", "onnx_vs_device"}
    assert {"name", "environment"} <= set(values)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (("checks", "onnx_vs_device"), 0.5, "more than its tolerance"),
        (("latency_ms", "pruned", "median"), 0.0, "greater than 0"),
        (("latency_ms", "kind"), "guess", "'host' or 'phone'"),
        (("macs", "ratio"), 99.0, "is not"),
        (("accuracy", "pruned"), 100.5, "less than or equal to 100"),
        (("unheard_of",), 1, "Extra inputs"),
    ],
)
def test_a_file_with_an_impossible_value_is_refused_in_one_line(
    tmp_path: Path, values: dict[str, Any], place: tuple[str, ...], value: object, expected: str
) -> None:
    table = values
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    (tmp_path / "result.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=expected) as caught:
        read_result(tmp_path / "result.json")
    assert "\n" not in str(caught.value)


def test_another_schema_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    (tmp_path / "result.json").write_text(json.dumps(values | {"schema": 2}))
    with pytest.raises(UserError, match="schema 2"):
        read_result(tmp_path / "result.json")


def test_a_missing_field_is_an_error_and_never_a_zero(values: dict[str, Any]) -> None:
    del values["checks"]["onnx_vs_device"]
    with pytest.raises(ValidationError, match="onnx_vs_device"):
        Result.model_validate(values)


def test_a_number_that_is_none_is_refused(values: dict[str, Any]) -> None:
    values["checks"]["onnx_vs_device"] = float("nan")
    with pytest.raises(ValidationError, match="onnx_vs_device"):
        Result.model_validate(values)


def test_a_count_of_zero_has_no_ratio() -> None:
    with pytest.raises(InvariantError, match="positive"):
        Reduction.of(10, 0)
