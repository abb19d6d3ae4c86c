"""The machine's state, read from files a test can make."""

from __future__ import annotations

from pathlib import Path

from device.host_facts import host_facts


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_clocks_governors_and_temperatures_are_read(tmp_path: Path) -> None:
    for cpu, khz in enumerate((1_800_000, 2_400_000)):
        write(tmp_path / f"cpu/cpu{cpu}/cpufreq/scaling_governor", "powersave\n")
        write(tmp_path / f"cpu/cpu{cpu}/cpufreq/scaling_cur_freq", f"{khz}\n")
    write(tmp_path / "thermal/thermal_zone0/temp", "45500\n")
    write(tmp_path / "thermal/thermal_zone0/type", "x86_pkg_temp\n")
    write(tmp_path / "thermal/thermal_zone1/temp", "broken\n")
    write(tmp_path / "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU\ncpu MHz\t: 99.5\n")
    facts = host_facts(tmp_path / "cpu", tmp_path / "thermal", tmp_path / "proc")
    assert facts["governors"] == ["powersave"]
    assert facts["cpu_mhz"] == [1800, 2400]
    assert facts["temperatures_c"] == {"thermal_zone0:x86_pkg_temp": 45.5}
    assert facts["cpu_model"] == "Some CPU"


def test_what_a_container_hides_is_absent_or_comes_from_cpuinfo(tmp_path: Path) -> None:
    write(tmp_path / "proc/cpuinfo", "cpu MHz\t: 2596.132\ncpu MHz\t: bad\n")
    facts = host_facts(tmp_path / "none", tmp_path / "none", tmp_path / "proc")
    assert facts["cpu_mhz"] == [2596.132]
    assert not {"governors", "temperatures_c", "cpu_model"} & set(facts)
