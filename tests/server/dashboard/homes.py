"""A server's folder with a made-up fleet: real files, real ledger, real registry."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from server.adapters import write_adapter
from server.audit.protocol import Claim
from server.audit.report import AuditReport
from server.dashboard.board import Board
from server.dashboard.controls import Scenario
from server.dashboard.store import USERS, UserFile
from server.dashboard.users import Cost, UserStore
from server.fleetdb import FleetDatabase
from server.fleetruns import STATE, FleetRuns
from server.home import ServerHome
from server.registry import AdapterRegistry
from server.settings import ServerConfig
from server.supervisor import LOCK
from shared.crypto import SigningKey
from shared.files import write_json
from shared.lora import AdapterSpec, Factor
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privatefiles import held
from tests.ledgers import plan_of

Json = dict[str, Any]

CHEAP = Cost(n=2**4, r=8, p=1)
OPERATOR, VIEWER = "ada", "grace"
PASSWORD = "eleven quiet otters"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
SPEC = AdapterSpec(
    factors=tuple(
        Factor(
            name=f"base_model.model.model.layers.0.self_attn.q_proj.lora_{kind}.weight",
            kind=kind,
            shape=shape,
        )
        for kind, shape in (("A", (2, 8)), ("B", (8, 2)))
    ),
    r=2,
    lora_alpha=4.0,
    target_modules=("q_proj",),
)


class Recorder:
    """Controls that write down what was asked of them; one scenario is known."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def scenarios(self) -> Sequence[Scenario]:
        return (Scenario(name="clinics", about="clinics write notes"),)

    def start(self, scenario: str) -> str:
        self.asked.append(("start", scenario))
        return f"{scenario}-1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def empty_home(path: Path, **config: Any) -> ServerHome:
    settings = ServerConfig(name="clinics", dashboard_port=free_port(), **config)
    return ServerHome.create(path, settings)


def with_users(home: ServerHome, *, cost: Cost = CHEAP) -> ServerHome:
    users = UserStore(UserFile(home.path / USERS), cost=cost)
    users.add(OPERATOR, PASSWORD, "operator")
    users.add(VIEWER, PASSWORD, "viewer")
    return home


def board_of(home: ServerHome) -> tuple[Board, Recorder]:
    controls = Recorder()
    return Board(home, controls=controls, cost=CHEAP), controls


def full_home(path: Path, *, cost: Cost = CHEAP) -> ServerHome:
    """A fleet in the middle of its work."""
    home = with_users(empty_home(path), cost=cost)
    now = time.time()
    add_run(home, "clinics-night", rounds=14, planned=30, age=40)
    order(home, "clinics-night", "running")
    add_run(home, "clinics-first", rounds=30, planned=30, age=86400, verdict="consistent")
    add_run(home, "trial-open", rounds=6, planned=6, mode="none", age=200_000, verdict="violation")
    add_nodes(home, now)
    add_charges(home)
    add_adapters(home)
    write_status(home, now)
    return home


