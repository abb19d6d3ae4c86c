"""The OpenCL drivers of this machine, each on its own: how a process must be started so that it sees that one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from structadmm.files import cache_dir, write_text

_SYSTEM_ICD_DIR = Path("/etc/OpenCL/vendors")
_LOADER = "libOpenCL.so.1"
_INTEL_LIBRARY = "libintelocl.so"


@dataclass(frozen=True)
class OpenClDriver:
    """One installable client driver.

    Attributes:
        name: `intel` for the runtime that pip installed, else the name of its .icd file (`pocl`, `nvidia`, ...).
        environment: variables that make a new process load this driver and no other.
        platform: part of the name of the only platform that is this driver's, or empty. Intel's loader reads the
            system's drivers too, whatever OCL_ICD_VENDORS says.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""


def find_drivers(
    library_dirs: Iterable[Path] | None = None, system_icd_dir: Path = _SYSTEM_ICD_DIR
) -> tuple[OpenClDriver, ...]:
    """The drivers that are installed, Intel's of pip first, then the system's by name. Whether they work is not tried.

    Args:
        library_dirs: where pip puts shared libraries; None asks this Python.
        system_icd_dir: where the system lists its drivers.
    """
    intel_dir = _find_intel(_pip_library_dirs() if library_dirs is None else library_dirs)
    found = []
    if intel_dir is not None:
        vendors = _isolate("intel-pip", f"{intel_dir / _INTEL_LIBRARY}\n")
        # The runtime finds its compiler and its thread library beside itself only with LD_LIBRARY_PATH; the .icd that
        # comes with it holds a path of the machine it was packed on.
        environment = {"LD_LIBRARY_PATH": str(intel_dir), "OCL_ICD_VENDORS": str(vendors)}
        found.append(OpenClDriver("intel", environment, platform="Intel"))
    loader = _loader_environment(intel_dir)
    for icd in sorted(system_icd_dir.glob("*.icd")) if system_icd_dir.is_dir() else []:
        vendors = _isolate(f"system-{icd.stem}", icd.read_text(errors="replace"))
        found.append(OpenClDriver(icd.stem, {**loader, **_pinning(icd.stem), "OCL_ICD_VENDORS": str(vendors)}))
    return tuple(found)


def _pip_library_dirs() -> list[Path]:
    return list(dict.fromkeys([Path(sys.prefix) / "lib", Path(sysconfig.get_path("data")) / "lib"]))


def _find_intel(library_dirs: Iterable[Path]) -> Path | None:
    for directory in library_dirs:
        if (directory / _INTEL_LIBRARY).exists() and (directory / _LOADER).exists():
            return directory.resolve()
    return None


def _isolate(name: str, icd_text: str) -> Path:
    """A directory that lists one driver only."""
    # Named by content: two virtual environments must not overwrite each other's.
    directory = cache_dir() / "icd" / f"{name}-{hashlib.sha256(icd_text.encode()).hexdigest()[:16]}"
    file = directory / "driver.icd"
    if not file.exists():
        write_text(file, icd_text)
    return directory


def _pinning(name: str) -> dict[str, str]:
    """PoCL leaves its threads to the operating system, which may put two on one core for the life of a process.

    With each on a core of its own a short kernel takes as long in one process as in the next (a 1x1 convolution of
    CIFAR ResNet-18: 21 to 24 us instead of 23 or 38). Whoever has set the variable is obeyed.
    """
    return {"POCL_AFFINITY": "1"} if name == "pocl" and "POCL_AFFINITY" not in os.environ else {}


def _loader_environment(intel_dir: Path | None) -> dict[str, str]:
    """Containers often have a driver and no loader; the one that came with pip serves there."""
    try:
        ctypes.CDLL(_LOADER)
    except OSError:
        return {} if intel_dir is None else {"STRUCTADMM_OPENCL_LIBRARY": str(intel_dir / _LOADER)}
    return {}
