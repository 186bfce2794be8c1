"""One fleet of a device with torch and two without: real server, real nodes, several policies.

Every run is ordered as an operator does, and the books of all devices are compared with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.state import DeviceState
from server.registry import AdapterRegistry
from server.registry.export import export_version
from shared.configfile import ResolvedConfig, resolve
from shared.crypto import SigningKey
from shared.roster import write_roster
from simulations.fleetprepare import start_run
from tests.client.device import scenario
from tests.faults.fleet import Fleet, RealNode
from tests.integration.edgefleet import allow, edge_node, public_key, wide_step
from tests.server.fleetkit import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(3600)]

NODES = 3
ROUNDS = 2
STEPS = 2
COMMON = (
    f"run.rounds={ROUNDS}",
    f"clients.population={NODES}",
    f"clients.cohort={float(NODES)}",
    "lora.r=4",
    "lora.alpha=8",
    'lora.target_modules=["q_proj"]',
    "audit.canaries=0",
    "audit.profile=none",
    "server.deadline_seconds=540.0",
    "server.quorum=1.0",
    "evaluation.clients=2",
)
RANKS = ("devices.mix={pi5 = 0.5, laptop = 0.5}", "devices.ranks={pi5 = 2}")
VOTES = ("stopping.on=vote", "stopping.patience=1", "stopping.vote_noise_multiplier=3.0")
SECURE = {
    "honest_fraction": 0.6,
    "survivor_fraction": 0.9,
    "min_cohort": 3,
    "noise_multiplier": 4.0,
}


def ordered(mode: str, *said: str, **privacy: float) -> ResolvedConfig:
    tables = scenario(mode, **privacy).model_dump(mode="json", exclude_none=True)
    return resolve(tables, [*COMMON, *said], source="test")


@dataclass
class MixedFleet:
    """The server, and its nodes by client: the first with torch, the others without."""

    fleet: Fleet
    roster: Path

    @property
    def nodes(self) -> list[RealNode]:
        return self.fleet.nodes

    def run(self, name: str, unit: str, config: ResolvedConfig) -> list[dict[str, Any]]:
        """Order a run, wait for its end, and return its rounds."""
        for node in self.nodes:
            allow(node, unit)
        roster = self.roster if config.config.privacy.mode == "client-distributed" else None
        # Budgets are those of data, by name: each run has its own.
        changed = config.config.data.model_copy(update={"path": f"{name}.jsonl"})
        config = replace(config, config=config.config.model_copy(update={"data": changed}))
        start_run(self.fleet.home, config, name=name, roster=roster)
        return self.fleet.finish(name, seconds=1100.0)

    def releases(self) -> list[dict[str, float]]:
        """Return what each device's own ledger counted; all are whole."""
        found = []
        for node in self.nodes:
            with DeviceState(node.device.state) as state:
                state.verify()
                found.append({spent.subject: spent.releases for spent in state.spent()})
        return found

    def adapter(self, name: str) -> dict[str, np.ndarray]:
        """Return the adapter that a run released, as the registry keeps it."""
        signer = SigningKey.load_or_create(self.fleet.home.adapter_key)
        registry = AdapterRegistry(self.fleet.home.adapters, signer=signer)
        digest = self.fleet.runs.view(name).adapter
        assert digest is not None
        folder = self.roster.parent / f"adapter-{name}"
        export_version(registry, digest, folder)
        [path] = folder.rglob("adapter_model.safetensors")
        return load_file(path)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixedFleet]:
    folder = tmp_path_factory.mktemp("fleet")
    config = ordered("client-central").config
    step = wide_step(json.dumps(config.model_dump(mode="json", exclude_none=True)))
    with ExitStack() as opened:
        fleet = Fleet(folder, opened)
        fleet.start_server()
        fleet.add_real(1)
        for number in range(1, NODES):
            edge = edge_node(fleet.home, folder / f"edge-{number}", step)
            allow(edge, "client")
            opened.callback(edge.stop)
            edge.start()
            fleet.nodes.append(edge)
        keys = {n: bytes.fromhex(public_key(node)) for n, node in enumerate(fleet.nodes)}
        roster = folder / "roster.json"
        roster.write_text(write_roster(keys), encoding="utf-8")
        for node in fleet.nodes:
            (node.device.path / "roster.json").write_bytes(roster.read_bytes())
        wait_until(
            "joining",
            lambda: all(node.status().get("state") == "idle" for node in fleet.nodes),
            seconds=240,
        )
        yield MixedFleet(fleet, roster)


