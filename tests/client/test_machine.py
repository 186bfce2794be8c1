"""What Linux says about a device, and what is not known stays unknown."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.machine import Machine, available_memory, memory_limit, own_group
from tests.client.machines import PID, busy, interface, machine, process, routes, supply, write


def test_a_machine_that_says_nothing_is_not_known(tmp_path: Path) -> None:
    silent = Machine(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert silent.mains_power() is None
    assert silent.battery() is None
    assert silent.temperature() is None
    assert silent.networks() is None
    assert silent.load() is None
    assert silent.usage() is None
    assert silent.free_memory() is None


@pytest.mark.parametrize(
    ("supplies", "fed"),
    [
        ({}, None),
        ({"AC": {"type": "Mains", "online": "1"}}, True),
        ({"AC": {"type": "Mains", "online": "0"}}, False),
        ({"AC": {"type": "Mains"}}, None),
        ({"AC": {"type": "Mains", "online": "0"}, "usb": {"type": "USB", "online": "1"}}, True),
        ({"BAT": {"type": "Battery", "status": "Charging"}}, True),
        ({"BAT": {"type": "Battery", "status": "Full"}}, True),
        ({"BAT": {"type": "Battery", "status": "Unknown"}}, None),
        ({"BAT": {"type": "Battery", "status": "Discharging"}}, False),
        # A charger that is too weak: the battery empties all the same.
        (
            {
                "AC": {"type": "Mains", "online": "1"},
                "BAT": {"type": "Battery", "status": "Discharging"},
            },
            False,
        ),
        ({"mouse": {"type": "Battery", "status": "Discharging", "scope": "Device"}}, None),
    ],
)
def test_mains_power(tmp_path: Path, supplies: dict[str, dict[str, str]], fed: bool | None) -> None:
    there = machine(tmp_path)
    for name, values in supplies.items():
        supply(there, name, **values)
    assert there.mains_power() is fed


@pytest.mark.parametrize(
    ("charges", "percent"),
    [(["80"], 80.0), (["80", "20"], 20.0), (["80", ""], None), (["101"], None), (["-1"], None)],
)
def test_battery(tmp_path: Path, charges: list[str], percent: float | None) -> None:
    there = machine(tmp_path)
    for number, charge in enumerate(charges):
        supply(there, f"BAT{number}", type="Battery", capacity=charge)
    assert there.battery() == percent


def test_kinds_of_interfaces(tmp_path: Path) -> None:
    there = machine(tmp_path)
    interface(there, "eth0")
    (interface(there, "wlp2s0") / "wireless").mkdir()
    interface(there, "wlan9", event="DEVTYPE=wlan")
    interface(there, "wwan0", event="DEVTYPE=wwan", kind="65534")
    interface(there, "usb0", driver="rndis_host")
    interface(there, "usb1", driver="cdc_ether")
    interface(there, "tun0", driver=None, kind="65534")
    interface(there, "veth1", driver=None)
    (interface(there, "br0", event="DEVTYPE=bridge", driver=None) / "lower_eth0").mkdir()
    mixed = interface(there, "bond0", event="DEVTYPE=bond", driver=None)
    (mixed / "lower_eth0").mkdir()
    (mixed / "lower_wlp2s0").mkdir()
    loop = interface(there, "loop1", event="DEVTYPE=bridge", driver=None)
    (loop / "lower_loop1").mkdir()
    kinds = {
        "eth0": "wired",
        "wlp2s0": "wifi",
        "wlan9": "wifi",
        "wwan0": "mobile",
        "usb0": "mobile",
        "usb1": None,
        "tun0": None,
        "veth1": None,
        "br0": "wired",
        "bond0": None,
        "loop1": None,
        "absent": None,
    }
    for name, kind in kinds.items():
        routes(there, {name: 100})
        assert there.networks() == (None if kind is None else frozenset({kind})), name


def test_the_route_with_the_least_metric_counts(tmp_path: Path) -> None:
    there = machine(tmp_path)
    interface(there, "eth0")
    (interface(there, "wlan0") / "wireless").mkdir()
    routes(there, {"eth0": 100, "wlan0": 600})
    assert there.networks() == frozenset({"wired"})
    routes(there, {"eth0": 600, "wlan0": 600})
    assert there.networks() == frozenset({"wired", "wifi"})
    interface(there, "tun0", driver=None)
    routes(there, {"eth0": 600, "tun0": 600})
    assert there.networks() is None
    routes(there, {})
    assert there.networks() is None


def test_a_network_of_ipv6_alone(tmp_path: Path) -> None:
    there = machine(tmp_path)
    (interface(there, "wlan0") / "wireless").mkdir()
    nowhere = "0" * 32
    gateway = "fe80" + "0" * 27 + "1"
    lines = [
        f"{nowhere} 00 {nowhere} 00 {gateway} 00000400 00000001 00000000 00000003 wlan0",
        f"{nowhere} 00 {nowhere} 00 {nowhere} ffffffff 00000001 00000000 00200200 lo",
    ]
    write(there.proc / "net" / "ipv6_route", "\n".join(lines))
    assert there.networks() == frozenset({"wifi"})


def test_usage_counts_this_process_and_its_descendants(tmp_path: Path) -> None:
    there = machine(tmp_path)
    busy(there, busy=30.0, idle=70.0, own=2.0, load=1.5)
    process(there, 5000, parent=PID, seconds=3.0)
    process(there, 5001, parent=5000, seconds=4.0)
    process(there, 6000, parent=1, seconds=50.0)
    usage = there.usage()
    assert usage is not None
    assert (usage.busy, usage.total, usage.own) == (30.0, 100.0, 9.0)
    assert there.family() == {PID, 5000, 5001}
    assert there.load() == 1.5


def test_what_our_worker_holds_is_not_taken_by_others(tmp_path: Path) -> None:
    there = machine(tmp_path)
    write(there.proc / "meminfo", "MemAvailable: 1000 kB")
    process(there, PID, parent=1, held_kib=64)
    process(there, 5000, parent=PID, held_kib=500)
    process(there, 6000, parent=1, held_kib=900)
    assert there.free_memory() == 1500 * 1024


def test_every_group_around_a_service_limits_it(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    write(meminfo, "MemAvailable: 8000000 kB")
    outer, inner = tmp_path / "a.slice", tmp_path / "a.slice" / "b.service"
    write(outer / "memory.max", "900000")
    write(outer / "memory.current", "100000")
    write(inner / "memory.max", "max")
    assert available_memory(meminfo, tmp_path, "a.slice/b.service") == 800_000
    assert memory_limit(tmp_path, "a.slice/b.service") == 900_000
    # What the kernel only caches would be given up first.
    write(outer / "memory.stat", "anon 1\ninactive_file 50000\nactive_file 7")
    assert available_memory(meminfo, tmp_path, "a.slice/b.service") == 850_000
    assert available_memory(meminfo, tmp_path) == 8_192_000_000
    assert memory_limit(tmp_path) is None


def test_the_group_of_a_process(tmp_path: Path) -> None:
    table = tmp_path / "cgroup"
    assert own_group(table) == ""
    write(table, "1:name=systemd:/x\n0::/system.slice/fedslm-client.service")
    assert own_group(table) == "system.slice/fedslm-client.service"


def test_a_group_cannot_lead_out_of_its_root(tmp_path: Path) -> None:
    write(tmp_path / "memory.max", "5")
    (tmp_path / "root").mkdir()
    assert memory_limit(tmp_path / "root", "../..") is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's own files")
def test_this_machine_counts_what_a_child_uses() -> None:
    here = Machine()
    before = here.usage()
    assert before is not None
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        deadline = time.monotonic() + 20.0
        while True:
            after = here.usage()
            assert after is not None
            assert child.pid in here.family()
            if after.own - before.own > 0.1 or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    assert after.own - before.own > 0.1
    assert after.busy > before.busy
    assert os.getpid() in here.family()
    memory, load = here.free_memory(), here.load()
    assert memory is not None
    assert memory > 0
    assert load is not None
