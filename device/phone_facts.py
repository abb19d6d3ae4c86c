"""What a phone says about itself: identity, clocks, temperatures, battery. What it does not say is None, never zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from device.target import StateFile

_KGSL = "/sys/class/kgsl/kgsl-3d0"
_VALUE_MAX = 200

# Printed as `name=value` lines by one command, since each round trip over adb costs milliseconds.
_PROPERTIES = {
    "manufacturer": "ro.product.manufacturer",
    "model": "ro.product.model",
    "android": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "build": "ro.build.fingerprint",
    "soc": "ro.soc.model",
    "platform": "ro.board.platform",
    "abi": "ro.product.cpu.abi",
    "emulated": "ro.structadmm.emulated",
}
_FILES = {
    "gpu": (f"{_KGSL}/gpu_model",),
    "gpu_clock": (f"{_KGSL}/devfreq/cur_freq", f"{_KGSL}/gpuclk"),
    "gpu_max_clock": (f"{_KGSL}/devfreq/max_freq", f"{_KGSL}/max_gpuclk"),
    "gpu_governor": (f"{_KGSL}/devfreq/governor",),
    "gpu_busy": (f"{_KGSL}/gpu_busy_percentage",),
    "gpu_temperature": (f"{_KGSL}/temp",),
    "cpu_governor": ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",),
}


@dataclass(frozen=True)
class PhoneIdentity:
    """What does not change while a phone runs. `emulated` phones run programs of the computer that emulates them."""

    manufacturer: str | None
    model: str | None
    android: str | None
    sdk: int | None
    build: str | None
    soc: str | None
    abi: str | None
    gpu: str | None
    emulated: bool


@dataclass(frozen=True)
class PhoneState:
    """What changes while a phone runs."""

    gpu_clock_mhz: float | None
    gpu_max_clock_mhz: float | None
    gpu_busy_percent: float | None
    gpu_governor: str | None
    cpu_governor: str | None
    gpu_temperature_c: float | None
    battery_percent: float | None
    battery_temperature_c: float | None
    charging: bool | None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


IDENTITY_COMMAND = "; ".join(
    [f"printf '{name}=%s\\n' \"$(getprop {key})\"" for name, key in _PROPERTIES.items()]
    + [f"printf 'gpu=%s\\n' \"$(cat {_FILES['gpu'][0]} 2>/dev/null)\""]
)

STATE_COMMAND = "; ".join(
    [
        f"printf '{name}=%s\\n' \"$({' || '.join(f'cat {path} 2>/dev/null' for path in paths)})\""
        for name, paths in _FILES.items()
        if name != "gpu"
    ]
    + [
        "for z in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31; do "
        "d=/sys/class/thermal/thermal_zone$z; [ -r $d/temp ] && "
        'printf "zone:%s=%s\\n" "$(cat $d/type 2>/dev/null)" "$(cat $d/temp 2>/dev/null)"; done',
        "dumpsys battery 2>/dev/null | sed -nE 's/^ *(level|status|temperature): */battery_\\1=/p'",
    ]
)


# In the order of preference; the index stands for the path in what the phone prints, so no path is taken from there.
_WATCHABLE = tuple(
    (name, path)
    for name, key in (("gpu_temperature_c", "gpu_temperature"), ("gpu_clock_mhz", "gpu_clock"))
    for path in _FILES[key]
)
STATE_FILES_COMMAND = "; ".join(
    [f"printf 'file{k}=%s\\n' \"$(cat {path} 2>/dev/null)\"" for k, (_, path) in enumerate(_WATCHABLE)]
    + [
        # `read` costs no process, and phones have a hundred zones.
        "z=0; while [ $z -lt 128 ]; do d=/sys/class/thermal/thermal_zone$z; "
        "[ -r $d/type ] && read -r t <$d/type && case $t in "
        "gpu*) printf 'zone%s=%s\\n' $z \"$(cat $d/temp 2>/dev/null)\";; esac; z=$((z+1)); done 2>/dev/null"
    ]
)


def parse_state_files(text: str) -> tuple[StateFile, ...]:
    """Read what `STATE_FILES_COMMAND` printed: at most one temperature, which comes first, and one clock."""
    values = parse_lines(text)
    found: dict[str, StateFile] = {}
    for k, (name, path) in enumerate(_WATCHABLE):
        value_text = values.get(f"file{k}", "")
        value = _number(value_text)
        if value is None or name in found:
            continue
        if name == "gpu_clock_mhz" and value > 0:
            found[name] = StateFile(name, path, 1e6)
        elif name == "gpu_temperature_c" and _celsius(value_text) is not None:
            found[name] = StateFile(name, path, _temperature_scale(value))
    if "gpu_temperature_c" not in found:
        for zone in range(128):
            value = _number(values.get(f"zone{zone}"))
            if value is not None and _celsius(values[f"zone{zone}"]) is not None:
                path = f"/sys/class/thermal/thermal_zone{zone}/temp"
                found["gpu_temperature_c"] = StateFile("gpu_temperature_c", path, _temperature_scale(value))
                break
    return tuple(sorted(found.values(), key=lambda file: file.name != "gpu_temperature_c"))


def _temperature_scale(value: float) -> float:
    return 1000.0 if abs(value) >= 1000 else 1.0


def parse_lines(text: str) -> dict[str, str]:
    """`name=value` lines of a phone; unprintable letters and long values are cut, empty values left out."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        clean = "".join(letter for letter in value.strip() if letter.isprintable())[:_VALUE_MAX]
        if separator and clean and len(name) <= _VALUE_MAX and name.isprintable():
            values[name] = clean
    return values


