"""A device works when its owner's conditions hold; what is not known does not hold."""

from __future__ import annotations

import math
import os
import zoneinfo
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.conditions import CALM_SECONDS, Condition, Conditions
from client.machine import Machine
from client.policy import ClientPolicy
from client.policyfile import TEMPLATE, read_policy_file
from shared.errors import InvalidValue, UnknownKey
from tests.client.device import policy_tables, toml
from tests.client.machines import PID, busy, interface, machine, process, routes, supply, write

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
CORES = os.cpu_count() or 1


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


def write_conditions(folder: Path, **keys: Any) -> Path:
    path = folder / "policy.toml"
    path.write_text(toml(policy_tables(conditions=keys)), encoding="utf-8")
    return path


def one(
    folder: Path, there: Machine | None = None, *, now: datetime = NOON, **keys: Any
) -> Condition:
    """Return the judgement of a policy with one condition."""
    place = machine(folder) if there is None else there
    conditions = Conditions(write_conditions(folder, **keys), machine=place, now=lambda: now)
    [condition] = conditions.report()
    assert conditions() == (() if condition.met else (reason(condition),))
    return condition


def reason(condition: Condition) -> str:
    return f"{condition.name}: {condition.found}; wanted: {condition.wanted}"


def test_a_policy_without_the_section_asks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(toml(policy_tables()), encoding="utf-8")
    assert Conditions(path)() == ()
    empty = write_conditions(tmp_path)
    assert Conditions(empty)() == ()


def test_a_policy_that_cannot_be_used_holds_everything_back(tmp_path: Path) -> None:
    conditions = Conditions(tmp_path / "policy.toml")
    assert conditions() == (
        "policy: not usable [policy-refused]; wanted: a policy file that can be used",
    )
    (tmp_path / "policy.toml").write_text("schema = ", encoding="utf-8")
    assert "not usable [invalid-value]" in conditions()[0]
    write_conditions(tmp_path)
    assert conditions() == ()


def test_a_changed_policy_counts_at_once(tmp_path: Path) -> None:
    path = write_conditions(tmp_path, hours=["11:00-13:00"])
    conditions = Conditions(path, now=lambda: NOON)
    assert conditions() == ()
    write_conditions(tmp_path, hours=["13:00-14:00"])
    assert conditions() == ("hours: it is 12:00; wanted: 13:00-14:00",)
    path.unlink()
    assert "policy-refused" in conditions()[0]


@pytest.mark.parametrize(
    ("windows", "clock", "met"),
    [
        (["22:00-06:00"], "22:00", True),
        (["22:00-06:00"], "23:59", True),
        (["22:00-06:00"], "00:00", True),
        (["22:00-06:00"], "05:59", True),
        (["22:00-06:00"], "06:00", False),
        (["22:00-06:00"], "21:59", False),
        (["09:00-17:30"], "09:00", True),
        (["09:00-17:30"], "17:30", False),
        (["00:00-24:00"], "23:59", True),
        (["18:00-24:00"], "00:00", False),
        (["12:00-13:00", "02:00-03:00"], "02:30", True),
        (["12:00-13:00", "02:00-03:00"], "03:30", False),
    ],
)
def test_windows(tmp_path: Path, windows: list[str], clock: str, met: bool) -> None:
    now = datetime.fromisoformat(f"2026-05-04T{clock}:30+00:00")
    assert one(tmp_path, now=now, hours=windows).met is met


@given(start=st.integers(0, 1439), length=st.integers(1, 1439), minute=st.integers(0, 1439))
def test_a_window_is_as_long_as_it_says(start: int, length: int, minute: int) -> None:
    from client.conditions import _hours

    end = (start + length) % 1440
    text = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    now = datetime(2026, 5, 4, tzinfo=UTC) + timedelta(minutes=minute)
    assert _hours((text,), now).met is ((minute - start) % 1440 < length)