def add_run(
    home: ServerHome,
    name: str,
    *,
    rounds: int,
    planned: int,
    mode: str = "client-central",
    age: float = 0.0,
    verdict: str | None = None,
    noise_source: str = "os-entropy",
    finding: str = "Nothing contradicts the claim.",
) -> Path:
    """Write the folder of a run, finished if it has a verdict."""
    folder = home.runs / name
    folder.mkdir()
    private = mode != "none"
    plan: Json = {
        "mode": mode,
        "unit": "client" if private else None,
        "neighboring_relation": "add-or-remove-one" if private else None,
        "delta": 0.0005 if private else None,
        "cap": 8.0 if private else None,
        "noise_multiplier": 0.62 if private else None,
        "sampling_probability": 0.25,
        "noise_source": noise_source,
        "rounds": planned,
    }
    config = {"run": {"name": "clinics", "rounds": planned}, "data": {"path": "clinics"}}
    _write(folder / "run.json", {"config": config, "plan": plan, "population": 40})
    metrics = [_record(n, planned, private=private) for n in range(1, rounds + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if verdict is not None:
        _finish(folder, plan, metrics, verdict, finding)
    then = time.time() - age
    for file in folder.iterdir():
        os.utime(file, (then, then))
    return folder


def _finish(folder: Path, plan: Json, metrics: list[Json], verdict: str, finding: str) -> None:
    last = metrics[-1]
    spent = {"epsilon": last["epsilon"], "releases": last["releases"], "accountant": "pld"}
    summary = {"status": "completed", "scenario": "clinics", "privacy": {**plan, **spent}}
    _write(folder / "summary.json", summary)
    found = {
        "audit": "one-run",
        "verdict": verdict,
        "strength": "certified",
        "metric": "epsilon_lower_bound",
        "value": 0.43,
        "explanation": finding,
    }
    report = {
        "schema": 2,
        "verdict": verdict,
        "profile": "release",
        "epsilon_claimed": last["epsilon"],
        "delta": plan["delta"],
        "unit": plan["unit"],
        "neighboring_relation": plan["neighboring_relation"],
        "findings": [found, {**found, "audit": "exposure", "strength": "descriptive"}],
    }
    _write(folder / "audit.json", report)
    for name in ("report", "audit"):
        text = f"<!doctype html><title>{name}</title><style>h1 {{ color: teal }}</style>"
        text += f"<h1>The {name}</h1><a href='audit.html'>audit</a><script>parent.x = 1</script>"
        (folder / f"{name}.html").write_text(text)


def _record(n: int, planned: int, *, private: bool) -> Json:
    return {
        "round": n,
        "cohort": 10 + (7 * n) % 4,
        "answered": 9 + (5 * n) % 3,
        "epsilon": 7.9 * math.sqrt(n / planned) if private else None,
        "delta": 0.0005 if private else None,
        "cap": 8.0 if private else None,
        "releases": n,
        "loss": round(2.6 + 3.5 * math.exp(-n / 6), 4) if n % 2 == 0 else None,
        "bytes_up_per_client": 77_059,
        "bytes_down_per_client": 77_475,
        "seconds": 41.0 + (11 * n) % 9,
        "aborted": None,
    }


def add_nodes(home: ServerHome, now: float) -> None:
    """Enrol seven clinics, in every state."""
    with FleetDatabase(home.fleet_database) as fleet:
        for index in range(1, 8):
            key = f"key of clinic {index}".encode()
            secret = fleet.new_token(f"clinic-{index}", valid_seconds=3600, now=now - 900_000)
            fleet.redeem(secret, key, now=now - 899_000)
            if index < 7:
                quiet = {4: 1800.0, 5: 200_000.0}.get(index, 5.0)
                fleet.activated(key, 1000 + index, now=now - quiet)
        fleet.flag("clinic-3", "norm-clipped", now=now - 3000)
        fleet.revoke("clinic-6", "stolen laptop", now=now - 4000, actor=OPERATOR)


def add_charges(home: ServerHome) -> None:
    """Charge a population and three clients."""
    signer = LedgerSigner.load_or_create(home.ledger_key)
    central = plan_of(cap=8.0)
    local = plan_of(
        mode="example",
        unit="example",
        clipping_norm=None,
        max_grad_norm=1.0,
        dataset_size=200,
        sampling_probability=0.05,
        cap=1.1,
        noise_multiplier=1.0,
    )
    with Ledger(home.ledger, signer=signer) as ledger:
        ledger.register_plan("clinics-night", central, "clinics")
        ledger.register_plan("notes", local, "notes")
        for n in (1, 2, 3):
            made = ledger.reserve(
                run_id="clinics-night",
                server_round=n,
                subjects=["population"],
                event=central.event_for_participation(),
            )
            ledger.commit(made)
        for n in (1, 2):
            ledger.reserve(
                run_id="notes",
                server_round=n,
                subjects=[f"client-{index}" for index in range(n + 1)],
                event=local.event_for_participation(),
            )


def add_adapters(home: ServerHome) -> None:
    """Register three versions and put two of them in use, one after the other."""
    key = SigningKey.load_or_create(home.adapter_key)
    registry = AdapterRegistry(home.adapters, signer=key)
    parent = None
    for number in range(3):
        folder = home.path / f"adapter-{number}"
        factors = {f.name: np.full(f.shape, number + 1.0, np.float32) for f in SPEC.factors}
        weights = write_adapter(
            folder, spec=SPEC, factors=factors, base_model="demo", dropout=0.0, manifest={}
        )
        claim = Claim(
            mode="client-central",
            epsilon=4.2 + number,
            delta=0.0005,
            unit="client",
            neighboring_relation="add-or-remove-one",
        )
        report = AuditReport(
            claim=claim,
            findings=(),
            canaries={},
            profile="smoke",
            seed=1,
            subject={"weights_sha256": weights},
        )
        made = registry.add(
            folder, name="clinics", base_digest="b" * 64, parent=parent, audit=report.to_dict()
        )
        parent = made.digest
        if number < 2:
            registry.promote(made.digest)


def write_status(home: ServerHome, now: float, **down: Any) -> None:
    """Write what a supervisor writes; it counts while :func:`supervised` holds the folder."""
    names = ("superlink", "superexec", "front", "runs", "control", "dashboard")
    up = {"running": True, "state": "up", "pid": 1, "restarts": 0, "last_exit": None}
    processes: Json = {name: {**up, "since": now - 5000} for name in names}
    for name, change in down.items():
        processes[name] |= change
    _write(home.status, {"schema": 1, "state": "healthy", "processes": processes})


def supervised(home: ServerHome) -> AbstractContextManager[None]:
    """Hold a server's folder as its supervisor does."""
    return held(home.run / LOCK)


def order(home: ServerHome, name: str, state: str, *, wanted: str = "running") -> None:
    """Make a run one of the fleet, in a state."""
    runs = FleetRuns(home)
    runs.order(name, base_model="demo", base_digest="b" * 64)
    reason = "No node is online." if state in {"waiting", "failed"} else ""
    write_json(home.runs / name / STATE, {"schema": 1, "state": state, "reason": reason})
    if wanted == "stopped":
        runs.want(name, "stopped")


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
