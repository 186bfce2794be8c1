"""Canary clients in whole runs: every mode takes them, and the audit reads them off releases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.audit.clientcanary import ClientCanaries, ClientCanary
from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.runrecord import RoundRecord, RunRecord
from server.checkpoint import read_checkpoint
from server.releases import read_releases
from shared.configfile import resolve
from shared.privacy.plan import PrivacyPlan
from simulations.simulate import Result
from tests.integration.scenario import TABLES, run_small
from tests.server.audit.oracles import run

pytestmark = pytest.mark.slow

CANARIES = 30
COMMON = (
    f"audit.client_canaries={CANARIES}",
    "audit.canaries=0",
    "audit.profile=none",
    "clients.cohort=12.0",
    "run.rounds=4",
    "server.optimizer=mean",
    "privacy.epsilon=40.0",
)
MODES = {
    "gaussian": (),
    "quantile": ("privacy.clipping_quantile=0.5", "privacy.count_noise_stddev=5.0"),
    "correlated": ("privacy.mechanism=correlated",),
    "distributed": (
        "privacy.mode=client-distributed",
        "privacy.honest_fraction=0.9",
        "privacy.survivor_fraction=0.7",
        "privacy.min_cohort=5",
    ),
    "none": ("privacy.mode=none",),
    "fedavg": ("aggregation.policy=fedavg",),
}


def record_of(result: Result, overrides: tuple[str, ...]) -> RunRecord:
    """Read what a run left behind, from its files alone."""
    folder = result.folder
    plan = PrivacyPlan.from_json(json.loads((folder / "run.json").read_text())["plan"])
    config = resolve(TABLES, overrides, source="test").config
    checkpoint = read_checkpoint(folder, config_digest=config.digest())
    assert checkpoint is not None
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = tuple(
        RoundRecord(
            server_round=line["round"],
            cohort=line["cohort"],
            answered=line["answered"],
            aborted=line["aborted"] is not None,
            clipping_norm=line.get("clipping_norm"),
        )
        for line in lines
    )
    return RunRecord(
        plan=plan,
        population=plan.population,
        rounds=rounds,
        initial=np.zeros_like(checkpoint.vector),
        released=checkpoint.vector,
        releases=read_releases(folder),
    )


def audited(record: RunRecord, seed: int = 5) -> Finding:
    plan = record.plan
    claim = Claim(
        mode=plan.mode,
        epsilon=None if plan.mode == "none" else plan.epsilon(),
        delta=plan.delta,
        unit=None if plan.unit is None else str(plan.unit),
        neighboring_relation="add-or-remove-one",
    )
    canaries = ClientCanaries(count=CANARIES, seed=seed)
    return run(ClientCanary(), AuditContext(claim=claim, seed=0, artefacts=(record, canaries)))


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_runs_with_canary_clients_and_shows_them(tmp_path: Path, mode: str) -> None:
    """12 clinics and 30 canaries; directions of another seed are not found (false alarm 5e-4)."""
    overrides = (*COMMON, *MODES[mode])
    result = run_small(tmp_path / "run", overrides)
    assert result.summary["population"] == 42
    assert result.summary["data"]["client_canaries"] == CANARIES
    record = record_of(result, overrides)
    assert record.population == 42
    finding = audited(record)
    derived = finding.evidence["derived"]["run"]
    assert finding.detected is True
    assert derived["p_value"] < 1e-6
    if mode == "none":
        assert finding.verdict == "inconclusive"
        return
    assert finding.verdict != "violation", finding.explanation
    assert abs(derived["sigmas"]) < 5
    stranger = audited(record, seed=6).evidence["derived"]["run"]
    assert abs(stranger["mu"]) < 3.5 * stranger["standard_error"]


def test_releases_with_half_of_the_noise_planned_are_caught(tmp_path: Path) -> None:
    """The run's plan is given twice the noise that ran: what a server that cheats would leave."""
    overrides = (*COMMON, "privacy.epsilon=200.0", "run.rounds=6")
    record = record_of(run_small(tmp_path / "run", overrides), overrides)
    noise = record.plan.noise_multiplier
    assert noise is not None
    promised = replace(record.plan, noise_multiplier=2 * noise)
    finding = audited(replace(record, plan=promised))
    assert audited(record).verdict != "violation"
    assert finding.verdict == "violation"


def test_canary_clients_are_not_measured_and_not_counted_as_data(tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", (*COMMON, "evaluation.final_clients=1000"))
    losses = json.loads((result.folder / "evaluation.json").read_text())
    assert set(losses["before"]) <= {f"client-{index}" for index in range(12)}
    assert result.summary["data"]["clients"] == 12
