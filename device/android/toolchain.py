"""How a compiler is called to make an Android arm64 program: zig with this project's own start-up code, or the NDK."""

from __future__ import annotations

import os
from pathlib import Path

from device.android.audit import INTERPRETER, MINIMUM_API_LEVEL, PAGE_BYTES
from structadmm.errors import UserError

ANDROID_DIR = Path(__file__).parent
NDK_VARIABLE = "ANDROID_NDK_HOME"

_COMMON_FLAGS = (
    "-std=c11",
    "-O2",
    "-ffp-contract=off",
    "-fPIE",
    "-pie",
    "-Wl,--hash-style=both",
    "-Wl,--build-id=none",
    "-Wl,--as-needed",
    f"-Wl,-z,max-page-size={PAGE_BYTES}",
    # Linkers before LLVM 18 end what becomes read-only on a page of this size, 4096 if not told otherwise.
    f"-Wl,-z,common-page-size={PAGE_BYTES}",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-s",
)

NDK_FLAGS = (f"--target=aarch64-linux-android{MINIMUM_API_LEVEL}", *_COMMON_FLAGS)
NDK_LIBRARIES = ("-ldl",)

ZIG_TARGET = ("-target", "aarch64-linux-android")
ZIG_FLAGS = (
    *ZIG_TARGET,
    *_COMMON_FLAGS,
    "-nostdlib",
    "-nostdlibinc",
    "-isystem",
    str(ANDROID_DIR / "include"),
    # Where the guard lies that a protected stack is checked against, only the NDK's headers and start-up code settle.
    "-fno-stack-protector",
    f"-Wl,--dynamic-linker,{INTERPRETER}",
)
START_FILE = ANDROID_DIR / "start.c"


def build_inputs() -> list[Path]:
    """Files besides the runner's own that go into a build without the NDK."""
    headers = sorted((ANDROID_DIR / "include").rglob("*.h"))
    return [START_FILE, ANDROID_DIR / "symbols.txt", *headers]


def ndk_compiler() -> Path | None:
    """The clang of the NDK that `ANDROID_NDK_HOME` names, or None where that is not set.

    Raises:
        UserError: it is set, and no NDK with a clang for this machine lies there.
    """
    home = os.environ.get(NDK_VARIABLE)
    if not home:
        return None
    pattern = "toolchains/llvm/prebuilt/*/bin/clang"
    found = sorted(path for path in Path(home).glob(pattern) if os.access(path, os.X_OK))
    if not found:
        raise UserError(f"{NDK_VARIABLE} is {home!r}, and there is no {pattern} in it: correct or unset it")
    return found[0]
