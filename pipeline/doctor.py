"""`structadmm doctor`: what this machine has, what works, and the command that installs what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from packaging.requirements import Requirement

import structadmm
from pipeline.probe_bundle import write_probe_bundle
from structadmm.errors import StructadmmError

if TYPE_CHECKING:
    from device.target import Target

State = Literal["ok", "absent", "broken"]
INSTALL_OPENCL = "pip install intel-opencl-rt intel-cmplr-lib-rt tbb, or on Debian apt-get install pocl-opencl-icd"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        state: `absent` is something optional that is not there; `broken` is something needed.
        detail: what was found.
        remedy: the command that puts it right, or what to do; empty where nothing needs to be done.
    """

    subject: str
    state: State
    detail: str
    remedy: str = ""


def examine(phones: Sequence[str] = ()) -> Iterator[Finding]:
    """Look at everything, one finding at a time. Nothing is installed or changed but the caches.

    Args:
        phones: `adb:HOST:PORT` of phones that are not on USB.
    """
    yield _python()
    yield from _packages()
    yield _guarded("cache directory", _cache)
    yield from _compilers()
    yield _guarded("runner", _runner)
    yield from _opencl_devices()
    yield from _phones(phones)


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.prefix}"
    if sys.version_info < (3, 10):  # noqa: UP036  # pip's check can be overridden, and this is the place that says so
        return Finding("Python", "broken", found, "install Python 3.10 or later")
    return Finding("Python", "ok", found)


def _packages() -> Iterator[Finding]:
    """The distribution's own requirements, as its metadata state them, against what is installed."""
    wanted = [Requirement(text) for text in importlib.metadata.requires("structadmm") or []]
    wanted = [requirement for requirement in wanted if requirement.marker is None or requirement.marker.evaluate()]
    problems = []
    for requirement in wanted:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append((requirement, "is not installed"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append((requirement, f"is {version}"))
    for requirement, problem in problems:
        remedy = f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        yield Finding(
            f"package {requirement.name}", "broken", f"{problem}, needed: {requirement.specifier or 'any'}", remedy
        )
    if not problems:
        shown = ("torch", "apache-tvm", "apache-tvm-ffi", "onnx", "onnxruntime")
        versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in shown)
        detail = f"structadmm {structadmm.__version__}; all {len(wanted)} requirements fit: {versions}, ..."
        yield Finding("packages", "ok", detail)


def _cache() -> Finding:
    from structadmm.files import cache_dir, write_text

    path = cache_dir()
    probe = path / ".doctor"
    try:
        write_text(probe, "")
        probe.unlink()
    except OSError as error:
        remedy = "export STRUCTADMM_CACHE=DIRECTORY, one that can be written"
        return Finding("cache directory", "broken", f"{path}: {error.strerror}", remedy)
    return Finding("cache directory", "ok", str(path))


def _compilers() -> Iterator[Finding]:
    from device.runner_build import find_compilers

    compilers = list(find_compilers())
    for compiler in compilers:
        first_line = compiler.version.splitlines()[0] if compiler.version else "no version"
        yield Finding("C compiler", "ok", f"{' '.join(compiler.command)}: {first_line}")
    if not compilers:
        yield Finding("C compiler", "broken", "none found", f"{sys.executable} -m pip install ziglang")


def _runner() -> Finding:
    from device.runner_build import build_runner

    return Finding("runner", "ok", str(build_runner()))


def _opencl_devices() -> Iterator[Finding]:
    """Every OpenCL device of this machine, each with a kernel that is built, run and compared."""
    from device.local_target import LocalTarget, find_local_devices

    try:
        found = find_local_devices()
    except StructadmmError as error:
        yield Finding("OpenCL", "broken", str(error), INSTALL_OPENCL)
        return
    for driver, failure in found.failures.items():
        yield Finding(f"OpenCL driver {driver}", "absent", failure, "remove or reinstall this driver")
    working = 0
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_probe_bundle(Path(scratch))
        for device in found.devices:
            info = device.info
            name = f"{info.name}, {info.platform}, driver {info.driver}"
            features = ", ".join(
                text for text in ("images" if info.images else "", "fp16" if info.fp16 else "") if text
            )
            target = LocalTarget(device.driver.name)
            target.device = device
            problem = _kernel_failure(target, bundle)
            working += problem is None
            if problem is None:
                detail = f"{name} ({info.type}; {features or 'buffers only'}): a kernel was built, run and was right"
                yield Finding(f"OpenCL {device.name}", "ok", detail)
            else:
                remedy = "use another device (--device), or reinstall this driver"
                yield Finding(f"OpenCL {device.name}", "absent", f"{name}: {problem}", remedy)
    if not working:
        yield Finding("OpenCL", "broken", "no device on this machine runs a kernel", INSTALL_OPENCL)


def _kernel_failure(target: Target, bundle: Path) -> str | None:
    """Why the device does not run the probe's kernel, or None."""
    from device.runner_client import Runner

    try:
        Runner(target, use_program_cache=False).check(bundle)
    except StructadmmError as error:
        return str(error)
    finally:
        target.close()
    return None


def _phones(named: Sequence[str]) -> Iterator[Finding]:
    """Phones on USB and those named. None at all is no fault: everything but phone timings works without."""
    from device.phone_report import ask_phone, connect_phone, find_phones

    found, usb_problem = find_phones(list(named))
    if usb_problem:
        yield Finding("phones on USB", "absent", usb_problem)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = write_probe_bundle(Path(scratch))
        for device, known_problem in found:
            report = ask_phone(device, known_problem)
            problem = report.problem or _kernel_failure(connect_phone(device), bundle)
            if problem:
                told = "" if report.identity is None else f"{report.summary}: "
                yield Finding(f"phone {device}", "absent", f"{told}{problem}", "docs/phone.md lists what to do")
            else:
                detail = f"{report.summary}: a kernel was built, run and was right"
                yield Finding(f"phone {device}", "ok", detail)
    if not found:
        remedy = "plug a phone in, switch on USB debugging in its developer options, and accept this computer's key"
        yield Finding("phones", "absent", "none on USB; only phone timings need one", remedy)


def _guarded(subject: str, examination: Callable[[], Finding]) -> Finding:
    try:
        return examination()
    except StructadmmError as error:
        return Finding(subject, "broken", str(error))
    except OSError as error:
        return Finding(subject, "broken", f"{error}", "export STRUCTADMM_CACHE=DIRECTORY, one that can be written")
