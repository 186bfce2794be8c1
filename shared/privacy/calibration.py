"""From a target epsilon to the noise that meets it, or to the releases that fit.

Every search asks the accountant whose number is reported: PLD first on its coarse grid
(pessimistic, quick), then on the fine one near the answer; Renyi, where Skellam noise is too coarse
for PLD, has no grid. What is returned was itself checked on the fine grid.
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
    coarse = _first(lambda k: spends(k, ONLINE) <= epsilon, low, high, start=_UNIT)
    spent = spends(coarse, REPORT)
    if (1.0 - _TOLERANCE) * epsilon <= spent <= epsilon:
        return coarse / _UNIT
    # Epsilon is roughly proportional to 1 / noise, so this is where the answer should be.
    start = math.floor(coarse * min(1.0, spent / epsilon))
    return _first(lambda k: spends(k, REPORT) <= epsilon, low, high, start=start) / _UNIT


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

    def over(count: int, interval: float) -> bool:
        spent = epsilon_of(
            event_of(count),
            delta=delta,
            relation=relation,
            accountant=accountant,
            interval=interval,
        )
        return spent > epsilon

    beyond = MOST_RELEASES + 1
    coarse = _first(lambda n: over(n, ONLINE), 1, beyond, start=1)
    return _first(lambda n: over(n, REPORT), 1, beyond, start=coarse) - 1


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


def _first(holds: Callable[[int], bool], low: int, high: int, *, start: int) -> int:
    """Return the smallest integer in ``[low, high]`` at which a monotone condition holds.

    ``holds(high)`` is taken for granted. The search leaves ``start`` in growing steps in the
    direction of the answer, then halves.
    """
    at = min(max(start, low), high)
    step = 1
    if at == high or holds(at):
        high = at
        while low < high and holds(max(low, high - step)):
            high, step = max(low, high - step), 4 * step
        low = max(low, high - step + 1)
    else:
        low = at + 1
        while low + step < high and not holds(low + step):
            low, step = low + step + 1, 4 * step
        high = min(high, low + step)
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