def increase(
    before: list[dict[str, float]], after: list[dict[str, float]], key: str
) -> list[float]:
    return [now.get(key, 0.0) - then.get(key, 0.0) for then, now in zip(before, after, strict=True)]


def everybody(records: list[dict[str, Any]]) -> None:
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    assert [record["answered"] for record in records] == [NODES] * ROUNDS
    assert not any(record["aborted"] for record in records)


def test_a_fleet_with_and_without_torch_trains_under_every_guarantee(mixed: MixedFleet) -> None:
    """Votes, ranks, own factors, alternating factors and secure sums, one run after the other."""
    runs: list[tuple[str, str, ResolvedConfig]] = [
        (
            "secure-rolora",
            "client",
            ordered("client-distributed", "aggregation.policy=rolora", **SECURE),
        ),
        ("votes-and-ranks", "client", ordered("client-central", *RANKS, *VOTES)),
        (
            "own-b",
            "client",
            ordered("client-central", "aggregation.policy=fedavg", "aggregation.share=A"),
        ),
        ("example-ranks", "example", ordered("example", *RANKS)),
    ]
    for name, unit, config in runs:
        before = mixed.releases()
        records = mixed.run(name, unit, config)
        everybody(records)
        each = float(ROUNDS * (STEPS if unit == "example" else 1))
        assert increase(before, mixed.releases(), f"device/{unit}") == [each] * NODES, name
        charges = mixed.fleet.charges(name)
        if unit == "client":
            assert [c.server_round for c in charges if c.state == "committed"] == [1, 2], name
        else:
            assert all(charge.state == "committed" for charge in charges)
        trained = mixed.adapter(name)
        kind = "lora_A" if name == "own-b" else "lora_B"
        moved = [value for key, value in trained.items() if kind in key]
        assert moved
        assert all(np.isfinite(value).all() and value.any() for value in moved), name
    votes = [record.get("vote") for record in mixed.fleet.rounds("votes-and-ranks")]
    assert votes[0] is None
    assert isinstance(votes[1], float)
    # Nobody was asked what it refused, and no worker of a device without torch was lost.
    for node in mixed.nodes:
        assert [node.count(name) for name in ("refused", "failed", "worker-lost")] == [0, 0, 0]


def test_a_device_without_torch_rests_by_its_owners_conditions(mixed: MixedFleet) -> None:
    node, before = mixed.nodes[1], mixed.releases()
    allow(node, "client", conditions={"min_free_memory_mb": 10**9})
    wait_until("a rest", lambda: node.status().get("state") == "paused", seconds=120)
    assert node.worker() is None
    assert "min_free_memory_mb" in node.status()["reasons"][0]
    allow(node, "client", conditions={"min_free_memory_mb": 1})
    wait_until("its return", lambda: node.status().get("state") == "idle", seconds=120)
    assert mixed.releases() == before


def test_what_needs_torch_is_refused_by_name_and_the_others_go_on(mixed: MixedFleet) -> None:
    """Without privacy, and last: no device promises anything about its text afterwards."""
    runs = {
        "mixture": ordered("none", "server.quorum=0.3", "mixture.adapters=2"),
        "fedex": ordered("none", "server.quorum=0.3", "aggregation.policy=fedex"),
    }
    for name, config in runs.items():
        before, failed = mixed.releases(), [node.count("failed") for node in mixed.nodes]
        records = mixed.run(name, "none", config)
        assert [record["answered"] for record in records] == [1] * ROUNDS, name
        assert all(np.isfinite(value).all() for value in mixed.adapter(name).values())
        assert mixed.releases()[1:] == before[1:]  # refused before anything was charged
        now = [node.count("failed") for node in mixed.nodes]
        assert [n - then for n, then in zip(now, failed, strict=True)] == [0, ROUNDS, ROUNDS]
        for node in mixed.nodes[1:]:
            codes = {event["code"] for event in node.events() if event["event"] == "failed"}
            assert codes == {"conflicting-settings"}
