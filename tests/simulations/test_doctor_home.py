"""``fedslm doctor --home``: each check on a healthy and on an ailing folder."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.home import DeviceHome
from server.home import ServerConfig, ServerHome
from simulations import doctor
from simulations.cli import run
from simulations.doctor_home import certificate, check_home, clock_skew, port_state
from simulations.doctor_machine import Check, memory_group, randomness
from tests.shared.tlsserver import serving
from tests.simulations.devices import device


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def server(path: Path) -> ServerHome:
    fleet, control, dashboard, superlink = free_ports(4)
    config = ServerConfig(
        name="clinic",
        fleet_port=fleet,
        control_port=control,
        dashboard_port=dashboard,
        superlink_port=superlink,
    )
    return ServerHome.create(path, config)


def found(home: Path) -> dict[str, Check]:
    checks = list(check_home(home))
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        assert check.found
        assert check.expected
        assert (check.hint == "") == (check.status == "ok"), check
        assert str(home) not in "".join(check)
    return {check.name: check for check in checks}


def statuses(home: Path) -> dict[str, str]:
    return {name: check.status for name, check in found(home).items() if check.status != "ok"}


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    assert statuses(tmp_path) == {"home": "failed"}
    assert statuses(tmp_path / "absent") == {"home": "failed"}


def test_a_healthy_server(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    assert statuses(home.path) == {}
    assert list(found(home.path)) == [
        "keys",
        "authority-certificate",
        "server-certificate",
        "settings",
        "port-fleet",
        "port-control",
        "port-dashboard",
        "port-superlink",
    ]


def test_a_key_that_others_may_read(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    home.adapter_key.chmod(0o644)
    home.keys.chmod(0o750)
    keys = found(home.path)["keys"]
    assert keys.status == "failed"
    assert "keys/adapter.key has mode 644" in keys.found
    assert "keys has mode 750" in keys.found


def test_settings_that_are_wrong(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    home.config_path.write_text("name = 5", encoding="utf-8")
    assert statuses(home.path) == {"settings": "failed"}
    home.config_path.write_bytes(b"\xff")
    assert statuses(home.path) == {"settings": "failed"}


def test_a_port_in_use(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    with socket.create_server(("127.0.0.1", home.config.control_port)):
        assert statuses(home.path) == {"port-control": "warning"}
    assert port_state("p", "203.0.113.7", 9092).status == "failed"


def test_certificates_and_the_calendar(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    now = datetime.now(UTC)

    def status(days: float) -> str:
        at = now + timedelta(days=days)
        return certificate("c", home.server_certificate, "issue it", now=at).status

    assert [status(days) for days in (0, 330, 336, 364, 366, -32)] == [
        "ok",
        "ok",
        "warning",
        "warning",
        "failed",
        "failed",
    ]
    home.server_certificate.write_text("no certificate", encoding="ascii")
    home.ca_certificate.unlink()
    assert statuses(home.path) == {
        "authority-certificate": "failed",
        "server-certificate": "failed",
    }


def test_a_healthy_device(tmp_path: Path) -> None:
    with serving(tmp_path / "node") as site:
        (tmp_path / "node" / "ca.key").unlink()
        home = device(tmp_path / "node", fleet=site.address)
        checks = found(home.path)
    assert {name: check.status for name, check in checks.items()} == dict.fromkeys(
        [
            "keys",
            "authority-certificate",
            "device-certificate",
            "settings",
            "policy",
            "records",
            "server",
            "clock-skew",
        ],
        "ok",
    )
    assert checks["policy"].found == "modes example; budgets: example"


def _no_policy(home: DeviceHome) -> None:
    home.policy.unlink()


def _no_records(home: DeviceHome) -> None:
    assert home.config.data is not None
    Path(home.config.data).unlink()


def _open_key(home: DeviceHome) -> None:
    home.key.chmod(0o640)


def _no_key(home: DeviceHome) -> None:
    home.key.unlink()


def _no_authority(home: DeviceHome) -> None:
    home.ca.write_text("", encoding="ascii")


def _bad_settings(home: DeviceHome) -> None:
    home.node_file.write_text("name = 1", encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "ailing"),
    [
        (_no_policy, {"policy"}),
        (_no_records, {"records"}),
        (_open_key, {"keys"}),
        (_no_key, {"keys"}),
        (_no_authority, {"authority-certificate"}),
        (_bad_settings, {"settings"}),
    ],
)
def test_an_ailing_device(
    tmp_path: Path, harm: Callable[[DeviceHome], None], ailing: set[str]
) -> None:
    home = device(tmp_path / "node")
    harm(home)
    # Nobody listens at its server's address either.
    expected = dict.fromkeys(ailing, "failed")
    found_there = statuses(home.path)
    assert {name: s for name, s in found_there.items() if name != "server"} == expected


def test_a_device_that_names_no_records(tmp_path: Path) -> None:
    home = device(tmp_path / "node")
    text = home.node_file.read_text(encoding="utf-8")
    kept = [line for line in text.splitlines() if not line.startswith("data")]
    home.node_file.write_text("\n".join(kept), encoding="utf-8")
    assert found(home.path)["records"].found == "no file is named"


def test_a_wrong_clock_is_found_although_the_certificate_looks_expired(tmp_path: Path) -> None:
    with serving(tmp_path / "node", expired=True, date="Thu, 01 Jan 2026 00:00:00 GMT") as site:
        home = device(tmp_path / "node", fleet=site.address)
        checks = found(home.path)
    assert checks["server"].status == "ok"
    assert checks["clock-skew"].status == "warning"
    assert "ahead of the server" in checks["clock-skew"].found


@pytest.mark.parametrize(
    ("ahead", "status"),
    [(0.0, "ok"), (4.9, "ok"), (5.1, "warning"), (-299.0, "ok"), (-301.0, "warning")],
)
def test_clock_skew(ahead: float, status: str) -> None:
    assert clock_skew(ahead).status == status


def test_another_server_in_its_place(tmp_path: Path) -> None:
    with serving(tmp_path / "other") as site:
        home = device(tmp_path / "node", fleet=site.address)
        assert statuses(home.path) == {"server": "failed"}


def test_all_checks_with_a_home(tmp_path: Path) -> None:
    home = server(tmp_path / "server")
    names = [check.name for check in doctor.run_checks(home=home.path)]
    assert len(set(names)) == len(names)
    assert {"memory-limit", "randomness", "clock", "disk", "port-fleet"} <= set(names)


def test_the_command_looks_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = server(tmp_path / "server")
    home.adapter_key.chmod(0o644)
    assert run(["doctor", "--home", str(home.path), "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["checks"]["keys"]["status"] == "failed"
    assert shown["checks"]["port-fleet"]["status"] == "ok"


def test_the_limit_of_a_service(tmp_path: Path) -> None:
    table = tmp_path / "cgroup"
    table.write_text("0::/a.service\n", encoding="ascii")
    root = tmp_path / "root"
    (root / "a.service").mkdir(parents=True)
    assert memory_group(root, table).status == "ok"  # not mounted
    controllers = root / "cgroup.controllers"
    controllers.write_text("cpu pids\n", encoding="ascii")
    assert "does not limit" in memory_group(root, table).found
    controllers.write_text("cpu memory pids\n", encoding="ascii")
    assert memory_group(root, table).found == "none"
    for limit, status in ((2 * 1024**3, "ok"), (512 * 1024**2, "warning")):
        (root / "a.service" / "memory.max").write_text(f"{limit}\n", encoding="ascii")
        assert memory_group(root, table).status == status


def test_randomness(tmp_path: Path) -> None:
    assert randomness().status == "ok"
    assert randomness(tmp_path / "absent").status == "failed"
    (tmp_path / "short").write_bytes(b"x")
    assert randomness(tmp_path / "short").status == "failed"
