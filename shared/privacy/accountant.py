"""Epsilon of composed events, by the definitions and formulas of Google's ``dp-accounting``.

Two accountants, both upper bounds:

* **PLD** (privacy loss distributions) is the number that is reported. It is valid for a schedule
  fixed in advance. The privacy loss is put on a grid pessimistically
  (:mod:`shared.privacy.losses`), so a coarse grid only makes epsilon larger: 1e-3 while running
  (``ONLINE``; at most about 0.02 too large, a few milliseconds) and 1e-4 for what is reported or
  calibrated (``REPORT``). Losses that would need more than 1.5 million grid points get a coarser
  grid.
* **RDP** (Renyi) is the cross-check, and the filter when parameters may depend on earlier
  outputs: at one order fixed in advance, sums of Renyi divergences compose adaptively (Feldman and
  Zrnic 2021, arXiv:2008.11193).

Skellam noise has no PLD of its own: its loss depends on the direction of the change and the worst
one is not known. On a fine grid it is so like Gaussian noise that the PLD of the same history with
Gaussian noise, a small slack added, is proved to bound it (:mod:`shared.privacy.likeness`). That,
or Renyi's figure where it is smaller (epsilons below the slack or above about fifty), is its PLD
figure. Where the slack is too large, :class:`PldAccountant` refuses and Renyi's is reported.

``dp_accounting`` takes about a second to import, so it is imported on first use.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, Protocol, get_args

from shared import validate
from shared.errors import InvalidValue, UnsupportedEvent
from shared.privacy import likeness, losses, renyi
from shared.privacy.events import Composition, NeighboringRelation, PrivacyEvent
from shared.privacy.losses import Losses

AccountantName = Literal["pld", "rdp"]

ONLINE = 1e-3
REPORT = 1e-4
_MAX_GRID_POINTS = 1_500_000
# exp of a wider cell is no double any more. Such a history has an epsilon of millions: none.
_WIDEST_INTERVAL = 512.0
_LARGEST_SCALE = 1e100


class PrivacyAccountant(Protocol):
    """Composes events on one unit's data and bounds what they reveal about it."""

    @property
    def relation(self) -> NeighboringRelation:
        """Return the neighbouring relation that epsilon refers to."""
        ...

    def compose(self, event: PrivacyEvent) -> None:
        """Add one event.

        Raises:
            UnsupportedEvent: if it cannot be accounted for; nothing is added then.
        """
        ...

    def epsilon(self, delta: float) -> float:
        """Return an upper bound on epsilon at ``delta``; infinite if a release was not private.

        Raises:
            InvalidValue: if ``delta`` is not in ``(0, 1)``.
        """
        ...