def test_the_wall_clock_decides_over_a_change_to_summer_time(tmp_path: Path) -> None:
    berlin = zoneinfo.ZoneInfo("Europe/Berlin")
    found = []
    # 2026-03-29: the clock goes from 01:59 to 03:00.
    for hour in range(4):
        now = datetime(2026, 3, 28, 23, 30, tzinfo=UTC) + timedelta(hours=hour)
        condition = one(tmp_path, now=now.astimezone(berlin), hours=["22:00-02:30"])
        found.append((condition.found, condition.met))
    assert found == [
        ("it is 00:30", True),
        ("it is 01:30", True),
        ("it is 03:30", False),
        ("it is 04:30", False),
    ]
    # 2026-10-25: 02:30 comes twice, and is in the window twice.
    both = [
        one(tmp_path, now=now.astimezone(berlin), hours=["02:00-03:00"]).met
        for now in (datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in range(4))
    ]
    assert both == [True, True, False, False]


@pytest.mark.parametrize(
    "window", ["22-06", "22:00", "24:00-06:00", "22:60-23:00", "06:00-06:00", "7:00-8:00", ""]
)
def test_a_window_that_is_none_is_refused(tmp_path: Path, window: str) -> None:
    path = write_conditions(tmp_path, hours=[window])
    with pytest.raises(InvalidValue, match=r"conditions\.hours: found .*HH:MM-HH:MM"):
        read_policy_file(path)


@pytest.mark.parametrize(
    "keys",
    [
        {"hours": []},
        {"networks": []},
        {"networks": ["lan"]},
        {"max_load": 0.0},
        {"min_free_memory_mb": 0},
        {"min_free_memory_mb": 1.5},
        {"min_battery_percent": 101},
        {"min_battery_percent": 0},
        {"max_temperature_celsius": -1.0},
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=r"conditions\."):
        read_policy_file(write_conditions(tmp_path, **keys))


def test_an_unknown_condition_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownKey, match="mains_power"):
        read_policy_file(write_conditions(tmp_path, mains_powr="x"))


def test_the_template_with_its_conditions_is_a_policy(tmp_path: Path) -> None:
    _, _, rest = TEMPLATE.partition("# [conditions]")
    section, _, _ = rest.partition("\n\n")
    lines = [line.removeprefix("# ") for line in section.splitlines()]
    path = tmp_path / "policy.toml"
    path.write_text("\n".join([toml(policy_tables()), "[conditions]", *lines]), encoding="utf-8")
    asked = read_policy_file(path).conditions
    assert asked is not None
    assert asked.model_fields_set == set(type(asked).model_fields)
    assert ClientPolicy.load(path).modes == {"example"}


def test_power(tmp_path: Path) -> None:
    there = machine(tmp_path)
    assert one(tmp_path, there, mains_power=True) == (
        "mains_power",
        False,
        "this system does not say",
        "mains power",
    )
    supply(there, "AC", type="Mains", online="0")
    assert one(tmp_path, there, mains_power=True).found == "on battery"
    supply(there, "AC", type="Mains", online="1")
    assert one(tmp_path, there, mains_power=True).met


def test_network(tmp_path: Path) -> None:
    there = machine(tmp_path)
    assert one(tmp_path, there, networks=["wired", "wifi"]).found == "not known"
    interface(there, "usb0", driver="rndis_host")
    routes(there, {"usb0": 100})
    assert not one(tmp_path, there, networks=["wired", "wifi"]).met
    interface(there, "eth0")
    routes(there, {"usb0": 600, "eth0": 100})
    assert one(tmp_path, there, networks=["wired", "wifi"]).met
    routes(there, {"usb0": 100, "eth0": 100})
    mixed = one(tmp_path, there, networks=["wired"])
    assert (mixed.met, mixed.found) == (False, "mobile and wired")


def test_memory(tmp_path: Path) -> None:
    there = machine(tmp_path)
    assert not one(tmp_path, there, min_free_memory_mb=1).met
    write(there.proc / "meminfo", f"MemAvailable: {1024 * 1024} kB")
    assert one(tmp_path, there, min_free_memory_mb=1024).met
    assert not one(tmp_path, there, min_free_memory_mb=1025).met


def test_battery(tmp_path: Path) -> None:
    there = machine(tmp_path)
    assert one(tmp_path, there, min_battery_percent=1).found == "not known"
    supply(there, "BAT", type="Battery", capacity="40")
    supply(there, "mouse", type="Battery", capacity="3", scope="Device")
    assert one(tmp_path, there, min_battery_percent=40).met
    found = one(tmp_path, there, min_battery_percent=41)
    assert found == ("min_battery_percent", False, "40 %", "at least 41 %")


