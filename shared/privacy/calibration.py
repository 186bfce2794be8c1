"""From a target epsilon to the noise that meets it, or to the releases that fit.

Every search asks the accountant whose number is reported: PLD first on its coarse grid
(pessimistic, quick), then on the fine one near the answer; Renyi, where Skellam noise is too coarse
for PLD, has no grid. What is returned was itself checked on the fine grid. A search follows the
secant on logarithms, on which epsilon is nearly a straight line, and ends only between two
neighbours of which one meets the target and the other does not: how it got there changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shared import validate
from shared.errors import CalibrationError
from shared.privacy.accountant import ONLINE, REPORT, AccountantName, epsilon_of, relation_of
from shared.privacy.events import GaussianEvent, NeighboringRelation, PrivacyEvent

DECIMALS = 4
SMALLEST_NOISE = 0.01
LARGEST_NOISE = 10_000.0
MOST_RELEASES = 1_000_000
_UNIT: int = 10**DECIMALS
_TOLERANCE = 1e-3
# A search follows the secant; from so many steps on every second one halves what is left.
_SECANTS = 8
_LARGEST_MOVE = math.log(4.0)


def calibrate(
    event_of: Callable[[float], PrivacyEvent],
    *,
    epsilon: float,
    delta: float,
    relation: NeighboringRelation,
    accountant: AccountantName | None = None,
) -> float:
    """Return the noise multiplier whose epsilon comes closest to the target from below.

    Args:
        event_of: everything that a run would release with a given noise multiplier; its epsilon
            falls as noise grows. It is called with multiples of 0.0001 from 0.01 to 10,000.
        epsilon: target, > 0 and finite.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        accountant: which bound on epsilon must meet the target; by default the reported one.

    Returns:
        A multiple of 0.0001: ``epsilon_of`` the result is at most ``epsilon``, and either above
        99.9 % of it or with 0.0001 less noise it would be above ``epsilon``. At least 0.01, below
        which noise is a formality.

    Raises:
        InvalidValue: for an argument out of range.
        UnsupportedEvent: if the accountant does not know an event.
        CalibrationError: if even a noise multiplier of 10,000 is not enough, as happens when
            ``delta`` is below what the accountant resolves (about 1e-15 for PLD).
    """
    validate.positive(epsilon=epsilon)
    validate.open_unit(delta=delta)
    relation = relation_of(relation)

    def spends(units: int, interval: float) -> float:
        return epsilon_of(
            event_of(units / _UNIT),
            delta=delta,
            relation=relation,
            accountant=accountant,
            interval=interval,
        )

    low, high = round(SMALLEST_NOISE * _UNIT), round(LARGEST_NOISE * _UNIT)
    if not spends(high, ONLINE) <= epsilon:
        msg = (
            f"epsilon={epsilon!r} at delta={delta!r} is not reached, even with noise_multiplier="
            f"{LARGEST_NOISE:g}."
        )
        raise CalibrationError(msg, hint="Use a larger epsilon or delta, or fewer rounds.")

    def least(interval: float, start: int) -> int:
        def meets(units: int) -> tuple[bool, float]:
            spent = spends(units, interval)
            return spent <= epsilon, _log_ratio(spent, epsilon)

        return _first(meets, low, high, start=start, slope=-1.0)

    coarse = least(ONLINE, _UNIT)
    if (1.0 - _TOLERANCE) * epsilon <= spends(coarse, REPORT) <= epsilon:
        return coarse / _UNIT
    return least(REPORT, coarse) / _UNIT


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    relation: NeighboringRelation,
    sampling_probability: float,
    count: int,
) -> float:
    """Return :func:`calibrate` for equal Gaussian releases.

    Args:
        epsilon: target, > 0 and finite.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        sampling_probability: of each Poisson-subsampled release, in ``(0, 1]``.
        count: number of releases, >= 1.

    Returns:
        The noise multiplier, a multiple of 0.0001.

    Raises:
        InvalidValue: for an argument out of range.
        CalibrationError: if the target is out of reach.
    """

    def event_of(noise_multiplier: float) -> PrivacyEvent:
        return GaussianEvent(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            count=count,
        )

    return calibrate(event_of, epsilon=epsilon, delta=delta, relation=relation)


def largest_count(
    event_of: Callable[[int], PrivacyEvent],
    *,
    epsilon: float,
    delta: float,
    relation: NeighboringRelation,
    accountant: AccountantName | None = None,
) -> int:
    """Return how many releases fit under an epsilon.

    Args:
        event_of: everything that so many releases reveal, for counts from 1 to 1,000,000; its
            epsilon grows with the count.
        epsilon: the budget, > 0 and finite.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        accountant: which bound on epsilon counts; by default the reported one.

    Returns:
        The largest count whose epsilon is at most the budget: 0 if one release is too much, and
        1,000,000 if at least that many fit.

    Raises:
        InvalidValue: for an argument out of range.
        UnsupportedEvent: if the accountant does not know an event.
    """
    validate.positive(epsilon=epsilon)
    validate.open_unit(delta=delta)
    relation = relation_of(relation)

    def most(interval: float, start: int) -> int:
        def over(count: int) -> tuple[bool, float]:
            spent = epsilon_of(
                event_of(count),
                delta=delta,
                relation=relation,
                accountant=accountant,
                interval=interval,
            )
            return spent > epsilon, _log_ratio(spent, epsilon)

        return _first(over, 1, MOST_RELEASES + 1, start=start, slope=0.5) - 1

    return most(REPORT, max(1, most(ONLINE, 1)))


def calibrate_count(
    *,
    epsilon: float,
    delta: float,
    relation: NeighboringRelation,
    sampling_probability: float,
    noise_multiplier: float,
) -> int:
    """Return :func:`largest_count` for equal Gaussian releases.

    Args:
        epsilon: the budget, > 0 and finite.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        sampling_probability: of each release, in ``(0, 1]``.
        noise_multiplier: noise divided by the clip, > 0.

    Returns:
        The largest count whose epsilon is at most the budget, from 0 to 1,000,000.

    Raises:
        InvalidValue: for an argument out of range.
    """

    def event_of(count: int) -> PrivacyEvent:
        return GaussianEvent(
            noise_multiplier=noise_multiplier,
            sampling_probability=sampling_probability,
            count=count,
        )

    return largest_count(event_of, epsilon=epsilon, delta=delta, relation=relation)


def _first(
    probe: Callable[[int], tuple[bool, float]], low: int, high: int, *, start: int, slope: float
) -> int:
    """Return the smallest integer in ``[low, high]`` at which a monotone condition holds.

    Args:
        probe: tells whether it holds, and a measure that grows or falls with the integer and is 0
            where the condition changes; it may be infinite.
        low: >= 1.
        high: where it holds, which is taken for granted.
        start: where to look first.
        slope: of the measure over the logarithm of the integer, until two are known.
    """
    fails, holds = low - 1, high
    at, steps = min(max(start, low), high - 1), 0
    last: tuple[float, float] | None = None
    while holds - fails > 1:
        met, measure = probe(at)
        fails, holds = (fails, at) if met else (at, holds)
        here, steps = math.log(at), steps + 1
        if last is not None and math.isfinite(measure):
            slope = (measure - last[1]) / (here - last[0]) or slope
        last = (here, measure) if math.isfinite(measure) else None
        # Too far a step may land where an evaluation is long: at next to no noise, say.
        move = min(max(-measure / slope, -_LARGEST_MOVE), _LARGEST_MOVE)
        middle = steps > _SECANTS and steps % 2 == 0
        at = (fails + holds) // 2 if middle else math.ceil(math.exp(here + move))
        at = min(max(at, fails + 1), holds - 1)
    return holds


def _log_ratio(spent: float, epsilon: float) -> float:
    """Return ``log(spent / epsilon)``; minus infinity for nothing."""
    return math.log(spent / epsilon) if spent > 0.0 else -math.inf
