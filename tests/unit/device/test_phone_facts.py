from __future__ import annotations

import pytest

from device.phone_facts import parse_state_files
from device.target import StateFile

KGSL = "/sys/class/kgsl/kgsl-3d0"
TEMPERATURE = StateFile("gpu_temperature_c", f"{KGSL}/temp", 1000.0)
CLOCK = StateFile("gpu_clock_mhz", f"{KGSL}/devfreq/cur_freq", 1e6)


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("file0=48500\nfile1=585000000\nfile2=585000000\nzone7=48000\n", (TEMPERATURE, CLOCK)),
        # The first clock is hidden, and this kernel counts whole degrees.
        (
            "file0=48\nfile1=\nfile2=585000000\n",
            (
                StateFile("gpu_temperature_c", f"{KGSL}/temp", 1.0),
                StateFile("gpu_clock_mhz", f"{KGSL}/gpuclk", 1e6),
            ),
        ),
        # A sensor that is off shows a huge value; the first zone of the GPU takes its place.
        (
            "file0=-274000\nzone21=900000000\nzone35=47100\nzone40=46000\n",
            (StateFile("gpu_temperature_c", "/sys/class/thermal/thermal_zone35/temp", 1000.0),),
        ),
        ("file1=0\nfile2=nan\n", ()),
        ("", ()),
        # Nothing that a phone prints becomes a path.
        ("file9=/etc/passwd\nzone200=47000\nzone-1=47000\nzone../x=1\n", ()),
    ],
)
def test_at_most_one_temperature_and_one_clock_are_watched(printed: str, found: tuple[StateFile, ...]) -> None:
    assert parse_state_files(printed) == found