def test_temperature(tmp_path: Path) -> None:
    there = machine(tmp_path)
    assert one(tmp_path, there, max_temperature_celsius=99.0).found == "not known"
    for name, text in (
        ("thermal_zone0", "45000"),
        ("thermal_zone1", "71500"),
        ("zone2", "-274000"),
    ):
        write(there.sys / "class" / "thermal" / name / "temp", text)
    assert one(tmp_path, there, max_temperature_celsius=71.5).met
    assert not one(tmp_path, there, max_temperature_celsius=71.4).met


def test_load_of_others_without_our_own(tmp_path: Path) -> None:
    there, clock = machine(tmp_path), Clock()
    path = write_conditions(tmp_path, max_load=0.5)
    conditions = Conditions(path, machine=there, seconds=clock)
    assert "not known" in conditions()[0]
    # Somebody else's load: judged at the first look.
    busy(there, busy=0.0, idle=0.0, own=0.0, load=0.6 * CORES)
    clock.at += 5.0
    assert "0.60 for each core" in conditions()[0]
    # Our own worker takes every core for ten minutes; the load average follows.
    for second in range(0, 601, 5):
        used = float(second) * CORES
        average = CORES * (1.0 - math.exp(-second / 60.0))
        busy(there, busy=used, idle=1.0, own=0.0, load=average)
        process(there, 5000, parent=PID, seconds=used)
        clock.at += 5.0
        conditions()
    assert conditions() == ()


def test_a_look_a_moment_later_is_not_a_new_one(tmp_path: Path) -> None:
    there, clock = machine(tmp_path), Clock()
    busy(there, busy=10.0, idle=0.0, own=0.0, load=2.0 * CORES)
    conditions = Conditions(write_conditions(tmp_path, max_load=1.0), machine=there, seconds=clock)
    assert len(conditions()) == 1
    busy(there, busy=10.0, idle=0.0, own=0.0, load=0.0)
    clock.at += 1.0
    assert len(conditions()) == 1
    clock.at += 1.0
    assert conditions() == ()


def test_work_stops_when_others_need_the_processor_and_waits_until_they_are_done(
    tmp_path: Path,
) -> None:
    there, clock = machine(tmp_path), Clock()
    path = write_conditions(tmp_path, pause_when_busy=True)
    conditions = Conditions(path, machine=there, seconds=clock)
    used, idle, own = 100.0, 100.0, 0.0

    def step(others: float, ours: float) -> tuple[str, ...]:
        """Let ten seconds pass in which others and we took shares of the processor."""
        nonlocal used, idle, own
        used, own = used + 10.0 * (others + ours), own + 10.0 * ours
        idle += 10.0 * (1.0 - others - ours)
        busy(there, busy=used, idle=idle, own=own, load=0.0)
        clock.at += 10.0
        return conditions()

    assert "not known yet" in step(0.0, 0.0)[0]
    assert step(0.1, 0.9) == ()
    assert "other programs use 60% of the processor" in step(0.6, 0.4)[0]
    waits = 0
    while reasons := step(0.1, 0.0):
        assert "within 60 s" in reasons[0]
        waits += 1
    assert waits == CALM_SECONDS / 10.0 - 1


def test_a_clock_that_stands_still_is_not_known(tmp_path: Path) -> None:
    there, clock = machine(tmp_path), Clock()
    busy(there, busy=1.0, idle=1.0, own=0.0, load=0.0)
    conditions = Conditions(
        write_conditions(tmp_path, pause_when_busy=True), machine=there, seconds=clock
    )
    for _ in range(3):
        clock.at += 5.0
        assert "not known yet" in conditions()[0]


def test_this_machine_can_be_judged(tmp_path: Path) -> None:
    path = write_conditions(
        tmp_path,
        hours=["00:00-24:00"],
        mains_power=True,
        networks=["wired", "wifi", "mobile"],
        max_load=1000.0,
        min_free_memory_mb=1,
        pause_when_busy=True,
    )
    found = {condition.name: condition for condition in Conditions(path).report()}
    assert list(found) == [
        "hours",
        "mains_power",
        "networks",
        "min_free_memory_mb",
        "max_load",
        "pause_when_busy",
    ]
    assert found["hours"].met
    assert found["min_free_memory_mb"].met
    assert found["max_load"].met
