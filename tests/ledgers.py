"""Ledgers for tests, each in a SQLite file or in a schema of a real PostgreSQL server."""

from __future__ import annotations

import multiprocessing
import sqlite3
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from shared.errors import PrivacyBudgetExhausted
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_reservations import Reservation
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from tests.postgres import PostgresServer

SCOPE = "corpus"
GUARDED = ("entries", "heads")


def plan_of(**change: Any) -> PrivacyPlan:
    base: dict[str, Any] = {
        "mode": "client-central",
        "unit": "client",
        "neighboring_relation": "add-or-remove-one",
        "delta": 1e-4,
        "noise_multiplier": 2.0,
        "clipping_norm": 1.0,
        "sampling_probability": 0.2,
        "rounds": 6,
        "population": 100,
    }
    return make_plan(**{**base, **change})


PLAN = plan_of()
SEEDED = plan_of(noise_source="seeded-simulation")
EVENT = PLAN.event_for_participation()


def reserve(ledger: Ledger, n: int = 1, *subjects: str, **more: Any) -> Reservation:
    args: dict[str, Any] = {"run_id": "run", "event": EVENT, **more}
    return ledger.reserve(server_round=n, subjects=subjects or ("everyone",), **args)


def until_refused(ledger: Ledger, **more: Any) -> tuple[int, PrivacyBudgetExhausted]:
    """Reserve round after round; return how many were accepted, and the refusal."""
    for n in range(10_000):
        try:
            reserve(ledger, n, **more)
        except PrivacyBudgetExhausted as refused:
            return n, refused
    pytest.fail("nothing was ever refused")


@dataclass(frozen=True)
class Place:
    """Where a ledger is or will be; ``server`` is None for a file."""

    where: str
    server: PostgresServer | None = None
    schema: str = ""

    def damage(self, *statements: str) -> None:
        """Change it as someone would who knows SQL and the triggers, but not the hashes."""
        if self.server is None:
            db = sqlite3.connect(self.where)
            for table in GUARDED:
                db.execute(f"DROP TRIGGER IF EXISTS {table}_keep")
                db.execute(f"DROP TRIGGER IF EXISTS {table}_stay")
            for statement in statements:
                db.execute(statement)
            db.commit()
            db.close()
            return
        with self.server.connect(self.schema) as connection:
            for table in GUARDED:
                connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            for statement in statements:
                connection.execute(statement)


def processes() -> ForkServerContext:
    """Return a way to start processes that have imported and computed the plans already."""
    context = multiprocessing.get_context("forkserver")
    here = "tests.shared.privacy.test_ledger"
    context.set_forkserver_preload([here, f"{here}_sqlite", f"{here}_concurrency"])
    return context


def sqlite_place(folder: Path, name: str = "ledger.sqlite") -> Place:
    return Place(str(folder / name))


def postgres_place(server: PostgresServer) -> Place:
    schema = server.new_schema()
    return Place(server.url(schema), server, schema)
