"""Broken privacy, broken at one place of the real code, and caught by the mechanism audit.

Real federated runs of the demo model in this process. What a run left behind is audited with the
code as it should be, so that only the releases can give the fault away, and where it matters once
more with the fault still installed, as an auditor on the same machine would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import client.app
from client.adapter import AdaptedModel
from client.app import make_client_app
from client.runtime import ClientRuntime
from server import strategy
from server.audit.evidence import DERIVED
from server.audit.mechanism import Mechanism
from server.audit.protocol import AuditContext, Finding
from server.audit.runrecord import RoundRecord, RunRecord
from server.budget import RunBudget
from server.prepared import FolderObserver
from server.release import Releaser
from server.releases import read_releases
from server.replay import replay
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.config import RunConfig
from shared.configfile import resolve
from shared.privacy import mechanism
from shared.privacy.ledger import Ledger
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from shared.seeding import data_rng
from simulations.assemble import load_model
from simulations.auditing.failureprobe import ClientAppProbe
from simulations.auditing.rehearsal import RehearsedSteps
from simulations.dataset import open_dataset
from simulations.engine import InProcessGrid
from simulations.keyring import SimulatedKeyring
from simulations.runfolder import RunFolder
from tests.integration.scenario import TABLES
from tests.server.audit import mechanisms

POPULATION = 12
ROUNDS = 10
SETTINGS = (
    f"run.rounds={ROUNDS}",
    "privacy.epsilon=400.0",
    "evaluation.clients=1",
    "evaluation.every=10",
    "audit.canaries=0",
)

pytestmark = pytest.mark.slow

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    config = resolve(TABLES, [], source="test").config
    return load_model(config, base_dir=Path.cwd())


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run and what an audit needs to know of it."""

    config: RunConfig
    record: RunRecord


def train(folder: Path, model: AdaptedModel, *overrides: str) -> Run:
    """Run all rounds of the small scenario; adapter, audit and report are not written."""
    config = resolve(TABLES, [*SETTINGS, *overrides], source="test").config
    plan = plan_of(config, population=POPULATION)
    dataset = open_dataset(
        config.data, population=POPULATION, seed=config.run.seed, base_dir=Path.cwd()
    )
    distributed = plan.mode == "client-distributed"
    keyring = SimulatedKeyring(config.run.seed, POPULATION) if distributed else None
    runtime = ClientRuntime(config=config, plan=plan, model=model, source=dataset, keyring=keyring)
    setup = RunSetup(
        run_id="broken",
        config=config,
        plan=plan,
        spec=model.spec,
        population=POPULATION,
        folder=folder,
        roster=None if keyring is None else keyring.roster,
    )
    app = make_client_app(lambda context: runtime, simulated=True)
    folder.mkdir()
    with Ledger(folder / "ledger.sqlite") as ledger:
        budget = RunBudget(ledger, plan=plan, run_id="broken", scope="test")
        run = FederatedRun(setup, budget=budget, observer=FolderObserver(folder))
        run.train(run.connect(InProcessGrid(app, POPULATION)))
    return Run(config=config, record=record_of(folder, run, config, plan))


def record_of(folder: Path, run: FederatedRun, config: RunConfig, plan: PrivacyPlan) -> RunRecord:
    """Read what a run left behind."""
    metrics = RunFolder(folder).metrics()
    initial, releases = run.initial_vector, read_releases(folder)
    assert releases is not None
    return RunRecord(
        plan=plan,
        population=POPULATION,
        rounds=tuple(
            RoundRecord(
                server_round=line["round"],
                cohort=line["cohort"],
                answered=line["answered"],
                aborted=line["aborted"] is not None,
                clipping_norm=line["clipping_norm"],
            )
            for line in metrics
        ),
        initial=initial,
        released=run.released,
        releases=releases,
        replayed=replay(releases, config, initial, initial.size, finished=len(metrics)),
    )


def audit(run: Run, model: AdaptedModel) -> Finding:
    """Audit a run with the code as it is installed now."""
    record, config = run.record, run.config
    plan = plan_of(config, population=POPULATION)
    model.set_trainable(config.trained_kinds)
    artefacts: list[object] = [record, ClientAppProbe(config=config, plan=plan, model=model)]
    if record.plan.mode == "example":
        artefacts.append(RehearsedSteps(model, record.plan, seed=1))
    terms = mechanisms.terms(record.plan)
    context = AuditContext(claim=terms.claim, seed=1, artefacts=artefacts)
    return Mechanism().conclude(Mechanism().measure(context), terms)


def failed(finding: Finding) -> set[str]:
    checks = finding.evidence[DERIVED]["checks"]
    return {check["check"] for check in checks if check["failed"]}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("privacy.clipping_quantile=0.5", "server.averaging=0.5", "server.optimizer=adam"),
        ("privacy.mechanism=correlated", "clients.cohort=4.0", "privacy.noise_source=os-entropy"),
        (
            "privacy.mode=client-distributed",
            "privacy.honest_fraction=0.9",
            "privacy.survivor_fraction=0.8",
            "privacy.min_cohort=4",
        ),
        ("privacy.mode=example", "privacy.noise_source=os-entropy"),
    ],
    ids=["gaussian", "quantile", "correlated", "distributed", "example"],
)
def test_honest_runs_are_consistent(
    overrides: tuple[str, ...], model: AdaptedModel, tmp_path: Path
) -> None:
    """Five runs, each flagged with probability at most 0.001."""
    finding = audit(train(tmp_path / "run", model, *overrides), model)
    assert finding.verdict == "consistent", finding.explanation
    assert finding.positive_control is True


