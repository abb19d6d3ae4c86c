"""TOML text into a validated, frozen configuration, with every mistake told in one line."""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from structadmm.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Model = TypeVar("Model", bound=BaseModel)


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        UserError: the file is absent, unreadable or not TOML; the parser's line number is in the message.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file: give the path of a TOML configuration") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a directory: give the path of a TOML configuration") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give the path of a TOML configuration") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`values` with each `section.key=value` set; a value is read as TOML, and as a plain string where it is none.

    Raises:
        UserError: an override has no `=`, or goes through something that is not a table.
    """
    changed: dict[str, Any] = _copy_tables(values)
    for override in overrides:
        place, separator, text = override.partition("=")
        keys = place.strip().split(".")
        if not separator or not all(keys):
            raise UserError(f"--set {override}: expected SECTION.KEY=VALUE, for example --set train.seed=1")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        table = changed
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {override}: {key} is a value, not a section: name a key of a section")
        table[keys[-1]] = value
    return changed


def validate(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Build `model` from `values`; `source` (a file name) opens each error line.

    Raises:
        UserError: a key is unknown or missing, or a value is refused. The first mistake is named, the others counted.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems: dict[tuple[int | str, ...], Any] = {}
        for problem in error.errors(include_url=False):
            # The members of a union each complain about the same key: the first one speaks for it.
            problems.setdefault(_place(values, problem), problem)
        # Beside a wrong entry, pydantic finds its table or list wrong too, which says nothing more.
        problems = {
            place: problem
            for place, problem in problems.items()
            if not any(other != place and other[: len(place)] == place for other in problems)
        }
        # A misspelt key is the likely cause of a missing one, so it is told first.
        place, problem = min(problems.items(), key=lambda item: item[1]["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(model, place, problem)}{more}") from None


def _explain(model: type[BaseModel], place: tuple[int | str, ...], problem: Any) -> str:
    """One line about one of pydantic's error records, which is about `place`."""
    if problem["type"] == "extra_forbidden":
        return _unknown_key(model, place)
    if problem["type"] == "missing":
        return f"{_section(place[:-1])} needs a key {place[-1]!r}"
    message = " ".join(str(problem["msg"]).removeprefix("Value error, ").split())
    message = message.replace("Input should", "expected it to", 1)
    if problem["type"] in ("tuple_type", "list_type") and isinstance(problem["input"], dict):
        return f"{_section(place)} is one table, expected a list of tables: write [[{'.'.join(map(str, place))}]]"
    if isinstance(problem["input"], dict | list) or not place:
        return f"{_section(place)}: {message}"
    section = f"{_section(place[:-1])} " if place[:-1] else ""
    return f"{section}{place[-1]} = {problem['input']!r}: {message}"


def _unknown_key(model: type[BaseModel], place: tuple[int | str, ...]) -> str:
    key = str(place[-1])
    valid = _valid_keys(model, place[:-1])
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if nearest:
        advice = f"did you mean {nearest[0]!r}?"
    else:
        advice = f"valid keys are {', '.join(valid)}" if valid else "remove it"
    return f"{_section(place[:-1])} has no key {key!r}: {advice}"


def _section(place: tuple[int | str, ...]) -> str:
    """`("train", "rounds", 0)` as `[train.rounds.0]`."""
    return f"[{'.'.join(map(str, place))}]" if place else "the top level"


def _place(values: Any, problem: Any) -> tuple[int | str, ...]:
    """Pydantic's error location without the steps it adds for the members of a union, which the file has not."""
    place: tuple[int | str, ...] = ()
    location = problem["loc"]
    for step in location if problem["type"] != "missing" else location[:-1]:
        if (isinstance(values, dict) and step in values) or (isinstance(values, list) and isinstance(step, int)):
            values = values[step]
            place += (step,)
    return place if problem["type"] != "missing" else (*place, location[-1])


def _valid_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that a table at `place` may hold; empty when the annotation does not say."""
    annotations: list[Any] = [model]
    for step in place:
        annotations = _descend(annotations, step)
    return sorted({name for annotation in annotations if _is_model(annotation) for name in annotation.model_fields})


def _descend(annotations: list[Any], step: int | str) -> list[Any]:
    """What the key or index `step` of a value annotated with any of `annotations` may be; empty for none."""
    following: list[Any] = []
    for annotation in annotations:
        arguments = typing.get_args(annotation)
        if _is_model(annotation):
            field = annotation.model_fields.get(str(step))
            following += _alternatives(field.annotation) if field else []
        elif isinstance(step, int) and typing.get_origin(annotation) in (list, tuple):
            following += [part for argument in arguments for part in _alternatives(argument) if part is not Ellipsis]
        elif typing.get_origin(annotation) is dict:
            following += _alternatives(arguments[1])
    return following


def _alternatives(annotation: Any) -> list[Any]:
    """`A | B | None` and `Annotated[A, ...]` taken apart; anything else as it is."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for inner in typing.get_args(annotation) for part in _alternatives(inner)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _copy_tables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_tables(inner) for key, inner in value.items()}
    return value