def parse_identity(text: str) -> PhoneIdentity:
    """Read what `IDENTITY_COMMAND` printed."""
    values = parse_lines(text)
    sdk = values.get("sdk", "")
    return PhoneIdentity(
        manufacturer=values.get("manufacturer"),
        model=values.get("model"),
        android=values.get("android"),
        sdk=int(sdk) if sdk.isascii() and sdk.isdigit() else None,
        build=values.get("build"),
        soc=values.get("soc") or values.get("platform"),
        abi=values.get("abi"),
        gpu=values.get("gpu"),
        emulated=values.get("emulated") == "1",
    )


def parse_state(text: str) -> PhoneState:
    """Read what `STATE_COMMAND` printed."""
    values = parse_lines(text)
    zones = {
        name.removeprefix("zone:"): temperature
        for name, value in values.items()
        if name.startswith("zone:") and (temperature := _celsius(value)) is not None
    }
    battery_temperature = _number(values.get("battery_temperature"))
    status = values.get("battery_status")
    return PhoneState(
        gpu_clock_mhz=_mhz(values.get("gpu_clock")),
        gpu_max_clock_mhz=_mhz(values.get("gpu_max_clock")),
        gpu_busy_percent=_number((values.get("gpu_busy") or "").rstrip(" %")),
        gpu_governor=values.get("gpu_governor"),
        cpu_governor=values.get("cpu_governor"),
        gpu_temperature_c=_celsius(values.get("gpu_temperature")),
        battery_percent=_number(values.get("battery_level")),
        battery_temperature_c=None if battery_temperature is None else battery_temperature / 10,
        charging=None if status is None else status in ("2", "5"),  # BatteryManager: charging, full
        temperatures_c=zones,
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mhz(text: str | None) -> float | None:
    hertz = _number(text)
    return None if hertz is None else hertz / 1e6


def _celsius(text: str | None) -> float | None:
    """Thermal files hold thousandths of a degree, some old kernels degrees; a zone that is off shows a huge value."""
    value = _number(text)
    if value is None:
        return None
    degrees = value / _temperature_scale(value)
    return degrees if -40 < degrees < 150 else None
