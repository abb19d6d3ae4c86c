"""Building the runner for this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from device.runner_build import SOURCE_DIR, Compiler, build_runner, find_compilers, find_zig, sources
from structadmm.errors import UserError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRUCTADMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_sources_compile_without_a_warning_in_every_compiler_that_is_here(tmp_path: Path) -> None:
    compilers = {Path(compiler.command[0]).resolve(): compiler for compiler in find_compilers()}.values()
    assert any("zig" in word for compiler in compilers for word in compiler.command)
    for compiler in compilers:
        flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1"]
        argv = [*compiler.command, *flags, *map(str, sources()), "-ldl", "-o", str(tmp_path / "runner")]
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert result.returncode == 0, (compiler.command, result.stderr[:2000])


def test_only_the_platform_files_include_headers_of_libc() -> None:
    for path in SOURCE_DIR.glob("*.[ch]"):
        included = [line for line in path.read_text().splitlines() if line.startswith("#include <")]
        assert not included or path.name in {"platform.h", "platform.c"}, (path.name, included)


def test_a_second_build_takes_the_first_ones_executable(cache: Path) -> None:
    first = build_runner()
    stamp = first.stat().st_mtime_ns
    assert build_runner() == first
    assert first.stat().st_mtime_ns == stamp
    assert first.is_relative_to(cache)
    assert subprocess.run([first, "help"], capture_output=True, check=False).returncode == 0


def test_many_builds_at_once_leave_one_whole_executable(cache: Path) -> None:
    program = "from device.runner_build import build_runner; print(build_runner())"

    def build(_: int) -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(build, range(2)))
    assert len(paths) == 1
    directory = Path(paths.pop().strip()).parent
    assert [path.name for path in directory.iterdir()] == ["runner"]


def test_a_compiler_that_fails_gives_way_to_the_next(cache: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'cc: fatal error: no headers' >&2\nexit 1\n")
    broken.chmod(0o755)
    bad = Compiler((str(broken),), "broken 1.0")
    good = next(find_compilers())
    assert build_runner(compilers=[bad, good]).exists()
    with pytest.raises(UserError, match=r"no headers.*ziglang"):
        build_runner(compilers=[bad])


def test_without_any_compiler_the_advice_is_one_line(cache: Path) -> None:
    with pytest.raises(UserError, match=r"no C compiler.*pip install ziglang") as caught:
        build_runner(compilers=[])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="unknown ABI 'mips'"):
        build_runner("mips")


def test_zig_alone_builds_a_runner_that_starts() -> None:
    # In the user's own cache: zig builds parts of its libc first, which takes many seconds.
    runner = build_runner(compilers=list(find_zig()))
    assert b"usage" in subprocess.run([runner, "help"], capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", ["plan", "npy", "sums"])
def test_the_parsers_survive_seconds_of_blind_mutations(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs clang or gcc for the sanitizers: apt-get install gcc")
    parsers = [SOURCE_DIR / f"{part}.c" for part in ("plan", "plan_line", "npy", "dtype", "sums", "status", "platform")]
    fuzz = SOURCE_DIR / "fuzz"
    flags = [
        "-std=c11",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    executable = tmp_path / "mutate"
    files = [*parsers, fuzz / f"{name}_fuzzer.c", fuzz / "mutate.c"]
    subprocess.run([compiler, *flags, *map(str, files), "-ldl", "-o", str(executable)], check=True)
    seeds = sorted((fuzz / "seeds" / name).iterdir())
    result = subprocess.run([executable, "2", "1", *seeds], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[:3000]
    # Far below what a busy core does in two seconds; a harness that returns at once would do none.
    assert int(result.stdout.split()[0]) > 1000
