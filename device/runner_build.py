"""Builds the runner once per source, compiler and flags, and keeps it in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from device.android import toolchain as android
from device.android.audit import audit
from device.android.stubs import write_stubs
from structadmm.errors import InvariantError, UserError
from structadmm.files import cache_dir

SOURCE_DIR = Path(__file__).parent / "runner"
_BUILD_TIMEOUT_S = 300.0
# -ffp-contract=off: the statistics shall not depend on which compiler fuses what.
_C_FLAGS = ("-std=c11", "-O2", "-ffp-contract=off")
_SANITIZER_FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g")


@dataclass(frozen=True)
class Compiler:
    """A C compiler that is there: how to call it, and what it calls itself."""

    command: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class Abi:
    """A kind of machine that the runner is built for.

    Attributes:
        name: as in `structadmm runner build --abi`.
        flags: what the compiler needs besides the sources.
        libraries: what comes after the sources.
        find_compilers: the compilers that can build for it, best first.
        advice: what to do where there is none.
        sources: C files besides the runner's.
        inputs: other files that decide what comes out.
        write_libraries: builds libraries to link against: in this directory, with this command and environment.
        audit: what is wrong with the bytes of a built runner.
    """

    name: str
    flags: tuple[str, ...]
    libraries: tuple[str, ...]
    find_compilers: Callable[[], Iterator[Compiler]]
    advice: str
    sources: tuple[Path, ...] = ()
    inputs: tuple[Path, ...] = ()
    write_libraries: Callable[[Path, Sequence[str], Mapping[str, str]], Sequence[Path]] | None = None
    audit: Callable[[bytes], list[str]] | None = None


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
    yield from find_zig()


def find_zig() -> Iterator[Compiler]:
    """Zig alone: it builds for other machines without anything of theirs."""
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


def _host() -> Abi:
    advice = "install gcc or clang, or `pip install ziglang`"
    return Abi("host", _C_FLAGS, ("-ldl",), find_compilers, advice)


def _aarch64_linux() -> Abi:
    """Arm boards with Linux. Linked dynamically: the OpenCL driver brings the system's libc into the process."""
    # 2.17 is the first glibc for aarch64.
    flags = ("-target", "aarch64-linux-gnu.2.17", *_C_FLAGS, "-Wl,-s")
    return Abi("aarch64-linux", flags, ("-ldl",), find_zig, "`pip install ziglang`")


def _android_arm64() -> Abi:
    ndk = android.ndk_compiler()
    if ndk is None:
        return Abi(
            "arm64-v8a",
            android.ZIG_FLAGS,
            (),
            find_zig,
            f"`pip install ziglang`, or set {android.NDK_VARIABLE}",
            sources=(android.START_FILE,),
            inputs=tuple(android.build_inputs()),
            write_libraries=_write_android_stubs,
            audit=audit,
        )

    def find_ndk() -> Iterator[Compiler]:
        compiler = _ask_version((str(ndk),))
        if compiler is not None:
            yield compiler

    advice = f"correct {android.NDK_VARIABLE}, or unset it to build without the NDK"
    return Abi("arm64-v8a", android.NDK_FLAGS, android.NDK_LIBRARIES, find_ndk, advice, audit=audit)


def _write_android_stubs(directory: Path, command: Sequence[str], environment: Mapping[str, str]) -> Sequence[Path]:
    return write_stubs(directory, [*command, *android.ZIG_TARGET], environment)


ABIS: dict[str, Callable[[], Abi]] = {"host": _host, "arm64-v8a": _android_arm64, "aarch64-linux": _aarch64_linux}


def build_runner(abi: str = "host", *, sanitizers: bool = False, compilers: Sequence[Compiler] | None = None) -> Path:
    """The runner's executable for `abi`, built now if it is not in the cache.

    Several processes may call this at once: each compiles for itself and the last rename wins, with the same content.

    Args:
        abi: a key of `ABIS`.
        sanitizers: with AddressSanitizer and UndefinedBehaviorSanitizer, which end the runner at their first finding.
        compilers: tried in order; None takes `find_compilers()`.

    Raises:
        UserError: `abi` is unknown, or no compiler is there or can build it.
        InvariantError: what was built fails the audit of its ABI.
    """
    if abi not in ABIS:
        raise UserError(f"unknown ABI {abi!r} for the runner: expected one of {', '.join(sorted(ABIS))}")
    if sanitizers and abi != "host":
        raise UserError(f"sanitizers are asked for with ABI {abi}, they need the host's own libraries: use ABI host")
    machine = ABIS[abi]()
    flags = (*machine.flags, *(_SANITIZER_FLAGS if sanitizers else ()))
    failures = []
    for compiler in compilers if compilers is not None else machine.find_compilers():
        executable = _cache_path(machine, flags, compiler)
        if executable.exists():
            return executable
        failure = _compile(machine, flags, compiler, executable)
        if failure is None:
            return executable
        failures.append(f"{' '.join(compiler.command)}: {failure}")
    if failures:
        raise UserError(f"the runner does not build for {abi} ({'; '.join(failures)}): {machine.advice}")
    raise UserError(f"no C compiler to build the runner for {abi} with: {machine.advice}")


def _cache_path(abi: Abi, flags: Sequence[str], compiler: Compiler) -> Path:
    digest = hashlib.sha256()
    for text in (abi.name, *flags, *abi.libraries, *compiler.command, compiler.version):
        digest.update(f"{len(text)}:{text}".encode())
    for path in (*sorted(SOURCE_DIR.glob("*.[ch]")), *abi.sources, *abi.inputs):
        content = path.read_bytes()
        digest.update(f"{path.name}:{len(content)}:".encode() + content)
    return cache_dir() / "runners" / digest.hexdigest() / "runner"


def _compile(abi: Abi, flags: Sequence[str], compiler: Compiler, executable: Path) -> str | None:
    """Build into a directory of its own and rename. Returns why it failed, on one line."""
    executable.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig"), "LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix=".build-", dir=executable.parent) as scratch:
        built = Path(scratch) / "runner"
        libraries: Sequence[Path] = ()
        if abi.write_libraries is not None:
            libraries = abi.write_libraries(Path(scratch), compiler.command, environment)
        inputs = [*map(str, (*sources(), *abi.sources, *libraries)), *abi.libraries]
        try:
            result = subprocess.run(
                [*compiler.command, *flags, *inputs, "-o", str(built)],
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
        findings = abi.audit(built.read_bytes()) if abi.audit is not None else []
        if findings:
            raise InvariantError(f"the runner built for {abi.name} would not run there: {'; '.join(findings)}")
        built.chmod(0o755)
        built.replace(executable)
    return None


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[0][:300]
