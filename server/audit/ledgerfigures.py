"""Epsilon of stored events, recomputed by two accountants that share no code."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.audit.fourier import SMALLEST_DELTA, fourier_epsilon
from server.audit.ledgerfacts import Facts, History
from shared.privacy import likeness
from shared.privacy.accountant import ONLINE, REPORT, epsilon_of, reporting_accountant
from shared.privacy.events import NeighboringRelation

_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the stored events of the worst subject of one unit come to.

    Attributes:
        unit: whose presence is hidden.
        delta: of every figure here.
        epsilon: by the accountant that reports; None if it is infinite.
        accountant: that accountant, ``"pld"`` or ``"rdp"``.
        second: by an accountant that shares no code with it, an estimate; None where that one
            cannot be asked (Skellam noise on a coarse grid, a tiny delta, an infinite epsilon).
        slack: how far the two may be apart because Skellam noise is only like Gaussian noise.
        renyi: the Renyi bound, which is never below the truth; None if it is infinite.
        releases: noised releases; None if one was not noised.
    """

    unit: str
    delta: float
    epsilon: float | None
    accountant: str
    second: float | None
    slack: float
    renyi: float | None
    releases: int | None

    def sentence(self) -> str:
        """Say the numbers with everything that an epsilon needs beside it."""
        if self.epsilon is None:
            return f"The stored events about one {self.unit} give no finite epsilon."
        second = "" if self.second is None else f", {self.second:.4g} by a second accountant"
        renyi = "" if self.renyi is None else f", at most {self.renyi:.4g} by Renyi divergence"
        return (
            f"The stored events about the {self.unit} that was charged most give epsilon "
            f"{self.epsilon:.4g} at delta {self.delta:g} after {self.releases} releases (by "
            f"{self.accountant.upper()}{second}{renyi})."
        )


def figures_of(facts: Facts) -> tuple[Figures, ...]:
    """Recompute epsilon for each part of the plan whose unit was charged; the plan itself first.

    Clients' own data are disjoint, so epsilon is that of the client with the worst history.
    """
    worst = (worst_history(facts, str(part.unit)) for part in facts.parts)
    return tuple(_figures(history) for history in worst if history is not None)


def worst_history(facts: Facts, unit: str) -> History | None:
    """Return the history of one unit with the largest epsilon; None if it was never charged.

    A history that is a part of another has no larger epsilon, so mostly one is left to look at.
    """
    kept: list[History] = []
    mine = (history for history in facts.histories if history.unit == unit)
    for one in sorted(mine, key=lambda h: h.composition.releases, reverse=True):
        if not any(one.within(other) for other in kept):
            kept.append(one)
    if len(kept) < 2:
        return kept[0] if kept else None
    return max(kept, key=lambda h: history_epsilon(h, interval=ONLINE))


def history_epsilon(history: History, *, interval: float = REPORT) -> float:
    """Return epsilon by the accountant that reports."""
    event = history.composition.to_event()
    return epsilon_of(event, delta=history.delta, relation=history.relation, interval=interval)


def _figures(history: History) -> Figures:
    """Recompute one history."""
    composition, delta = history.composition, history.delta
    event = composition.to_event()
    epsilon, slack = history_epsilon(history), likeness.slack(composition)
    renyi = epsilon_of(event, delta=delta, relation=history.relation, accountant="rdp")
    second = math.inf
    if math.isfinite(epsilon + slack) and delta >= SMALLEST_DELTA:
        second = fourier_epsilon(
            likeness.gaussian_twin(composition).pairs,
            delta=delta,
            replace_one=history.relation is NeighboringRelation.REPLACE_ONE,
        )
    return Figures(
        unit=history.unit,
        delta=delta,
        epsilon=_stored(epsilon),
        accountant=reporting_accountant(event),
        second=_stored(second),
        slack=_stored(slack) or 0.0,
        renyi=_stored(renyi),
        releases=round(composition.releases) if composition.private else None,
    )


def _stored(value: float) -> float | None:
    """Return a number as a finding holds it; None for infinity."""
    return round(value, _DIGITS) if math.isfinite(value) else None
