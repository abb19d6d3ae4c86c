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
    changed = _copy_tables(values)
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
        problems = error.errors(include_url=False)
        # A misspelt key is the likely cause of a missing one, so it is told first.
        problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_explain(model, problems[0])}{more}") from None


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One line about one of pydantic's error records."""
    location = tuple(problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _unknown_key(model, location)
    section, key = _section(location[:-1]), location[-1] if location else ""
    if problem["type"] == "missing":
        return f"{section} needs a key {key!r}"
    message = str(problem["msg"]).removeprefix("Value error, ").replace("\n", " ")
    message = message[:1].lower() + message[1:] if message[:2].istitle() else message
    if isinstance(problem["input"], dict | list) or not location:
        return f"{_section(location)}: {message}"
    return f"{section} {key} = {problem['input']!r}: {message}"


def _unknown_key(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    key = str(location[-1])
    valid = _valid_keys(model, location[:-1])
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if nearest:
        advice = f"did you mean {nearest[0]!r}?"
    else:
        advice = f"valid keys are {', '.join(valid)}" if valid else "remove it"
    return f"{_section(location[:-1])} has no key {key!r}: {advice}"


def _section(location: tuple[int | str, ...]) -> str:
    """`("train", "rounds", 0)` as `[train.rounds.0]`."""
    return f"[{'.'.join(map(str, location))}]" if location else "the top level"


def _valid_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys a table at `location` may hold; empty when the annotation does not say."""
    candidates: list[Any] = [model]
    for step in location:
        following: list[Any] = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                field = candidate.model_fields.get(str(step))
                # A step that is no field is the tag that pydantic adds for a union's member.
                following += _models_and_containers(field.annotation) if field else [candidate]
            elif isinstance(step, int) or typing.get_origin(candidate) is dict:
                following += [part for inner in typing.get_args(candidate) for part in _models_and_containers(inner)]
        candidates = following
    models = [candidate for candidate in candidates if isinstance(candidate, type) and issubclass(candidate, BaseModel)]
    return sorted({name for candidate in models for name in candidate.model_fields})


def _models_and_containers(annotation: Any) -> list[Any]:
    """`A | B | None` and `Annotated[A, ...]` taken apart; anything else as it is."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _models_and_containers(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for inner in typing.get_args(annotation) for part in _models_and_containers(inner)]
    return [annotation]


def _copy_tables(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_tables(inner) for key, inner in value.items()}
    return value