class PldAccountant:
    """The reported number: composed privacy loss distributions.

    A query after each event is quick: what was composed before is kept, and only the new part is
    added. The cost of a first query is linear in the number of distinct pairs.

    Args:
        relation: the neighbouring relation.
        interval: grid of the privacy loss, :data:`ONLINE` or :data:`REPORT`.

    Raises:
        InvalidValue: if the interval is not positive.
    """

    def __init__(self, relation: NeighboringRelation, *, interval: float = REPORT) -> None:
        validate.positive(interval=interval)
        self._relation = NeighboringRelation(relation)
        self._base_interval = interval
        self._interval = interval
        self._composed: tuple[Losses, ...] = ()
        self._seen = Composition()
        self._done = Composition()

    @property
    def relation(self) -> NeighboringRelation:
        """Return the neighbouring relation."""
        return self._relation

    def compose(self, event: PrivacyEvent) -> None:
        """Add one event (see :class:`PrivacyAccountant`).

        Raises:
            UnsupportedEvent: also for Skellam releases on a grid so coarse, or so many of them,
                that they are too unlike Gaussian ones.
        """
        seen = self._seen.plus(Composition.of(event))
        if not math.isfinite(likeness.slack(seen)):
            msg = "a history with Skellam releases is too unlike one with Gaussian noise for PLD."
            raise UnsupportedEvent(msg, hint='Use accountant "rdp", or a finer grid.')
        self._seen = seen

    def epsilon(self, delta: float) -> float:
        """Return epsilon at ``delta`` (see :class:`PrivacyAccountant`)."""
        validate.open_unit(delta=delta)
        if not self._countable():
            return math.inf
        slack = likeness.slack(self._seen)
        asked = likeness.twin_delta(delta, slack)
        twin = max((way.epsilon(asked) for way in self._current()), default=0.0)
        found = likeness.epsilon_from_twin(twin, delta, slack)
        # The smaller of two bounds that grow with a history grows with it too.
        return min(found, renyi.best(self._seen, delta, self._relation)[0]) if slack else found

    def delta(self, epsilon: float) -> float:
        """Return an upper bound on delta at ``epsilon``.

        Raises:
            InvalidValue: if ``epsilon`` is not finite and at least 0.
        """
        validate.non_negative(epsilon=epsilon)
        if not self._countable():
            return 1.0
        slack = likeness.slack(self._seen)
        asked = max(0.0, epsilon - slack)
        twin = max((way.delta(asked) for way in self._current()), default=0.0)
        return likeness.delta_from_twin(twin, epsilon, slack)

    def _countable(self) -> bool:
        """Tell whether there is a bound: noise everywhere, and not next to none."""
        if not self._seen.private:
            return False
        twin = likeness.gaussian_twin(self._seen)
        return _interval(twin, self._relation, self._base_interval) <= _WIDEST_INTERVAL

    def _current(self) -> tuple[Losses, ...]:
        """Bring the kept distributions up to date and return them; none if nothing happened."""
        seen = likeness.gaussian_twin(self._seen)
        interval = _interval(seen, self._relation, self._base_interval)
        if interval != self._interval:
            self._interval, self._composed, self._done = interval, (), Composition()
        done = {(q, z): n for q, z, n in self._done.pairs}
        for q, z, n in seen.pairs:
            new = n - done.get((q, z), 0)
            if new:
                part = losses.releases(q, z, new, self._relation, interval)
                self._composed = losses.together(self._composed, part) if self._composed else part
        self._done = seen
        return self._composed


class RdpAccountant:
    """The cross-check and the adaptive filter: sums of Renyi divergences.

    Args:
        relation: the neighbouring relation.
    """

    def __init__(self, relation: NeighboringRelation) -> None:
        self._relation = NeighboringRelation(relation)
        self._seen = Composition()

    @property
    def relation(self) -> NeighboringRelation:
        """Return the neighbouring relation."""
        return self._relation

    def compose(self, event: PrivacyEvent) -> None:
        """Add one event (see :class:`PrivacyAccountant`)."""
        self._seen = self._seen.plus(Composition.of(event))

    def epsilon(self, delta: float) -> float:
        """Return epsilon at ``delta``, at the best order (see :class:`PrivacyAccountant`)."""
        return renyi.best(self._seen, delta, self._relation)[0]


def epsilon_of(
    *events: PrivacyEvent,
    delta: float,
    relation: NeighboringRelation,
    accountant: AccountantName | None = None,
    interval: float = REPORT,
) -> float:
    """Return an upper bound on epsilon of some events on the same unit's data.

    Results are kept by what composition depends on, so equal histories of many clients cost one
    evaluation.

    Args:
        *events: in any order; none at all gives 0.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        accountant: ``"pld"`` or ``"rdp"``; by default the one whose number is reported, see
            :func:`reporting_accountant`.
        interval: grid of the privacy loss for PLD.

    Returns:
        Epsilon, possibly infinite.

    Raises:
        InvalidValue: for a delta, relation or accountant that is not one.
        UnsupportedEvent: if an event, nested or not, cannot be accounted for by this accountant.
    """
    composition = Composition.of(*events)
    validate.open_unit(delta=delta)
    relation = relation_of(relation)
    if accountant is None:
        accountant = _reporting(composition)
    if accountant not in get_args(AccountantName):
        msg = f"accountant={accountant!r}, expected 'pld' or 'rdp'."
        raise InvalidValue(msg)
    if accountant == "pld":
        return _pld_epsilon(composition, delta, relation, interval)
    return renyi.best(composition, delta, relation)[0]


