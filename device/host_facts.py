"""The state of a Linux machine that decides how far a time measured on it can be trusted."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from device.contention import processor_seconds

_CPU_DIR = Path("/sys/devices/system/cpu")
_THERMAL_DIR = Path("/sys/class/thermal")


def host_facts(
    cpu_dir: Path = _CPU_DIR, thermal_dir: Path = _THERMAL_DIR, proc: Path = Path("/proc")
) -> dict[str, Any]:
    """CPU model and count, their time, clocks, governors, temperatures, load, kernel. What cannot be read is absent."""
    facts: dict[str, Any] = {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_model": _cpu_model(proc / "cpuinfo"),
        "load_average": _load_average(),
        "processor_s": processor_seconds(proc / "stat"),
        "governors": sorted(set(_read_all(cpu_dir, "cpu[0-9]*/cpufreq/scaling_governor"))),
        "cpu_mhz": _cpu_mhz(cpu_dir, proc / "cpuinfo"),
        "temperatures_c": _temperatures(thermal_dir),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def _read(path: Path) -> str | None:
    """None where the kernel does not tell, which is the usual case in containers."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None


def _read_all(directory: Path, pattern: str) -> list[str]:
    return [text for path in sorted(directory.glob(pattern)) if (text := _read(path)) is not None]


def _cpuinfo(path: Path, field: str) -> list[str]:
    lines = (_read(path) or "").splitlines()
    return [value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == field]


def _cpu_model(cpuinfo: Path) -> str | None:
    return next(iter(_cpuinfo(cpuinfo, "model name")), None)


def _load_average() -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except OSError:
        return None


def _cpu_mhz(cpu_dir: Path, cpuinfo: Path) -> list[float]:
    khz = [text for text in _read_all(cpu_dir, "cpu[0-9]*/cpufreq/scaling_cur_freq") if text.isdigit()]
    if khz:
        return [int(text) / 1000 for text in khz]
    return [float(text) for text in _cpuinfo(cpuinfo, "cpu MHz") if text.replace(".", "", 1).isdigit()]


def _temperatures(thermal_dir: Path) -> dict[str, float]:
    found = {}
    for zone in sorted(thermal_dir.glob("thermal_zone[0-9]*")):
        milli = _read(zone / "temp")
        if milli is not None and milli.lstrip("-").isdigit():
            found[f"{zone.name}:{_read(zone / 'type') or 'unknown'}"] = int(milli) / 1000
    return found
