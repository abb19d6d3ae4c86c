"""How the runner is built for other machines than this one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import device.runner_build
from device.android import toolchain
from device.android.audit import audit
from device.android.elf import EM_AARCH64, read_elf
from device.runner_build import SOURCE_DIR, build_runner
from pipeline.cli import run_command_line
from structadmm.errors import InvariantError, UserError

INCLUDE = toolchain.ANDROID_DIR / "include"
ZIG = [sys.executable, "-m", "ziglang", "cc"]


@pytest.fixture(autouse=True)
def without_ndk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)


def copy_sources(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(SOURCE_DIR, directory, ignore=shutil.ignore_patterns("fuzz"))
    monkeypatch.setattr(device.runner_build, "SOURCE_DIR", directory)
    return directory


def test_the_same_bytes_come_out_of_another_folder_and_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build_runner("arm64-v8a").read_bytes()
    copy_sources(tmp_path / "elsewhere", monkeypatch)
    monkeypatch.setenv("STRUCTADMM_CACHE", str(tmp_path / "cache"))
    second = build_runner("arm64-v8a")
    assert second.is_relative_to(tmp_path / "cache")
    assert second.read_bytes() == first


def test_a_libc_function_that_is_not_on_the_list_does_not_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = copy_sources(tmp_path / "runner", monkeypatch)
    # Bionic has getentropy since API level 28: a program with it would not start on Android 8.
    platform = (sources / "platform.c").read_text()
    assert platform.count("getpid()") == 1
    declaration = "int getentropy(void *, unsigned long);\n"
    (sources / "platform.c").write_text(declaration + platform.replace("getpid()", "getentropy(0, 0)"))
    with pytest.raises(UserError, match=r"does not build for arm64-v8a .*getentropy"):
        build_runner("arm64-v8a")


def test_the_board_runner_is_a_dynamic_program_for_aarch64_linux() -> None:
    elf = read_elf(build_runner("aarch64-linux").read_bytes())
    assert elf.machine == EM_AARCH64
    assert elf.interpreter == "/lib/ld-linux-aarch64.so.1"
    assert "libc.so.6" in elf.needed


def test_the_command_line_copies_the_runner_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder" / "runner"
    assert run_command_line(["runner", "build", "--abi", "arm64-v8a", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert audit(out.read_bytes()) == []
    assert out.stat().st_mode & 0o111 == 0o111


def test_an_unknown_abi_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["runner", "build", "--abi", "armeabi-v7a"]) == 2
    assert "expected one of aarch64-linux, arm64-v8a, host" in capsys.readouterr().err


def test_sanitizers_are_refused_for_other_machines() -> None:
    with pytest.raises(UserError, match="use ABI host"):
        build_runner("arm64-v8a", sanitizers=True)


@pytest.mark.parametrize("libc", ["musl", "gnu"])
def test_our_declarations_agree_with_another_libc_of_the_same_machine(tmp_path: Path, libc: str) -> None:
    """Bionic, musl and glibc share the kernel's constants and, on 64-bit Arm, these types: two declarations of one
    function that differ do not compile, and each of our constants is compared with theirs."""
    names = [str(path.relative_to(INCLUDE)) for path in sorted(INCLUDE.rglob("*.h"))]
    lines = [f"#include <{name}>" for name in names]
    assert len(names) == 9
    constants = {}
    for name in names:
        constants.update(re.findall(r"^#define ([A-Z_0-9]+) ([0-9]+)\b", (INCLUDE / name).read_text(), re.MULTILINE))
    assert {"O_CREAT", "EINTR", "RTLD_NOW", "CLOCK_MONOTONIC", "SEEK_END"} <= constants.keys()
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in constants.items()]
    lines += [f"#undef {name}" for name in [*constants, "errno"]]
    # Its structure cannot be declared twice; renamed, it is compared.
    lines += [f'#include "{INCLUDE / name}"' for name in names if name != "time.h"]
    time = (INCLUDE / "time.h").read_text().replace("struct timespec {", "struct ours {")
    lines.append(re.sub(r"#define CLOCK.*", "", time))
    for field in ("tv_sec", "tv_nsec"):
        offsets = " == ".join(f"__builtin_offsetof(struct {kind}, {field})" for kind in ("ours", "timespec"))
        lines.append(f'_Static_assert({offsets}, "{field}");')
    lines.append('_Static_assert(sizeof(struct ours) == sizeof(struct timespec), "timespec");')
    source = tmp_path / "both.c"
    source.write_text("\n".join(lines) + "\n")
    command = [*ZIG, "-target", f"aarch64-linux-{libc}", "-std=gnu11", "-Werror", "-c", str(source)]
    result = subprocess.run([*command, "-o", str(tmp_path / "both.o")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


FAKE_CLANG = """#!{python}
import json, pathlib, shutil, sys
if "--version" in sys.argv:
    print("clang of an imitated NDK")
    raise SystemExit
home = pathlib.Path(__file__).parents[5]
(home / "called.json").write_text(json.dumps(sys.argv[1:]))
shutil.copy(home / "program", sys.argv[sys.argv.index("-o") + 1])
"""


@pytest.fixture
def ndk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out like an NDK, whose clang records how it is called and hands out the file `program`."""
    program = build_runner("arm64-v8a")
    home = tmp_path / "ndk"
    clang = home / "toolchains/llvm/prebuilt/linux-x86_64/bin/clang"
    clang.parent.mkdir(parents=True)
    clang.write_text(FAKE_CLANG.format(python=sys.executable))
    clang.chmod(0o755)
    shutil.copy(program, home / "program")
    monkeypatch.setenv("ANDROID_NDK_HOME", str(home))
    monkeypatch.setenv("STRUCTADMM_CACHE", str(tmp_path / "cache"))
    return home


def test_with_an_ndk_its_clang_its_headers_and_its_start_up_code_are_used(ndk: Path) -> None:
    built = build_runner("arm64-v8a")
    called = json.loads((ndk / "called.json").read_text())
    assert "--target=aarch64-linux-android26" in called
    for flag in ("-fPIE", "-pie", "-Wl,-z,max-page-size=16384", "-Wl,--hash-style=both", "-Wl,--build-id=none"):
        assert flag in called
    assert [argument for argument in called if argument.endswith(".c")] == [
        str(path) for path in sorted(SOURCE_DIR.glob("*.c"))
    ]
    assert not any("nostdlib" in argument or str(toolchain.ANDROID_DIR) in argument for argument in called)
    assert "-ldl" in called
    assert built.read_bytes() == (ndk / "program").read_bytes()


def test_a_program_of_the_ndk_that_fails_the_audit_is_not_handed_out(ndk: Path) -> None:
    program = bytearray((ndk / "program").read_bytes())
    program[18] = 62  # e_machine: x86-64
    (ndk / "program").write_bytes(program)
    for _ in range(2):  # the second time, too: it must not have got into the cache
        with pytest.raises(InvariantError, match="its machine is 62"):
            build_runner("arm64-v8a")
    assert [path for path in (ndk.parent / "cache").rglob("*") if path.is_file()] == []


def test_an_ndk_variable_that_names_no_ndk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_NDK_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"toolchains/llvm/prebuilt/\*/bin/clang"):
        build_runner("arm64-v8a")