@pytest.mark.statistical
@pytest.mark.parametrize("form", sorted(mechanisms.FORMS))
def test_twenty_honest_mechanisms_are_not_flagged(form: str) -> None:
    """20 seeds of the real cohorts and aggregators without a model; nominal number 0.02."""
    plan = mechanisms.FORMS[form]
    flagged = []
    for seed in range(20):
        updates = mechanisms.small_updates(seed, 2048)
        record = mechanisms.run_mechanism(plan, seed, width=2048, updates=updates)
        terms = mechanisms.terms(plan)
        context = AuditContext(claim=terms.claim, seed=seed, artefacts=(record,))
        finding = Mechanism().conclude(Mechanism().measure(context), terms)
        flagged += [seed] * (finding.verdict == "violation")
    assert flagged == []


def halved(patch: pytest.MonkeyPatch) -> None:
    """Half of the noise."""
    normal = NoiseSource.normal
    patch.setattr(NoiseSource, "normal", lambda self, n: 0.5 * normal(self, n))


def forgotten(patch: pytest.MonkeyPatch) -> None:
    """No noise."""
    patch.setattr(NoiseSource, "normal", lambda self, n: np.zeros(n))


def unclipped(patch: pytest.MonkeyPatch) -> None:
    """Every update counts as short, on clients and on the server."""
    patch.setattr(mechanism, "norm_of", lambda vector: 0.0)


def repeated(patch: pytest.MonkeyPatch) -> None:
    """The same key every round."""
    patch.setattr(Releaser, "_noise", lambda self, number: NoiseSource.seeded(5, "central"))


def batched(patch: pytest.MonkeyPatch) -> None:
    """Batches of the expected size, dealt at random."""
    rng = data_rng(1, "batches")

    def deal(population: int, probability: float, source: NoiseSource) -> list[int]:
        del source
        size = round(population * probability)
        return sorted(int(i) for i in rng.choice(population, size=size, replace=False))

    patch.setattr(strategy, "sample_cohort", deal)


@pytest.mark.parametrize(
    ("patch", "overrides", "by_releases", "by_rehearsal"),
    [
        (halved, (), {"noise-floor"}, {"rehearsal"}),
        (forgotten, (), {"noise-floor"}, {"rehearsal"}),
        (unclipped, ("privacy.clipping_norm=0.001",), {"clip-ceiling"}, {"rehearsal"}),
        (repeated, (), {"noise-floor"}, set()),
        (batched, (), {"sampling"}, set()),
    ],
    ids=["halved", "forgotten", "unclipped", "repeated", "batched"],
)
def test_broken_noise_clip_and_sampling_are_caught(
    patch: Patch,
    overrides: tuple[str, ...],
    by_releases: set[str],
    by_rehearsal: set[str],
    model: AdaptedModel,
    tmp_path: Path,
) -> None:
    with pytest.MonkeyPatch.context() as broken:
        patch(broken)
        run = train(tmp_path / "run", model, *overrides)
        on_the_same_machine = audit(run, model)
    elsewhere = audit(run, model)
    assert elsewhere.verdict == "violation"
    assert failed(elsewhere) == by_releases
    assert failed(on_the_same_machine) >= by_releases | by_rehearsal


def test_halved_noise_in_the_clients_steps_is_caught(model: AdaptedModel, tmp_path: Path) -> None:
    """Mode example has no floor at the server; the rehearsal of the installed steps catches it."""
    with pytest.MonkeyPatch.context() as broken:
        halved(broken)
        run = train(tmp_path / "run", model, "privacy.mode=example", "run.rounds=2")
        finding = audit(run, model)
    assert finding.verdict == "violation"
    assert failed(finding) == {"rehearsed-steps"}


def test_errors_that_quote_a_record_are_caught(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard of the app sends the text of the exception in place of its code."""
    run = train(tmp_path / "run", model, "run.rounds=2")
    monkeypatch.setattr(client.app, "scrub_exception", str)
    finding = audit(run, model)
    assert finding.verdict == "violation"
    assert failed(finding) == {"error-scrubbing"}


def test_an_adapter_without_privacy_under_the_label_of_an_epsilon_is_caught(
    model: AdaptedModel, tmp_path: Path
) -> None:
    """A run in mode none, shown with the plan that the scenario would have had with privacy."""
    run = train(tmp_path / "run", model, "privacy.mode=none", "aggregation.policy=ffa")
    config = resolve(TABLES, list(SETTINGS), source="test").config
    labelled = replace(run.record, plan=plan_of(config, population=POPULATION))
    finding = audit(replace(run, record=labelled), model)
    assert finding.verdict == "violation"
    assert "noise-floor" in failed(finding)


def test_an_adapter_that_is_not_what_was_released_is_caught(
    model: AdaptedModel, tmp_path: Path
) -> None:
    """The adapter of another run of the same scenario, without noise, in place of the run's."""
    run = train(tmp_path / "run", model)
    other = train(tmp_path / "other", model, "privacy.mode=none", "aggregation.policy=ffa")
    swapped = replace(run.record, released=other.record.released)
    finding = audit(replace(run, record=swapped), model)
    assert finding.verdict == "violation"
    assert failed(finding) == {"replay"}
