"""Planning a budget before anything is run: epsilon by round, and what other choices would cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from shared.privacy.accountant import ONLINE, AccountantName, epsilon_of
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigure:
    """What is spent after some of the planned rounds.

    Attributes:
        rounds: how many rounds.
        epsilon: by the plan's accountant, at the plan's delta.
        epsilon_rdp: the Renyi cross-check.
        noise_multiplier: of all that the last of these rounds releases, a vote included.
    """

    rounds: int
    epsilon: float
    epsilon_rdp: float
    noise_multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One other choice and its epsilon, all else as planned.

    Attributes:
        change: the choice in words.
        rounds: server rounds.
        cohort: expected number of clients in a round; ``None`` where no client is sampled.
        sampling_probability: of a unit in a release.
        noise_multiplier: noise divided by the clip.
        epsilon: what it would spend.
    """

    change: str
    rounds: int
    cohort: float | None
    sampling_probability: float
    noise_multiplier: float
    epsilon: float


def by_round(plan: PrivacyPlan, *, points: int = 10) -> list[RoundFigure]:
    """Return what is spent after evenly spaced rounds, the first and the last included.

    Args:
        plan: a private plan.
        points: how many rounds to evaluate at most.
    """
    last = plan.rounds
    count = min(points, last)
    steps = sorted({round(1 + i * (last - 1) / max(1, count - 1)) for i in range(count)})
    return [
        RoundFigure(
            rounds=rounds,
            epsilon=plan.epsilon_after(rounds),
            epsilon_rdp=_epsilon(plan, "rdp", rounds),
            noise_multiplier=plan.charged_noise_of(rounds),
        )
        for rounds in steps
    ]


def alternatives(plan: PrivacyPlan) -> list[Alternative]:
    """Return the plan beside half and twice its rounds and cohort, and more and less noise.

    With correlated noise, rounds and cohort change at the same noise in each round: the noise
    multiplier of the run then follows, because a client can take part more or less often.
    """
    figures = []
    for change, other in _variants(plan):
        # The plan's own figure is exact; the others are on a coarser grid, above it by less than
        # 0.01 (docs/sharp-edges.md), at a tenth of the time.
        epsilon = plan.epsilon() if other is plan else _epsilon(other, None)
        figures.append(_alternative(change, other, epsilon))
    return figures


def _variants(plan: PrivacyPlan) -> Iterator[tuple[str, PrivacyPlan]]:
    """Yield the plan and its neighbours, each with its name."""
    noise = plan.noise_multiplier or 1.0
    yield "as planned", plan
    if plan.rounds > 1:
        yield "half the rounds", _with_rounds(plan, plan.rounds // 2)
    yield "twice the rounds", _with_rounds(plan, 2 * plan.rounds)
    yield from _sampling_variants(plan)
    yield "25 % more noise", _changed(plan, noise_multiplier=1.25 * noise)
    yield "20 % less noise", _changed(plan, noise_multiplier=0.8 * noise)


def _sampling_variants(plan: PrivacyPlan) -> Iterator[tuple[str, PrivacyPlan]]:
    """Yield half and twice the number of those who take part."""
    what = "sampling" if plan.mode == "example" else "cohort"
    terms, sampling = plan.correlated, plan.sampling_probability
    if terms is not None:
        apart = terms.min_separation
        if 2 * apart <= plan.rounds:
            yield f"half the {what}", _with_terms(plan, plan.rounds, 2 * apart)
        if apart > 1:
            yield f"twice the {what}", _with_terms(plan, plan.rounds, apart // 2)
        return
    yield f"half the {what}", _changed(plan, sampling_probability=sampling / 2)
    if sampling < 1:
        yield f"twice the {what}", _changed(plan, sampling_probability=min(1.0, 2 * sampling))


def _with_rounds(plan: PrivacyPlan, rounds: int) -> PrivacyPlan:
    """Return the plan over another number of rounds."""
    if plan.correlated is None:
        return _changed(plan, rounds=rounds)
    return _with_terms(plan, rounds, min(rounds, plan.correlated.min_separation))


def _with_terms(plan: PrivacyPlan, rounds: int, separation: int) -> PrivacyPlan:
    """Return a correlated plan over other rounds or participations, with equal noise a round."""
    old = plan.correlated or CorrelatedTerms(bands=1, min_separation=1, rounds=rounds)
    new = CorrelatedTerms(
        bands=min(old.bands, separation), min_separation=separation, rounds=rounds
    )
    noise = (plan.noise_multiplier or 1.0) * old.sensitivity / new.sensitivity
    return _changed(plan, rounds=rounds, correlated=new, noise_multiplier=noise)


def _changed(plan: PrivacyPlan, **changes: Any) -> PrivacyPlan:  # noqa: ANN401  (fields of a plan)
    """Return the plan with some fields changed; the steps inside clients are another question."""
    return replace(plan, example=None, **changes)


def _epsilon(
    plan: PrivacyPlan, accountant: AccountantName | None, rounds: int | None = None
) -> float:
    """Return epsilon after some rounds, or all, on the grid that is used while a run goes on."""
    if plan.delta is None or plan.neighboring_relation is None:
        return math.inf
    return epsilon_of(
        plan.events_after(plan.rounds if rounds is None else rounds),
        delta=plan.delta,
        relation=plan.neighboring_relation,
        accountant=accountant or plan.accountant,
        interval=ONLINE,
    )


def _alternative(change: str, plan: PrivacyPlan, epsilon: float) -> Alternative:
    """Describe one variant."""
    return Alternative(
        change=change,
        rounds=plan.rounds,
        cohort=None if plan.mode == "example" else plan.expected_cohort,
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier or 0.0,
        epsilon=epsilon,
    )
