"""A real server, a real node, light ones and a hostile one: the run goes on, and nothing leaks."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.fleetdb import FleetDatabase
from tests.faults.fleet import Fleet, RealNode, check_books
from tests.hostile.mischief import (
    Deeds,
    Mischief,
    announced_only,
    another_kind,
    another_protocol,
    another_round,
    control_characters,
    honest,
    hostile_node,
    no_json,
    not_finite,
    speaks_for_another,
    too_long,
    wrong_shape,
    wrong_type,
)
from tests.server.fleetkit import family_of, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(300)]

LIGHT = 2
OTHERS = LIGHT + 1
"""Nodes that behave."""
MISCHIEFS: tuple[tuple[Mischief, int, str], ...] = (
    (honest, 1, ""),
    (no_json, 0, "schema-mismatch"),
    (not_finite, 1, "update-not-finite"),
    (wrong_shape, 0, "schema-mismatch"),
    (too_long, 1, "update-too-long"),
    (wrong_type, 0, "schema-mismatch"),
    (another_kind, 0, "schema-mismatch"),
    (another_protocol, 0, "schema-mismatch"),
    (another_round, 0, "schema-mismatch"),
    (control_characters, 0, "schema-mismatch"),
    (speaks_for_another, 0, "speaks-for-another"),
    (announced_only, 0, ""),
    (honest, 1, ""),
)
"""What the hostile node does in each round, whether its answer counts, and what it is flagged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A run that is over, with everything still running."""

    fleet: Fleet
    deeds: Deeds
    real: RealNode
    processes: tuple[int, ...]
    token: str


@pytest.fixture(scope="module", name="scene")
def _scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hostile")
    with ExitStack() as opened:
        fleet = Fleet(folder, opened)
        fleet.start_server()
        fleet.add_real(1)
        fleet.add_light(LIGHT)
        with FleetDatabase(fleet.home.fleet_database) as database:
            token = database.new_token("clinic-9", valid_seconds=600.0)
        plan = {number: mischief for number, (mischief, _, _) in enumerate(MISCHIEFS, 1)}
        deeds = opened.enter_context(hostile_node(fleet.home, "mallory", plan))
        [real] = fleet.nodes
        wait_until("four nodes", lambda: _present(fleet) == OTHERS + 1, seconds=90)
        fleet.order(
            "one",
            f"run.rounds={len(MISCHIEFS)}",
            f"clients.population={OTHERS + 1}",
            "server.quorum=0.75",
            # Time enough to load the model beside another fleet; one round waits for all of it.
            "server.deadline_seconds=30",
        )
        fleet.finish("one", seconds=200)
        assert fleet.supervisor is not None
        supervisor = fleet.supervisor.pid
        processes = (supervisor, *family_of(supervisor), *real.pids())
        yield Scene(fleet=fleet, deeds=deeds, real=real, processes=processes, token=token)


def _present(fleet: Fleet) -> int:
    """Return how many nodes have joined."""
    with FleetDatabase(fleet.home.fleet_database) as database:
        return sum(entry.flower_node_id is not None for entry in database.nodes())


def test_the_run_goes_on_whatever_one_node_does(scene: Scene) -> None:
    assert scene.deeds.done == [mischief.__name__ for mischief, _, _ in MISCHIEFS]
    assert scene.deeds.statuses == [403]
    records = scene.fleet.rounds("one")
    assert [record["answered"] for record in records] == [OTHERS + n for _, n, _ in MISCHIEFS]
    assert all(record["epsilon"] > 0 for record in records)
    check_books(scene.fleet, "one", len(MISCHIEFS), lost=0)


def test_the_operator_sees_who_it_was(scene: Scene) -> None:
    expected: dict[str, int] = {}
    for _, _, code in MISCHIEFS:
        if code:
            expected[code] = expected.get(code, 0) + 1
    with FleetDatabase(scene.fleet.home.fleet_database) as database:
        found = {flag.code: flag.count for flag in database.flags("mallory")}
        others = [n.name for n in database.nodes() if n.name != "mallory"]
        assert [database.flags(name) for name in others] == [()] * OTHERS
    assert found == expected


def secrets_of(scene: Scene) -> dict[str, bytes]:
    """Return every secret there is, in the forms in which it could be written down."""
    home, device = scene.fleet.home, scene.real.device
    files = [*home.keys.iterdir(), home.ca_key, home.server_key, device.key]
    found: dict[str, bytes] = {}
    for path in files:
        raw = path.read_bytes().strip()
        # Of a PEM the second line: the first is the same for every key.
        found[f"{path.name}: text"] = raw.splitlines()[2] if raw.startswith(b"-----") else raw
        found[f"{path.name}: hex"] = raw.hex().encode()
        found[f"{path.name}: base64"] = base64.b64encode(raw).rstrip(b"=")[:-2]
    found["token"] = scene.token.encode()
    found["secret of the token"] = scene.token.rpartition(".")[2].encode()
    records = (device.path / "notes.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(records):
        text = json.loads(line)["note"]
        found[f"record {number}"] = text[:40].encode()
        found[f"end of record {number}"] = text[-40:].encode()
    assert all(len(secret) >= 16 for secret in found.values())
    return found


def found_in(data: bytes, secrets: dict[str, bytes]) -> list[str]:
    """Return which secrets stand in some bytes."""
    return [what for what, secret in secrets.items() if secret in data]


def test_no_secret_is_in_any_command_line_or_environment(scene: Scene) -> None:
    secrets = secrets_of(scene)
    assert len(secrets) > 30
    looked = 0
    for pid in scene.processes:
        for name in ("cmdline", "environ"):
            try:
                shown = Path(f"/proc/{pid}/{name}").read_bytes()
            except OSError:
                continue
            looked += bool(shown)
            assert found_in(shown, secrets) == [], name
    assert looked >= 2 * 6


def test_no_secret_or_private_text_is_in_logs_or_run_folders(scene: Scene) -> None:
    secrets = secrets_of(scene)
    home, device = scene.fleet.home, scene.real.device
    own = {home.keys, home.ca_key.parent}
    folders = (home.path, device.path)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [path for path in device.path.parent.glob("*.out") if path.is_file()]
    files = [path for path in files if not own & set(path.parents)]
    files = [path for path in files if path not in {device.key, device.path / "notes.jsonl"}]
    assert len(files) > 25
    leaks = {path.name: found_in(path.read_bytes(), secrets) for path in files}
    assert {name: found for name, found in leaks.items() if found} == {}


def test_only_what_is_public_can_be_read_by_others(scene: Scene) -> None:
    home, device = scene.fleet.home, scene.real.device
    public = {home.ca_certificate, home.server_certificate, home.config_path}
    # Written by this process, which has another umask than `fedslm server`.
    public |= {home.run_folder("one") / name for name in ("config.toml", "run.json", "order.json")}
    opened = {
        path for path in home.path.rglob("*") if path.is_file() and path.stat().st_mode & 0o077
    }
    assert opened <= public
    for folder in (home.path, device.path):
        assert folder.stat().st_mode & 0o077 == 0
    assert device.key.stat().st_mode & 0o077 == 0
    assert os.getuid() == home.path.stat().st_uid


def test_logs_hold_no_control_characters(scene: Scene) -> None:
    home, device = scene.fleet.home, scene.real.device
    logs = [*home.logs.iterdir(), *home.runs.glob("*/*.log"), device.log]
    logs += device.path.parent.glob("*.out")
    assert len(logs) >= 6
    for path in logs:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert all(line.isprintable() for line in lines), path.name
