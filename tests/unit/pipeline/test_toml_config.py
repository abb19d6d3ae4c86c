from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from pipeline.toml_config import apply_overrides, read_toml, validate
from structadmm.errors import UserError

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Round(Section):
    structure: Literal["filter", "column"]
    sparsity: Fraction | dict[str, Fraction]


class Distill(Section):
    weight: float = 0.5


class Train(Section):
    seed: int = 0
    rounds: tuple[Round, ...]
    distill: Distill | None = None


class Config(Section):
    name: str
    train: Train


ROUND = {"structure": "filter", "sparsity": 0.5}


def told(train: dict[str, Any], **rest: Any) -> str:
    with pytest.raises(UserError) as caught:
        validate(Config, {"name": "x", "train": train, **rest}, "x.toml")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_key_is_told_with_its_place_and_the_nearest_valid_key() -> None:
    assert told({"rounds": [ROUND], "sede": 1}) == "x.toml: [train] has no key 'sede': did you mean 'seed'?"
    assert told({"rounds": [ROUND | {"structur": 1}]}) == (
        "x.toml: [train.rounds.0] has no key 'structur': did you mean 'structure'?"
    )
    assert "[train.distill] has no key 'wieght': did you mean 'weight'?" in told(
        {"rounds": [ROUND], "distill": {"wieght": 1}}
    )


def test_an_unknown_key_that_resembles_none_is_told_with_all_valid_keys() -> None:
    assert told({"rounds": [ROUND], "zzz": 1}).endswith(
        "[train] has no key 'zzz': valid keys are distill, rounds, seed"
    )


def test_an_unknown_section_is_told_with_the_nearest_section() -> None:
    assert told({"rounds": [ROUND]}, trian={}) == "x.toml: the top level has no key 'trian': did you mean 'train'?"


def test_a_sparsity_of_one_is_told_once_although_two_types_refuse_it() -> None:
    assert told({"rounds": [ROUND | {"sparsity": 1.0}]}) == (
        "x.toml: [train.rounds.0] sparsity = 1.0: expected it to be less than 1"
    )


def test_a_wrong_value_for_one_layer_is_told_with_the_layer() -> None:
    assert told({"rounds": [ROUND | {"sparsity": {"conv1": 0.5, "conv2": 1.5}}]}) == (
        "x.toml: [train.rounds.0.sparsity] conv2 = 1.5: expected it to be less than 1"
    )


def test_a_missing_key_is_told() -> None:
    assert told({}) == "x.toml: [train] needs a key 'rounds'"


def test_a_misspelt_key_comes_before_the_missing_one_and_the_rest_is_counted() -> None:
    assert told({"rond": [ROUND]}) == "x.toml: [train] has no key 'rond': did you mean 'rounds'? (and 1 more)"


def test_a_missing_file_a_directory_and_broken_toml_are_each_told_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("a = \n")
    for path, expected in (
        (tmp_path / "absent.toml", "no such file"),
        (tmp_path, "is a directory"),
        (broken, "line 1"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            read_toml(path)
        assert "\n" not in str(caught.value)


def test_overrides_are_read_as_toml_and_leave_the_original_alone() -> None:
    values: dict[str, Any] = {"train": {"seed": 0}}
    changed = apply_overrides(
        values,
        ["train.seed=1", "train.data.name=digits", "train.rounds=[{structure='filter', sparsity=0.5}]", "name=a=b"],
    )
    assert changed == {
        "name": "a=b",
        "train": {"seed": 1, "data": {"name": "digits"}, "rounds": [{"structure": "filter", "sparsity": 0.5}]},
    }
    assert values == {"train": {"seed": 0}}


@pytest.mark.parametrize("override", ["train.seed", "=1", "train..seed=1", "train.seed.deeper=1"])
def test_an_override_without_a_place_or_a_value_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        apply_overrides({"train": {"seed": 0}}, [override])


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["name", "train", "rounds", "seed", "x"]), inner, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_whatever_is_in_the_sections_the_answer_is_a_configuration_or_one_line(value: Any) -> None:
    try:
        validate(Config, {"name": "x", "train": value}, "x.toml")
    except UserError as error:
        assert str(error).startswith("x.toml: ")
        assert "\n" not in str(error)
