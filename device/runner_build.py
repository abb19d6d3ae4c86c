"""Builds the runner once per source, compiler and flags, and keeps it in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from structadmm.errors import UserError
from structadmm.files import cache_dir

SOURCE_DIR = Path(__file__).parent / "runner"
_BUILD_TIMEOUT_S = 300.0
_SANITIZER_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


@dataclass(frozen=True)
class Abi:
    """A kind of machine that the runner is built for.

    Attributes:
        name: as in `structadmm runner build --abi`.
        flags: what the compiler needs besides the sources.
        libraries: what comes after the sources.
    """

    name: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]


ABIS = {
    # -ffp-contract=off: the statistics shall not depend on which compiler fuses what.
    "host": Abi("host", ("-std=c11", "-O2", "-ffp-contract=off"), ("-ldl",)),
}


@dataclass(frozen=True)
class Compiler:
    """A C compiler that is there: how to call it, and what it calls itself."""

    command: tuple[str, ...]
    version: str


def sources() -> list[Path]:
    """The runner's C files, in a fixed order."""
    return sorted(SOURCE_DIR.glob("*.c"))


def find_compilers() -> Iterator[Compiler]:
    """The C compilers for this machine, best first.

    The system's own comes first: it knows this libc for certain and needs no cache of its own. zig, which carries its
    own libc headers, makes machines without a compiler work (PyPI `ziglang`).
    """
    for name in ("cc", "gcc", "clang"):
        path = shutil.which(name)
        if path is not None and (compiler := _ask_version((path,))) is not None:
            yield compiler
    if importlib.util.find_spec("ziglang") is not None:
        compiler = _ask_version((sys.executable, "-m", "ziglang", "cc"))
        if compiler is not None:
            yield compiler


def _ask_version(command: tuple[str, ...]) -> Compiler | None:
    """None where the compiler does not start: a dangling link, an incomplete package."""
    try:
        answer = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Compiler(command, answer.stdout.strip()) if answer.returncode == 0 else None


def build_runner(abi: str = "host", *, sanitizers: bool = False, compilers: Sequence[Compiler] | None = None) -> Path:
    """The runner's executable for `abi`, built now if it is not in the cache.

    Several processes may call this at once: each compiles for itself and the last rename wins, with the same content.

    Args:
        abi: a key of `ABIS`.
        sanitizers: with AddressSanitizer and UndefinedBehaviorSanitizer, which end the runner at their first finding.
        compilers: tried in order; None takes `find_compilers()`.

    Raises:
        UserError: `abi` is unknown, or no compiler is there or can build it.
    """
    if abi not in ABIS:
        raise UserError(f"unknown ABI {abi!r} for the runner: expected one of {', '.join(sorted(ABIS))}")
    flags = (*ABIS[abi].flags, *(_SANITIZER_FLAGS if sanitizers else ()))
    failures = []
    for compiler in compilers if compilers is not None else find_compilers():
        executable = _cache_path(ABIS[abi], flags, compiler)
        if executable.exists():
            return executable
        failure = _compile(ABIS[abi], flags, compiler, executable)
        if failure is None:
            return executable
        failures.append(f"{' '.join(compiler.command)}: {failure}")
    if failures:
        raise UserError(
            f"the runner does not build here ({'; '.join(failures)}): install gcc, or `pip install ziglang`"
        )
    raise UserError("no C compiler to build the runner with: install gcc or clang, or `pip install ziglang`")


def _cache_path(abi: Abi, flags: Sequence[str], compiler: Compiler) -> Path:
    digest = hashlib.sha256()
    for text in (abi.name, *flags, *abi.libraries, *compiler.command, compiler.version):
        digest.update(f"{len(text)}:{text}".encode())
    for path in sorted(SOURCE_DIR.glob("*.[ch]")):
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return cache_dir() / "runners" / digest.hexdigest() / "runner"


def _compile(abi: Abi, flags: Sequence[str], compiler: Compiler, executable: Path) -> str | None:
    """Build into a directory of its own and rename. Returns why it failed, on one line."""
    executable.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig"), "LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix=".build-", dir=executable.parent) as scratch:
        built = Path(scratch) / "runner"
        argv = [*compiler.command, *flags, *map(str, sources()), *abi.libraries, "-o", str(built)]
        try:
            result = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=_BUILD_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"still compiling after {_BUILD_TIMEOUT_S:.0f} s"
        if result.returncode != 0 or not built.exists():
            return _first_error(result.stderr) or f"exit status {result.returncode}"
        built.chmod(0o755)
        built.replace(executable)
    return None


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[0][:300]
