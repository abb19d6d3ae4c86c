from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from device.adb_target import AdbTarget
from tests.emulated_phone import EmulatedPhone, ThermalModel
from tests.emulated_phone.thermal import ThermalState, advance


def _after(model: ThermalModel, state: ThermalState, seconds: float, *, busy: bool) -> ThermalState:
    for _ in range(round(seconds / 0.01)):
        state = advance(model, state, 0.01, busy=busy)
    return state


def test_an_unthrottled_phone_warms_up_as_newtons_law_says() -> None:
    model = ThermalModel(limit_c=1000.0)
    warm = _after(model, ThermalState(model.ambient_c), 20.0, busy=True)
    exact = model.ambient_c + model.heating_c_per_s * model.cooling_time_s * (1 - math.exp(-20 / model.cooling_time_s))
    assert warm.temperature_c == pytest.approx(exact, rel=1e-3)  # Euler steps of 10 ms against a 30 s time constant


def test_a_phone_throttles_under_load_holds_the_limit_and_recovers_at_rest() -> None:
    model = ThermalModel()
    assert _after(model, ThermalState(model.ambient_c), 5.0, busy=True).level == 0
    hot = _after(model, ThermalState(model.ambient_c), 60.0, busy=True)
    assert hot.level > 0
    # One step of the governor may overshoot by what half a second of full heating adds.
    assert hot.temperature_c < model.limit_c + model.heating_c_per_s * model.step_s * len(model.clocks_mhz)
    assert _after(model, hot, 60.0, busy=False).level == 0


def test_a_throttled_phone_shows_its_clock_and_its_programs_measure_longer(
    tmp_path: Path, key: Path, connect: Callable[..., AdbTarget]
) -> None:
    # Heats to the limit in a second, then stays at half the clock.
    model = ThermalModel(
        clocks_mhz=(600.0, 300.0), heating_c_per_s=50.0, cooling_time_s=1000.0, limit_c=70.0, recover_c=0.0, step_s=0.0
    )
    with EmulatedPhone(tmp_path / "phone", thermal_model=model) as phone:
        phone.authorisation.allow(key.with_name("adbkey.pub").read_bytes())
        target = connect(phone)
        assert target.facts()["gpu_clock_mhz"] == 600.0
        program = phone.files.host_path("/data/local/tmp/warm")
        # Compares two clocks of which the phone stretches one.
        program.write_text(
            f"#!/bin/sh\n{sys.executable} -c '\nimport time\ntime.sleep(2.0)\nm, r = time.monotonic(), time.time()\n"
            "time.sleep(0.5)\nprint((time.monotonic() - m) / (time.time() - r))\n'\n"
        )
        program.chmod(0o755)
        result = target.shell(["/data/local/tmp/warm"], timeout_s=30)
        assert result.status == 0, result.stderr
        # Two clocks read one after the other, half a second apart, on a busy machine.
        assert float(result.stdout) == pytest.approx(2.0, rel=0.05)
        facts = target.facts()
        assert facts["gpu_clock_mhz"] == 300.0
        assert facts["gpu_temperature_c"] > 70
        assert phone.thermals is not None
        assert [step.mhz for step in phone.thermals.history] == [600.0, 300.0]