def reporting_accountant(*events: PrivacyEvent) -> AccountantName:
    """Return the accountant whose number is reported for these events.

    ``"pld"``, or ``"rdp"`` if there are Skellam releases among them that are too unlike Gaussian
    ones (see :func:`shared.privacy.likeness.slack`). More releases can only turn PLD into RDP, and
    epsilon does not fall there: the PLD figure of a history with Skellam noise is never above
    Renyi's.

    Raises:
        UnsupportedEvent: for an object that is not an event, nested or not.
    """
    return _reporting(Composition.of(*events))


def best_order(*events: PrivacyEvent, delta: float, relation: NeighboringRelation) -> float:
    """Return the Renyi order that gives the smallest epsilon for these events.

    Chosen from a plan, before any release, it is the order that :func:`filter_epsilon` may use.

    Args:
        *events: the planned events.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.

    Returns:
        The order, > 1. For events that are not private, some order of the grid.
    """
    return renyi.best(Composition.of(*events), delta, relation)[1]


def filter_epsilon(
    *events: PrivacyEvent, delta: float, relation: NeighboringRelation, order: float
) -> float:
    """Return epsilon of adaptively chosen events, by Renyi divergence at one fixed order.

    Choosing the order after the fact would be a choice that depends on the outputs, so it must be
    fixed before the first release (Feldman and Zrnic 2021, Theorem 4.3 for a single order).

    Args:
        *events: everything released so far, and what is about to be.
        delta: in ``(0, 1)``.
        relation: the neighbouring relation.
        order: one of the orders of the grid, from :func:`best_order`.

    Returns:
        An upper bound on epsilon, possibly infinite.

    Raises:
        InvalidValue: if the order is not on the grid.
    """
    composition = Composition.of(*events)
    validate.open_unit(delta=delta)
    return renyi.at(composition, delta, relation_of(relation), order)


def relation_of(value: str) -> NeighboringRelation:
    """Read a neighbouring relation.

    Raises:
        InvalidValue: for any other word.
    """
    try:
        return NeighboringRelation(value)
    except ValueError as error:
        known = ", ".join(repr(str(r)) for r in NeighboringRelation)
        msg = f"neighboring_relation={value!r}, expected one of: {known}."
        raise InvalidValue(msg) from error


def _reporting(composition: Composition) -> AccountantName:
    """Return the accountant whose number is reported."""
    return "pld" if math.isfinite(likeness.slack(composition)) else "rdp"


@lru_cache(maxsize=65_536)
def _pld_epsilon(
    composition: Composition, delta: float, relation: NeighboringRelation, interval: float
) -> float:
    """Evaluate PLD for one composition."""
    accountant = PldAccountant(relation, interval=interval)
    accountant.compose(composition.to_event())
    return accountant.epsilon(delta)


@lru_cache(maxsize=4096)
def _interval(composition: Composition, relation: NeighboringRelation, base: float) -> float:
    """Return the grid for a composition: the base, or coarser where that would need much memory.

    What must fit is the loss of one release at ten standard deviations and that of the whole:
    its mean (the smaller of a convexity and a chi-square bound) and ten standard deviations more.
    Only memory depends on this estimate; every grid is pessimistic.
    """
    shift = 2.0 if relation is NeighboringRelation.REPLACE_ONE else 1.0
    widest, mean = 0.0, 0.0
    for q, z, n in composition.pairs:
        scale = shift / (z / math.sqrt(n) if q == 1.0 else z)
        if not scale < _LARGEST_SCALE:
            return math.inf
        widest = max(widest, scale * (scale / 2.0 + 10.0))
        chi_square = math.log1p(q * q * math.expm1(scale**2)) if scale < 20.0 else math.inf
        mean += (1 if q == 1.0 else n) * min(q * scale**2 / 2.0, chi_square)
    needed = 2.0 * (widest + mean + 10.0 * math.sqrt(2.0 * mean)) / _MAX_GRID_POINTS
    # Powers of two, so that a growing history rarely changes its grid.
    return base if needed <= base else base * 2.0 ** math.ceil(math.log2(needed / base))
