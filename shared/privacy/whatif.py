"""Planning a budget before anything is run: epsilon by round, and what other choices would cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFigure:
    """What is spent after some of the planned rounds.

    Attributes:
        rounds: how many rounds.
        epsilon: by PLD, at the plan's delta.
        epsilon_rdp: the Renyi cross-check.
    """

    rounds: int
    epsilon: float
    epsilon_rdp: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One other choice and its epsilon, all else as planned.

    Attributes:
        change: the choice in words.
        rounds: server rounds.
        sampling_probability: of a unit in a release.
        noise_multiplier: noise divided by the clip.
        epsilon: what it would spend.
    """

    change: str
    rounds: int
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
    figures = []
    for rounds in steps:
        part = replace(plan, rounds=rounds)
        figures.append(
            RoundFigure(
                rounds=rounds,
                epsilon=plan.epsilon_after(rounds),
                epsilon_rdp=part.epsilon(accountant="rdp"),
            )
        )
    return figures


def alternatives(plan: PrivacyPlan) -> list[Alternative]:
    """Return the plan beside half and twice its rounds and sampling, and a quarter more noise."""
    return [_alternative(change, other) for change, other in _variants(plan)]


def _variants(plan: PrivacyPlan) -> Iterator[tuple[str, PrivacyPlan]]:
    """Yield the plan and its neighbours, each with its name."""
    noise, sampling = plan.noise_multiplier or 1.0, plan.sampling_probability
    yield "as planned", plan
    if plan.rounds > 1:
        yield "half the rounds", replace(plan, rounds=plan.rounds // 2)
    yield "twice the rounds", replace(plan, rounds=2 * plan.rounds)
    yield "half the sampling", replace(plan, sampling_probability=sampling / 2)
    if sampling < 1:
        yield "twice the sampling", replace(plan, sampling_probability=min(1.0, 2 * sampling))
    yield "25 % more noise", replace(plan, noise_multiplier=1.25 * noise)
    yield "20 % less noise", replace(plan, noise_multiplier=0.8 * noise)


def _alternative(change: str, plan: PrivacyPlan) -> Alternative:
    """Evaluate one variant."""
    return Alternative(
        change=change,
        rounds=plan.rounds,
        sampling_probability=plan.sampling_probability,
        noise_multiplier=plan.noise_multiplier or 0.0,
        epsilon=plan.epsilon(),
    )
