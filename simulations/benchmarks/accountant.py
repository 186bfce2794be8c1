"""How long accounting takes when rounds are many and few kinds of them differ.

Seconds are process CPU time. Every case uses noise multipliers of its own, so that nothing kept
from an earlier case helps a later one; the second of importing dp-accounting is not counted.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence

from shared.privacy.accountant import (
    ONLINE,
    PldAccountant,
    PrivacyAccountant,
    RdpAccountant,
    epsilon_of,
)
from shared.privacy.events import GaussianEvent, NeighboringRelation, PrivacyEvent, SkellamEvent
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

SUMMARY = "Accounting for 10,000 rounds over 20 kinds of releases, and one query per round."

_DELTA = 1e-6
_ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
_REPLACE = NeighboringRelation.REPLACE_ONE
_FIRST_LIMIT = 10.0
_QUERY_LIMIT = 0.1
_DOUBLING_LIMIT = 2.6
_QUERIES = 20

Kinds = Sequence[PrivacyEvent]


def run(*, quick: bool) -> BenchResult:
    """Measure the first query, one query per further round, and growth with distinct kinds."""
    rounds, kinds = (1_000, 4) if quick else (10_000, 20)
    # Imports dp-accounting, and draws the one-time costs of scipy with it.
    for accountant in ("pld", "rdp"):
        epsilon_of(GaussianEvent(noise_multiplier=9.0), delta=_DELTA, relation=_ADD)
        epsilon_of(
            GaussianEvent(noise_multiplier=9.0, sampling_probability=0.5),
            delta=_DELTA,
            relation=_ADD,
            accountant=accountant,
        )
    cases: list[tuple[str, Callable[[], PrivacyAccountant], Kinds]] = [
        ("pld, running", lambda: PldAccountant(_ADD, interval=ONLINE), _gaussians(kinds, 0)),
        ("pld, report", lambda: PldAccountant(_ADD), _gaussians(kinds, 1)),
        ("rdp", lambda: RdpAccountant(_ADD), _gaussians(kinds, 2)),
        (
            "pld, running, replace-one",
            lambda: PldAccountant(_REPLACE, interval=ONLINE),
            _gaussians(kinds, 3),
        ),
        ("rdp, replace-one", lambda: RdpAccountant(_REPLACE), _gaussians(kinds, 4)),
        ("rdp, Skellam", lambda: RdpAccountant(_ADD), _skellams(kinds)),
    ]
    rows: list[Mapping[str, Scalar]] = []
    checks: list[Check] = []
    for name, make, events in cases:
        row = _history(name, make(), events, rounds)
        rows.append(row)
        first = float(row["first_query_s"] or 0.0) + float(row["compose_s"] or 0.0)
        checks.append(_seconds(f"{name}: {rounds} rounds", first, _FIRST_LIMIT))
        if name != "pld, report":
            worst = float(row["next_query_max_s"] or 0.0)
            checks.append(_seconds(f"{name}: a query per round", worst, _QUERY_LIMIT))
    grown, doubling = _growth(kinds, rounds)
    rows.extend(grown)
    name = f"pld, running: {2 * kinds} kinds over {kinds}"
    checks.append(Check(name=name, measured=doubling, limit=_DOUBLING_LIMIT, unit="x"))
    return BenchResult(
        name="accountant",
        parameters={"rounds": rounds, "kinds": kinds, "delta": _DELTA, "quick": quick},
        rows=tuple(rows),
        checks=tuple(checks),
    )


def _history(
    name: str, accountant: PrivacyAccountant, events: Kinds, rounds: int
) -> dict[str, Scalar]:
    """Compose a history round by round, ask once, then ask after every further round."""
    started = time.process_time()
    for event in itertools.islice(itertools.cycle(events), rounds):
        accountant.compose(event)
    composed = time.process_time()
    epsilon = accountant.epsilon(_DELTA)
    asked = time.process_time()
    each = []
    for event in itertools.islice(itertools.cycle(events), _QUERIES):
        before = time.process_time()
        accountant.compose(event)
        accountant.epsilon(_DELTA)
        each.append(time.process_time() - before)
    return {
        "case": name,
        "kinds": len(events),
        "epsilon": epsilon,
        "compose_s": composed - started,
        "first_query_s": asked - composed,
        "next_query_mean_s": sum(each) / len(each),
        "next_query_max_s": max(each),
    }


def _growth(kinds: int, rounds: int) -> tuple[list[dict[str, Scalar]], float]:
    """Measure the first query with half, as many and twice as many kinds."""
    rows: list[dict[str, Scalar]] = []
    for step, size in enumerate((kinds // 2, kinds, 2 * kinds)):
        accountant = PldAccountant(_ADD, interval=ONLINE)
        row = _history("pld, running: growth", accountant, _gaussians(size, 5 + step), rounds)
        rows.append(row)
    last, before = (float(rows[i]["first_query_s"] or 0.0) for i in (-1, -2))
    return rows, last / before


def _gaussians(kinds: int, case: int) -> list[PrivacyEvent]:
    """Return distinct Gaussian releases; cases differ in the fourth decimal of the noise."""
    return [
        GaussianEvent(
            noise_multiplier=round(0.8 + 0.1 * (k % 10) + 1e-4 * case + 1e-3 * k, 6),
            sampling_probability=0.005 * (1 + k // 10),
        )
        for k in range(kinds)
    ]


def _skellams(kinds: int) -> list[PrivacyEvent]:
    """Return distinct Skellam releases."""
    return [
        SkellamEvent(
            noise_multiplier=round(0.8 + 0.1 * (k % 10) + 1e-3 * k, 6),
            grid=2**18,
            sampling_probability=0.005 * (1 + k // 10),
        )
        for k in range(kinds)
    ]


def _seconds(name: str, measured: float, limit: float) -> Check:
    """Return a check of a time."""
    return Check(name=name, measured=measured, limit=limit, unit="s")
