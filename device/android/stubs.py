"""Stub libraries: what the linker needs to know of Android's libraries, namely their names and their symbols."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from device.android.symbols import stable_symbols
from structadmm.errors import UserError

_TIMEOUT_S = 120.0


def write_stubs(directory: Path, compiler: Sequence[str], environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Build one stub for each library in `symbols.txt`. They define its symbols, contain no code, and are never run.

    Args:
        directory: where they go; it exists.
        compiler: a C compiler for arm64 that also assembles.
        environment: what it runs with.

    Returns:
        their paths, in the order of `symbols.txt`.

    Raises:
        UserError: the compiler fails.
    """
    symbols = stable_symbols().values()
    stubs = []
    for soname in dict.fromkeys(symbol.library for symbol in symbols):
        source, stub = directory / f"{soname}.s", directory / soname
        names = [symbol.name for symbol in symbols if symbol.library == soname]
        source.write_text("".join(f".globl {name}\n.type {name}, %function\n{name}:\n" for name in names))
        command = [*compiler, "-nostdlib", "-shared", f"-Wl,-soname,{soname}", str(source), "-o", str(stub)]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_TIMEOUT_S,
            check=False,
        )
        if result.returncode != 0:
            why = " ".join(result.stderr.split())[:300]
            raise UserError(f"{compiler[0]} cannot build a stub of Android's {soname} ({why}): reinstall ziglang")
        stubs.append(stub)
    return tuple(stubs)
