"""Callables named in a configuration as `module:callable`."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from structadmm.errors import UserError


def source_of(path: str) -> Path | None:
    """The file of a `module:callable` that was imported; None for anything else."""
    module = sys.modules.get(path.partition(":")[0]) if ":" in path else None
    file = getattr(module, "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def import_callable(path: str, what: str) -> Callable[..., Any]:
    """Import `module:callable`; dots after the colon reach attributes of attributes.

    A module that is installed nowhere is looked for in the current directory, too.

    Args:
        path: as written in the configuration.
        what: what it should provide, for the message.

    Raises:
        UserError: the module does not import, or has no such callable.
    """
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise UserError(f"{what} {path!r} is not of the form module:callable")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(Path.cwd()))  # last, so that it hides nothing
    try:
        with exit_is_an_error():
            value: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{what} {path!r}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from error
    except Exception as error:  # the user's code may raise anything
        problem = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        raise UserError(f"{what} {path!r}: {module_name} does not import ({problem}): correct it") from error
    for name in attribute.split("."):
        value = getattr(value, name, None)
    if not callable(value):
        raise UserError(f"{what} {path!r}: {module_name} has no callable {attribute!r}")
    return value  # type: ignore[no-any-return]


@contextmanager
def exit_is_an_error() -> Iterator[None]:
    """Run the user's code, which must not end the command: the caller tells of the error that its `sys.exit` becomes.

    Raises:
        RuntimeError: the code called `sys.exit`. The exit that a SIGTERM asks for passes.
    """
    try:
        yield
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:
            raise
        raise RuntimeError(f"it calls sys.exit({error.code!r})") from error
