"""Hostile updates through the real round loop: refused or clipped, flagged, and the round goes on.

The oracle is the same run, with the same noise, in which the hostile client says nothing or sends
zeros. What the hostile client sends must not change what the others give, nor what is charged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from server.aggregation import LONGEST_UPDATE
from server.budget import RunBudget
from server.fleetdb import Flag, FleetDatabase
from server.fleetdirectory import FleetDirectory
from server.setup import RunSetup
from server.strategy import FederatedRun
from shared.configfile import resolve
from shared.lora import Vector
from shared.privacy.ledger import Ledger
from shared.scenarioplan import plan_of
from shared.wire import HEADER, Instruction, decode_instruction
from simulations.engine import InProcessGrid
from tests.hostile.replies import MALFORMED, ODD, Reply, honest, with_vector
from tests.integration.scenario import TABLES
from tests.server.fleetkit import stranger
from tests.server.test_strategy import SIZE, SPEC, Quiet

POPULATION = 4
HOSTILE = 2
ROUNDS = 2
SETTINGS = (
    f"clients.population={POPULATION}",
    f"clients.cohort={POPULATION}.0",
    "server.optimizer=mean",
    "server.quorum=0.5",
    f"run.rounds={ROUNDS}",
    "privacy.sampling_probability=1.0",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    vectors: tuple[Vector, ...]
    answered: tuple[int, ...]
    flags: tuple[Flag, ...]
    others: tuple[Flag, ...]
    events: list[str]


def enroll(database: FleetDatabase) -> None:
    """Enroll one node a client; Flower's number of each is its client's index plus one."""
    for client in range(POPULATION):
        identity = stranger()
        name = f"clinic-{client}"
        database.redeem(database.new_token(name, valid_seconds=60.0), identity.public)
        database.activated(identity.public, client + 1)


def run(folder: Path, reply: Reply, *overrides: str, stage: str = "clipped") -> Outcome:
    """Run two rounds in which one client sends what it likes; the others send their own part."""
    folder.mkdir(exist_ok=True)
    config = resolve(TABLES, [*SETTINGS, *overrides], source="test").config
    plan = plan_of(config, population=POPULATION)
    app = ClientApp()
    seen: list[Vector] = []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        told = decode_instruction(message.content)
        if client == 0:
            seen.append(told.vector)
        if client == HOSTILE:
            return Message(reply(told), reply_to=message)
        part = np.zeros(SIZE)
        part[client] = 0.25
        return Message(honest(told, part, stage), reply_to=message)

    database = FleetDatabase(folder / "fleet.sqlite")
    enroll(database)
    observer = Quiet()
    with Ledger(folder / "ledger.sqlite") as ledger:
        federated = FederatedRun(
            RunSetup(
                run_id="r",
                config=config,
                plan=plan,
                spec=SPEC,
                population=POPULATION,
                folder=folder,
            ),
            budget=RunBudget(ledger, plan=plan, run_id="r", scope="test"),
            observer=observer,
            directory=FleetDirectory(database),
        )
        federated.train(federated.connect(InProcessGrid(app, POPULATION)))
        report = ledger.verify()
        assert report.open_reservations == 0
        events = [f"{c.subjects} {c.event} {c.state}" for c in ledger.charges("test")]
    names = [f"clinic-{c}" for c in range(POPULATION) if c != HOSTILE]
    return Outcome(
        vectors=(*seen[1:], federated.vector),
        answered=tuple(int(record["answered"]) for record in observer.records),
        flags=database.flags(f"clinic-{HOSTILE}"),
        others=tuple(flag for name in names for flag in database.flags(name)),
        events=events,
    )


def header_of(records: RecordDict) -> ConfigRecord:
    """Return the header of a reply."""
    header = records[HEADER]
    assert isinstance(header, ConfigRecord)
    return header


@cache
def baseline(folder: Path) -> Outcome:
    """Return the run in which the hostile client sends zeros."""
    return run(folder, with_vector(lambda size: np.zeros(size)))


@pytest.fixture(scope="module", name="quiet")
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return baseline(tmp_path_factory.mktemp("baseline"))


def same(found: Outcome, expected: Outcome) -> bool:
    """Tell whether two runs released the same bits."""
    pairs = zip(found.vectors, expected.vectors, strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", MALFORMED)
def test_what_is_malformed_is_refused_and_flagged(
    tmp_path: Path, quiet: Outcome, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        found = run(tmp_path, MALFORMED[kind])
    assert found.answered == (POPULATION - 1,) * ROUNDS
    [flag] = found.flags
    assert (flag.code, flag.count) in {("schema-mismatch", ROUNDS), ("client-failed", ROUNDS)}
    assert found.others == ()
    # The mean's denominator is a constant: to be silent and to send zeros is the same.
    assert same(found, quiet)
    assert found.events == quiet.events
    lines = [record.getMessage() for record in caplog.records]
    assert all(line.isprintable() and len(line) < 300 for line in lines)
    assert not any("Jane Roe" in line for line in lines if "failure" in kind)


@pytest.mark.parametrize("kind", ODD)
def test_what_is_odd_is_counted_as_zero_or_clipped_and_flagged(
    tmp_path: Path, quiet: Outcome, kind: str
) -> None:
    reply, code = ODD[kind]
    found = run(tmp_path, reply)
    assert found.answered == (POPULATION,) * ROUNDS
    expected = [] if code is None else [(code, ROUNDS)]
    assert [(flag.code, flag.count) for flag in found.flags] == expected
    assert found.others == ()
    assert found.events == quiet.events
    if code == "update-not-finite" or kind == "negative zero":
        assert same(found, quiet)
        return
    for number, (one, other) in enumerate(zip(found.vectors, quiet.vectors, strict=True), 1):
        moved = np.linalg.norm(one.astype(np.float64) - other.astype(np.float64))
        # One clip of 0.5 in each round so far, over an expected cohort of four; 32 bits round.
        assert moved <= number * (0.5 / POPULATION) * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["the largest", "huge", "nan", "both inf"])
def test_without_a_clip_the_adapter_stays_finite(tmp_path: Path, kind: str) -> None:
    """Mode none bounds nobody's influence; it only keeps numbers that are none out."""
    changes = ("privacy.mode=none", "audit.canaries=0")

    def reply(told: Instruction) -> RecordDict:
        records = ODD[kind][0](told)
        header_of(records)["stage"] = "plain"
        return records

    found = run(tmp_path, reply, *changes, stage="plain")
    assert all(np.isfinite(vector).all() for vector in found.vectors)
    assert np.linalg.norm(found.vectors[-1]) <= 1.01 * ROUNDS * LONGEST_UPDATE / POPULATION
    assert [flag.count for flag in found.flags] == [ROUNDS]
    # The others' part is there beside it.
    zeros = with_vector(lambda size: np.zeros(size), "plain")
    quiet = run(tmp_path / "q", zeros, *changes, stage="plain")
    if kind in {"nan", "both inf"}:
        assert same(found, quiet)


def test_a_node_that_says_it_is_another_counts_as_itself(tmp_path: Path, quiet: Outcome) -> None:
    """Enrolment says whom a node speaks for: nobody is asked, and no word in a reply counts."""
    reply = with_vector(lambda size: np.zeros(size))

    def says(told: Instruction) -> RecordDict:
        records = reply(told)
        header_of(records).update({"client": 0, "node": "clinic-0", "partition-id": 0})
        return records

    found = run(tmp_path, says)
    assert same(found, quiet)
    assert found.others == ()
