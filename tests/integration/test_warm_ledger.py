"""A run that goes on from an earlier adapter, and both in one ledger: a file, or PostgreSQL."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from rich.console import Console
from safetensors.numpy import load_file

from shared.configfile import resolve
from shared.privacy.ledger import Ledger
from simulations.cli import run
from simulations.progress import PlainProgress
from simulations.simulate import Result, simulate
from tests.integration.scenario import TABLES
from tests.integration.test_schedules import SMALL, adapter, same
from tests.ledgers import postgres_place
from tests.postgres import MISSING, PostgresServer, binaries

pytestmark = pytest.mark.slow

NOISE, SAMPLING, DELTA = 2.0, 4.0 / 6.0, 1e-3
SCOPE = "builtin:clinics"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    programs = binaries()
    if programs is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(MISSING)
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'fedslm[postgres]'")
    started = PostgresServer(programs)
    yield started
    started.remove()


@pytest.fixture(params=["file", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "shared.sqlite")
    return str(postgres_place(request.getfixturevalue("server")).where)


def go(folder: Path, ledger: str, *settings: str) -> Result:
    """Run two rounds of noise that is given, charged to a ledger that is shared."""
    tables: dict[str, Any] = deepcopy(TABLES)
    del tables["privacy"]["epsilon"]
    tables["privacy"] |= {"noise_multiplier": NOISE, "cap": 30.0}
    said = [*SMALL, "run.rounds=2", "evaluation.final_clients=2", *settings]
    resolved = resolve(tables, said, source="test")
    return simulate(
        resolved,
        folder=folder,
        resume=False,
        progress=PlainProgress(2, Console(quiet=True)),
        ledger=ledger,
        ledger_key=folder.parent / "shared.key",
    )


def theirs(accountant: Any, rounds: int) -> float:
    """Epsilon of so many rounds by dp-accounting."""
    event = dp_accounting.PoissonSampledDpEvent(SAMPLING, dp_accounting.GaussianDpEvent(NOISE))
    return float(accountant.compose(event, rounds).get_epsilon(DELTA))


def test_two_runs_compose_and_a_third_is_refused_before_it_trains(
    ledger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four rounds at the population, by an accountant between dp-accounting's two.

    The third run's plan is within its own cap, which the ledger takes up and which is below what
    the first two spent.
    """
    first = go(tmp_path / "first", ledger)
    one = first.summary["privacy"]["epsilon"]
    assert one == pytest.approx(theirs(pld.PLDAccountant(), 2), rel=1e-2)
    on = (f"run.warm_start={first.folder}", "lora.seed=5")
    second = go(tmp_path / "second", ledger, *on, "run.seed=6")
    both = second.summary["privacy"]["epsilon"]
    assert second.summary["privacy"]["releases"] == 4
    assert second.summary["warm_start"]["charged_together"] is True
    assert "of the two together" in second.summary["warm_start"]["meaning"]
    least, most = (theirs(a, 4) for a in (pld.PLDAccountant(), rdp.RdpAccountant()))
    assert least <= both <= 1.15 * most
    assert both > one
    third = go(tmp_path / "third", ledger, *on, "run.seed=7", f"privacy.cap={one * 1.01}")
    assert (third.summary["status"], third.summary["rounds"]) == ("budget-exhausted", 0)
    assert (third.folder / "metrics.jsonl").read_text() == ""
    assert same(third, first)
    with Ledger(ledger, read_only=True) as opened:
        assert opened.spent("population", SCOPE).releases == 4
    capsys.readouterr()
    assert run(["budget", "verify", ledger, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"] > 0


def test_clients_of_both_runs_pay_for_both(ledger: str, tmp_path: Path) -> None:
    """In mode example each client's own releases add up; the worst one is what the run says."""
    mode = ("privacy.mode=example", "clients.cohort=3.0", "privacy.cap=200.0")
    first = go(tmp_path / "first", ledger, *mode)
    with Ledger(ledger, read_only=True) as opened:
        before = {s: opened.spent(s, SCOPE).releases for s, _ in opened.subjects()}
    on = (f"run.warm_start={first.folder}", "lora.seed=5", "run.seed=6")
    second = go(tmp_path / "second", ledger, *mode, *on)
    with Ledger(ledger, read_only=True) as opened:
        opened.verify()
        after = {s: opened.spent(s, SCOPE) for s, _ in opened.subjects()}
        charges = opened.charges(SCOPE)
    assert {charge.state for charge in charges} == {"committed"}
    assert len({charge.run_id for charge in charges}) == 2
    asked = Counter(subject for charge in charges for subject in charge.subjects)
    assert {subject: spent.releases for subject, spent in after.items()} == asked
    assert any(asked[subject] > known for subject, known in before.items()), "nobody was in both"
    worst = max(spent.epsilon for spent in after.values())
    assert second.summary["privacy"]["epsilon"] == pytest.approx(worst)


def test_a_run_that_stopped_leaves_the_rest_of_the_cap_to_the_next(tmp_path: Path) -> None:
    """The first run claims all four planned rounds, and the ledger holds the two that ran."""
    where = str(tmp_path / "shared.sqlite")
    stopping = (
        "run.rounds=4",
        "stopping.on=public",
        "stopping.patience=1",
        "stopping.min_improvement=100.0",
        "stopping.public_documents=4",
    )
    first = go(tmp_path / "first", where, *stopping)
    privacy = first.summary["privacy"]
    assert first.summary["rounds"] == 2
    assert privacy["epsilon"] == pytest.approx(theirs(pld.PLDAccountant(), 4), rel=1e-2)
    ran = privacy["stopping"]["epsilon_rounds_run"]
    assert ran == pytest.approx(theirs(pld.PLDAccountant(), 2), rel=1e-2)
    on = (f"run.warm_start={first.folder}", "lora.seed=5", "run.seed=6")
    second = go(tmp_path / "second", where, *on)
    assert second.summary["privacy"]["releases"] == 4
    start = load_file(second.folder / "start.safetensors")["vector"]
    earlier = adapter(first)
    b = np.concatenate([earlier[n].reshape(-1) for n in sorted(earlier) if "lora_B" in n])
    assert np.array_equal(start, b)
