"""How long the budget ledger takes when subjects or rounds are many.

Seconds are wall-clock time: a charge waits for the disk. Promises are held to 95 % of the times,
because one of ten thousand may wait for whatever else the machine does; the slowest is shown.

Every ledger is signed. The second of importing dp-accounting is not counted, and a plan's own
epsilon is computed once before. Stores have plans of different noise, so that no figure kept from
the first helps the second. SQLite is measured in the folder for temporary files; PostgreSQL too if
``FEDSLM_BENCH_POSTGRES`` holds the URL of an empty schema
(``postgresql://user@host/database?options=-csearch_path%3Dname``).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.errors import InvalidValue
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

SUMMARY = "The budget ledger with 100,000 subjects, and with 10,000 rounds of one subject."
POSTGRES = "FEDSLM_BENCH_POSTGRES"

_CHARGE_LIMIT = 1.0
_STATUS_LIMIT = 0.05
_ROUND_LIMIT = 0.1
_SCOPE = "benchmark"
_REPEATS = 20
_PART = 0.95
_STRIDE = 7_919

Row = Mapping[str, Scalar]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size:
    """How much is measured."""

    subjects: int
    cohort: int
    rounds: int


def run(*, quick: bool) -> BenchResult:
    """Measure charging, status and verification."""
    size = (
        _Size(subjects=2_000, cohort=100, rounds=200)
        if quick
        else _Size(subjects=100_000, cohort=1_000, rounds=10_000)
    )
    # Imports dp-accounting, and draws the one-time costs of scipy with it.
    _plan(1, noise_multiplier=2.0).epsilon()
    rows: list[Row] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as folder:
        places = {"sqlite": str(Path(folder) / "ledger.sqlite")}
        if url := os.environ.get(POSTGRES):
            places["postgresql"] = url
        signer = LedgerSigner.load_or_create(Path(folder) / "ledger.key")
        for store, where in places.items():
            plan = _plan(size.rounds, noise_multiplier=1.0 if store == "sqlite" else 1.1)
            plan.epsilon()
            with Ledger(where, signer=signer) as ledger:
                if ledger.head().seq:
                    msg = f"{POSTGRES} names a ledger that is not empty."
                    raise InvalidValue(msg, hint="Give the URL of an empty schema.")
                ledger.register_plan("run", plan, _SCOPE)
                measure = partial(_Measure, store=store, ledger=ledger, plan=plan, size=size)
                for found, promised in (measure().subjects(), measure().rounds()):
                    rows.extend(found)
                    checks.extend(promised)
    parameters: dict[str, Scalar] = {
        "subjects": size.subjects,
        "cohort": size.cohort,
        "rounds": size.rounds,
        "stores": ", ".join(places),
        "quick": quick,
    }
    return BenchResult(name="ledger", parameters=parameters, rows=tuple(rows), checks=tuple(checks))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measure:
    """Measures one store."""

    store: str
    ledger: Ledger
    plan: PrivacyPlan
    size: _Size

    def subjects(self) -> tuple[list[Row], list[Check]]:
        """Measure a ledger with many subjects."""
        names = [f"client-{i:06d}" for i in range(self.size.subjects)]
        cohorts = [names[i : i + self.size.cohort] for i in range(0, len(names), self.size.cohort)]
        filled = self._times(cohorts, self._charge)
        # Of the whole population, not neighbours in the index.
        scattered = [names[k :: len(cohorts)] for k in range(min(_REPEATS, len(cohorts)))]
        charged = self._times(scattered, self._charge)
        # The first question builds the loss of one release; then each history is another one.
        asked_for = [names[i * _STRIDE % len(names)] for i in range(_REPEATS)]
        for extra, name in enumerate(asked_for):
            for _ in range(extra):
                self._charge([name])
        first = self._times(asked_for[:1], self._status)
        asked = self._times(asked_for[1:], self._status)
        verified = self._times([None], lambda _: self.ledger.verify())
        what = f"{self.size.subjects} subjects"
        rows = [
            self._row(f"{what}: charge of new cohorts", filled),
            self._row(f"{what}: charge of known cohorts", charged),
            self._row(f"{what}: first status in a process", first),
            self._row(f"{what}: status of one, each with another history", asked),
            self._row(f"{what}: verify", verified),
        ]
        checks = [
            self._check(f"charge of {self.size.cohort} clients", charged, _CHARGE_LIMIT),
            self._check(f"status of one of {what}", asked, _STATUS_LIMIT),
        ]
        return rows, checks

    def rounds(self) -> tuple[list[Row], list[Check]]:
        """Measure a ledger in which one subject has a long history."""
        numbers = list(range(self.size.rounds))
        reserved = self._times(numbers, lambda n: self._charge(["population"], n))
        # The cap is above the plan, so these are decided one by one.
        beyond = self._times(numbers[:_REPEATS], lambda n: self._charge(["population"], n))
        asked = self._times([None], lambda _: self._status("population"))
        verified = self._times([None], lambda _: self.ledger.verify())
        what = f"{self.size.rounds} rounds"
        rows = [
            self._row(f"{what} of one subject: charge within the plan", reserved),
            self._row(f"{what} of one subject: charge beyond the plan", beyond),
            self._row(f"{what} of one subject: status", asked),
            self._row(f"{what} and {self.size.subjects} subjects: verify", verified),
        ]
        checks = [
            self._check(f"charge of one subject over {what}", reserved, _ROUND_LIMIT),
            self._check(f"charge of one subject beyond {what}", beyond, _ROUND_LIMIT),
            self._check(f"status after {what}", asked, _STATUS_LIMIT),
        ]
        return rows, checks

    def _charge(self, names: Sequence[str], server_round: int = 1) -> None:
        """Charge a cohort."""
        self.ledger.reserve(
            run_id="run",
            server_round=server_round,
            subjects=names,
            event=self.plan.event_for_participation(),
        )

    def _status(self, name: str) -> None:
        """Ask what one subject has spent."""
        self.ledger.spent(name, _SCOPE)

    @staticmethod
    def _times(arguments: Sequence[object], work: Callable[..., object]) -> list[float]:
        """Return the seconds that a piece of work took with each argument."""
        found = []
        for argument in arguments:
            started = time.perf_counter()
            work(argument)
            found.append(time.perf_counter() - started)
        return found

    def _row(self, what: str, seconds: list[float]) -> Row:
        """Return the row of one kind of work."""
        return {
            "store": self.store,
            "case": what,
            "times": len(seconds),
            "mean_s": sum(seconds) / len(seconds),
            "p95_s": _most(seconds),
            "max_s": max(seconds),
        }

    def _check(self, what: str, seconds: list[float], limit: float) -> Check:
        """Return a check of what most times kept below."""
        return Check(name=f"{self.store}: {what}", measured=_most(seconds), limit=limit, unit="s")


def _most(seconds: list[float]) -> float:
    """Return the time that 95 % of the times do not exceed."""
    return sorted(seconds)[math.ceil(_PART * len(seconds)) - 1]


def _plan(rounds: int, *, noise_multiplier: float) -> PrivacyPlan:
    """Return a plan of that many rounds with a cap above what it costs."""
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-6,
        noise_multiplier=noise_multiplier,
        clipping_norm=1.0,
        sampling_probability=0.005,
        rounds=rounds,
        population=100_000,
        cap=50.0,
    )
