"""Energy from made device trees: what a kernel would write, and what must come out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shared.energy import Energy, EnergyMeter
from shared.errors import InvalidValue


def _write(folder: Path, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n", encoding="ascii")
    return folder


@pytest.fixture
def rapl(tmp_path: Path) -> Path:
    cap = tmp_path / "class" / "powercap"
    for name, said, count in (
        ("intel-rapl:0", "package-0", 990_000),
        ("intel-rapl:0:0", "core", 5),
        ("intel-rapl:0:1", "dram", 1_000),
        ("intel-rapl:1", "psys", 7),
        ("intel-rapl-mmio:0", "package-0", 990_000),
    ):
        _write(cap / name, name=said, energy_uj=count, max_energy_range_uj=1_000_000)
    return cap


def test_counters_of_packages_and_memory_are_added_and_run_over_once(rapl: Path) -> None:
    meter = EnergyMeter(rapl.parents[1])
    assert meter.start() == "counter"
    _write(rapl / "intel-rapl:0", energy_uj=30_000)  # 10,000 to the end, 30,000 after it
    _write(rapl / "intel-rapl:0:0", energy_uj=900_000)
    _write(rapl / "intel-rapl:0:1", energy_uj=61_000)
    _write(rapl / "intel-rapl:1", energy_uj=900_000)
    found = meter.stop()
    assert found.method == "counter"
    assert found.joules == pytest.approx(0.04 + 0.06)


def test_samples_add_up(rapl: Path) -> None:
    meter = EnergyMeter(rapl.parents[1])
    meter.start()
    for count in (400_000, 990_000, 400_000):  # a round and less than one more
        _write(rapl / "intel-rapl:0", energy_uj=count)
        meter.sample()
    assert meter.stop().joules == pytest.approx(0.41 + 0.59 + 0.41)


@pytest.mark.parametrize("span", ["", "1000"])
def test_a_counter_that_ran_over_by_more_than_its_range_says_nothing(rapl: Path, span: str) -> None:
    meter = EnergyMeter(rapl.parents[1])
    meter.start()
    _write(rapl / "intel-rapl:0", energy_uj=3, max_energy_range_uj=span)
    assert meter.stop().joules is None


def test_a_counter_that_goes_away_says_nothing(rapl: Path) -> None:
    meter = EnergyMeter(rapl.parents[1])
    meter.start()
    (rapl / "intel-rapl:0" / "energy_uj").unlink()
    found = meter.stop()
    assert (found.method, found.joules, found.watts) == ("none", None, None)


def test_counters_that_only_root_may_read_leave_the_battery(rapl: Path) -> None:
    (rapl / "intel-rapl:0" / "energy_uj").unlink()
    supply = rapl.parents[1] / "class" / "power_supply"
    _write(supply / "BAT0", type="Battery", status="Discharging", power_now=8_000_000)
    assert EnergyMeter(rapl.parents[1]).start() == "battery"


def test_a_battery_gives_its_mean_power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("shared.energy.time.monotonic", lambda: now[0])
    supply = tmp_path / "class" / "power_supply"
    _write(supply / "AC", type="Mains", online=0)
    _write(supply / "mouse", type="Battery", scope="Device", status="Discharging", power_now=9)
    battery = _write(supply / "BAT0", type="Battery", status="Discharging")
    _write(battery, current_now=-2_000_000, voltage_now=4_000_000)
    meter = EnergyMeter(tmp_path)
    assert meter.start() == "battery"
    _write(battery, current_now=-1_000_000)
    now[0] += 10
    found = meter.stop()
    assert found == Energy(joules=60.0, method="battery", seconds=10.0)
    assert found.watts == 6.0


@pytest.mark.parametrize(
    "files",
    [
        {"status": "Charging", "power_now": 5},
        {"status": "Discharging"},
        {"status": "Discharging", "current_now": "many", "voltage_now": 4},
    ],
)
def test_a_battery_that_says_nothing_is_no_method(tmp_path: Path, files: dict[str, object]) -> None:
    _write(tmp_path / "class" / "power_supply" / "BAT0", type="Battery", **files)
    meter = EnergyMeter(tmp_path)
    assert meter.start() == "none"
    assert meter.stop().joules is None


def test_a_charger_that_is_plugged_in_ends_the_battery(tmp_path: Path) -> None:
    supply = tmp_path / "class" / "power_supply" / "BAT0"
    _write(supply, type="Battery", status="Discharging", power_now=8_000_000)
    meter = EnergyMeter(tmp_path)
    meter.start()
    _write(supply, status="Charging")
    assert meter.stop().method == "none"


def test_an_estimate_is_processor_time_times_named_watts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [1.0]
    monkeypatch.setattr("shared.energy.time.process_time", lambda: used[0])
    meter = EnergyMeter(tmp_path, watts=3.0)
    assert meter.start() == "estimate"
    used[0] = 5.0
    assert meter.stop().joules == 12.0


@pytest.mark.parametrize("watts", [0.0, -1.0, math.nan, math.inf])
def test_watts_are_refused_unless_they_are_some(watts: float) -> None:
    with pytest.raises(InvalidValue, match="watts"):
        EnergyMeter(watts=watts)
