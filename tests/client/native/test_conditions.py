"""The owner's conditions: the native client judges a machine as the Python client does."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from client.conditions import Conditions
from client.machine import Machine
from tests.client.device import policy_tables, toml
from tests.client.machines import PID, busy, interface, machine, routes, supply, write
from tests.client.native.build import run, sanitized

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DIGEST = "0" * 64
CONF = f"""
server = localhost:9092
ca = ca.crt
key = node.key
client_index = 0
step = step
step_digest = {DIGEST}
factors = factors.f32
factors_digest = {DIGEST}
examples = examples.tok
state = state
config_digest = {DIGEST}
mode = client-central
max_rounds = 1
max_epsilon = 1
delta = 1e-6
min_noise_multiplier = 1
"""
ASKED: dict[str, Any] = {
    "mains_power": True,
    "networks": ["wired", "wifi"],
    "max_load": 0.5,
    "min_free_memory_mb": 900,
    "min_battery_percent": 40,
    "max_temperature_celsius": 60.5,
    "pause_when_busy": True,
}


def said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)


def judged(conf: Path, *words: str) -> tuple[int, dict[str, bool], str]:
    status, told, _ = run("conditions", str(conf), *words, client=sanitized())
    lines = [line.split(" ", 2) for line in told.splitlines()]
    return status, {name.rstrip(":"): word == "holds" for word, name, _ in lines}, told


def write_conf(folder: Path, **keys: object) -> Path:
    path = folder / "client.conf"
    text = "".join(f"{name} = {said(value)}\n" for name, value in keys.items())
    path.write_text(CONF + text, encoding="utf-8")
    return path


def change(there: Machine, draw: random.Random, look: int) -> None:
    """Let a machine be in some state, or say nothing of a part of it."""
    if draw.random() < 0.8:
        status = draw.choice(["Charging", "Full", "Discharging", "Unknown"])
        charge = draw.choice(["39", "40", "100", "101", "", "x"])
        supply(there, "BAT0", type="Battery", status=status, capacity=charge)
    if draw.random() < 0.5:
        kind = draw.choice(["Mains", "USB_C", "Wireless"])
        supply(there, "AC", type=kind, online=draw.choice(["0", "1", ""]))
    if draw.random() < 0.3:
        supply(there, "mouse", type="Battery", status="Discharging", capacity="1", scope="Device")
    for zone in range(draw.randrange(3)):
        heat = draw.choice(["60500", "60501", "-274000", "0", "x", "20000"])
        write(there.sys / "class" / "thermal" / f"thermal_zone{zone}" / "temp", heat)
    if look == 0:
        interface(there, "eth0")
        interface(there, "usb0", driver=draw.choice(["rndis_host", "cdc_ncm"]))
        (interface(there, "wlan0") / "wireless").mkdir()
        (interface(there, "br0", event="DEVTYPE=bridge", driver=None) / "lower_eth0").mkdir()
    names = draw.sample(["eth0", "usb0", "wlan0", "br0", "tun0"], draw.randrange(3))
    routes(there, {name: draw.choice([100, 600]) for name in names})
    free = draw.choice([800, 900, 2000])
    write(there.proc / "meminfo", f"MemTotal: 9 kB\nMemAvailable: {free * 1024} kB")
    write(there.proc / "self" / "cgroup", "0::/a.slice/b.service")
    write(there.sys / "fs" / "cgroup" / "a.slice" / "memory.max", str(1000 << 20))
    write(there.sys / "fs" / "cgroup" / "a.slice" / "memory.current", str(200 << 20))
    cached = draw.choice([0, 100, 150]) << 20
    stat = f"anon 1\ninactive_file {cached}"
    write(there.sys / "fs" / "cgroup" / "a.slice" / "memory.stat", stat)
    others, own = draw.choice([0.0, 4.0, 6.0]), draw.choice([0.0, 3.0])
    busy(
        there,
        busy=100 + 10 * look + others + own,
        idle=100 + 30 * look,
        own=3 * look + own,
        load=draw.choice([0.0, 1.1, 9.0]),
    )


@pytest.mark.parametrize("seed", range(12))
def test_it_judges_as_the_python_client(tmp_path: Path, seed: int) -> None:
    draw, clock = random.Random(seed), [1000.0]
    there = machine(tmp_path / "machine")
    policy = tmp_path / "policy.toml"
    policy.write_text(toml(policy_tables(conditions=ASKED)), encoding="utf-8")
    python = Conditions(policy, machine=there, seconds=lambda: clock[0])
    roots = []
    for look in range(3):
        change(there, draw, look)
        roots.append(tmp_path / f"look-{look}")
        shutil.copytree(tmp_path / "machine", roots[-1], symlinks=True)
        expected = {one.name: one.met for one in python.report()}
        status, found, told = judged(
            write_conf(tmp_path, **ASKED), str(PID), *(str(root) for root in roots)
        )
        assert found == expected, told
        assert status == (0 if all(expected.values()) else 24)
        clock[0] += 10.0


def test_hours_of_the_day(tmp_path: Path) -> None:
    always = judged(write_conf(tmp_path, hours="00:00-24:00"))
    assert always[:2] == (0, {"hours": True})
    halves = [judged(write_conf(tmp_path, hours=w))[0] for w in ("03:00-15:00", "15:00-03:00")]
    assert sorted(halves) == [0, 24]
    assert judged(write_conf(tmp_path, hours="03:00-15:00, 15:00-03:00"))[0] == 0


@pytest.mark.parametrize(
    "keys",
    [
        {"hours": "22:00-22:00"},
        {"hours": "25:00-26:00"},
        {"hours": "24:00-01:00"},
        {"hours": "9:00-10:00"},
        {"networks": "bluetooth"},
        {"mains_power": "maybe"},
        {"max_load": 0},
        {"max_load": "nan"},
        {"min_battery_percent": 101},
        {"min_free_memory_mb": 0},
        {"min_battery": 40},
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    status, told, _ = run("conditions", str(write_conf(tmp_path, **keys)), client=sanitized())
    assert (status, told.split(":")[0]) == (10, "config")
