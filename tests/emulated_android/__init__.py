"""Runs Android's and other aarch64 programs here: qemu's user emulation with a small imitation of Android's libraries.

The imitation is glibc for aarch64 under Android's names: its dynamic linker as `/system/bin/linker64`, and a `libc.so`
and `libdl.so` of the tests' own in front of it. The program is the very file that a phone would get. What this shows:
the ELF file loads, start-up code and libc understand one another, every symbol is found, and every call has the ABI of
64-bit Arm. What it cannot show: bionic's linker itself, its namespaces, and a GPU's driver.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
QEMU = "qemu-aarch64-static"
GLIBC_DIR = Path("/usr/aarch64-linux-gnu")
_LINKER = GLIBC_DIR / "lib" / "ld-linux-aarch64.so.1"
_COMPILER = (sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.17", "-O1", "-shared", "-fPIC")

VENDOR_OPENCL = "vendor/lib64/libOpenCL.so"
PIXEL_OPENCL = "system/lib64/libOpenCL-pixel.so"


def missing_requirement() -> str:
    """What this machine lacks for the emulation, or nothing."""
    if shutil.which(QEMU) is None:
        return f"needs {QEMU} (apt-get install qemu-user-static)"
    if not _LINKER.exists():
        return "needs glibc for aarch64 (apt-get install libc6-arm64-cross)"
    return ""


@dataclass(frozen=True)
class Emulated:
    """How to start an aarch64 program here.

    Attributes:
        command: goes before the program's path.
        root: where the program's absolute paths are looked up first.
    """

    command: tuple[str, ...]
    root: Path


def aarch64_linux() -> Emulated:
    """An Arm board with Linux."""
    return Emulated((QEMU, "-L", str(GLIBC_DIR)), GLIBC_DIR)


def android(root: Path) -> Emulated:
    """Android with nothing but its C library, in the new directory `root`; `add_opencl` puts a driver into it."""
    libraries = root / "system" / "lib64"
    linker = root / "system" / "bin" / "linker64"
    libraries.mkdir(parents=True)
    linker.parent.mkdir()
    shutil.copy(_LINKER, linker)
    shutil.copy(GLIBC_DIR / "lib" / "libc.so.6", libraries)
    # A loader that follows DT_NEEDED only finds glibc through the double: it must be linked against it, used or not.
    _compile("libc.c", libraries / "libc.so")
    _compile("libdl.c", libraries / "libdl.so")
    # Android's linker knows this directory by itself.
    return Emulated((QEMU, "-L", str(root), "-E", "LD_LIBRARY_PATH=/system/lib64"), root)


def add_opencl(emulated: Emulated, path: str = VENDOR_OPENCL) -> None:
    """Put the host-memory OpenCL test double at `path` of the emulated system."""
    library = emulated.root / path
    library.parent.mkdir(parents=True, exist_ok=True)
    _compile("host_memory_opencl.c", library, "-fvisibility=hidden", *(["-DPIXEL"] if path == PIXEL_OPENCL else []))


def _compile(source: str, library: Path, *flags: str) -> None:
    command = [*_COMPILER, f"-Wl,-soname,{library.name}", *flags, str(HERE / source), "-o", str(library)]
    subprocess.run(command, check=True, timeout=300)
