"""The embedded demo: its configuration is shipped inside the package, as `pipeline/demo.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path


@contextmanager
def demo_config() -> Iterator[Path]:
    """The path of the demo's configuration, wherever the package is installed."""
    with as_file(files("pipeline").joinpath("demo.toml")) as path:
        yield path
