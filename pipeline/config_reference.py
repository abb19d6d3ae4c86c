"""`docs/configuration.md`, made from the configuration classes, so that the two cannot disagree.

`python -m pipeline.config_reference` prints the page; a test compares it with the file.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from typing import Any

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.run_config import RunConfig

INTRODUCTION = """# Configuration

<!-- Made by `python -m pipeline.config_reference > docs/configuration.md`; do not edit. -->

One TOML file describes a whole experiment: `pipeline/demo.toml` is the demo's, and `configs/` has others. An unknown
key, a missing one and a value out of range end the command with one line that names the place.
`--set SECTION.KEY=VALUE` overrides a value on the command line, for example `--set train.seed=1`.

A list of tables, such as the rounds of pruning, is written `[[train.rounds]]` once for each.
"""


def reference() -> str:
    """The page, in markdown."""
    parts = [INTRODUCTION]
    for place, model in _sections("", RunConfig):
        parts.append(_section(place, model))
    return "\n".join(parts)


def _section(place: str, model: type[BaseModel]) -> str:
    heading = f"## `[{place}]`" if place else "## Top level"
    told = _attributes(model)
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    rows = []
    for name, field in model.model_fields.items():
        if _submodels(field.annotation) and not place:
            continue  # a stage's section: it has a heading of its own
        inner = f"`[{place}.{name}]`, below" if _submodels(field.annotation) else ""
        rows.append(f"| `{name}` | {_type(field)} | {_default(field)} | {told.get(name, inner)} |")
    return "\n".join([heading, "", summary, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _sections(place: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield place, model
    for name, field in model.model_fields.items():
        for inner in _submodels(field.annotation):
            yield from _sections(f"{place}.{name}" if place else name, inner)


def _submodels(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in typing.get_args(annotation) for model in _submodels(inner)]


def _attributes(model: type[BaseModel]) -> dict[str, str]:
    """What the class says about each field: in its docstring's `Attributes:`, or in a string below the field."""
    told = _strings_below_fields(model)
    text = inspect.cleandoc(model.__doc__ or "")
    _, found, section = text.partition("Attributes:\n")
    name = ""
    for line in section.splitlines() if found else []:
        start = re.match(r"^    (\w+): (.*)", line)
        if start:
            name = start[1]
            told[name] = start[2]
        elif name and line.startswith("        "):
            told[name] += f" {line.strip()}"
        elif line.strip():
            break
    return {name: text.replace("|", "\\|") for name, text in told.items()}


def _strings_below_fields(model: type[BaseModel]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    told = {}
    for field, below in itertools.pairwise(definition.body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            told[field.target.id] = " ".join(below.value.value.split())
    return told


def _type(field: FieldInfo) -> str:
    bounds = {
        annotated_types.Ge: "≥ {0.ge}",
        annotated_types.Gt: "> {0.gt}",
        annotated_types.Le: "≤ {0.le}",
        annotated_types.Lt: "< {0.lt}",
    }
    limits = [text.format(part) for part in field.metadata for kind, text in bounds.items() if type(part) is kind]
    return f"{_annotation(field.annotation)}{' ' if limits else ''}{', '.join(limits)}"


def _annotation(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _annotation(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_annotation(inner) for inner in arguments if inner is not type(None))
    if origin in (list, tuple):
        return f"list of {_annotation(arguments[0])}"
    if origin is dict:
        return f"table of {_annotation(arguments[1])}"
    names = {
        "str": "string",
        "int": "integer",
        "float": "number",
        "bool": "true or false",
        "Path": "path",
        "Any": "any",
    }
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{json.dumps(value, default=str)}`"


if __name__ == "__main__":
    print(reference(), end="")
