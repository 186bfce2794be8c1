"""Epsilon for several units that belong to one person."""

from __future__ import annotations

import math

from shared import validate
from shared.privacy import renyi
from shared.privacy.accountant import ONLINE, epsilon_of, relation_of
from shared.privacy.events import (
    ComposedEvent,
    Composition,
    GaussianEvent,
    NeighboringRelation,
    PrivacyEvent,
)
from shared.privacy.skellam import skellam_curve

_MAX_GRID_POINTS = 200_000


def group_epsilon(
    *events: PrivacyEvent, size: int, delta: float, relation: NeighboringRelation
) -> float:
    """Return an upper bound on epsilon when ``size`` units change together.

    Under add-or-remove-one, each release takes a binomial number of the person's units, and the
    sum moves by at most that many clips: the loss of this mixture of Gaussians is composed
    (``dp-accounting``'s mixture mechanism). Under replace-one no such pair is known to be the worst
    case, so every unit is assumed to take part in every release: sound, and much larger. The same
    is assumed of every release if one of them has Skellam noise; the figure is then Renyi's, with
    the divergence of a move by ``size`` contributions.

    Args:
        *events: what was released.
        size: units that one person may own, >= 1; 1 gives ``epsilon_of``.
        delta: in ``(0, 1)``, for the whole person.
        relation: the neighbouring relation, applied to all units of the person at once.

    Returns:
        Epsilon, possibly infinite.

    Raises:
        InvalidValue: if an argument is out of range.
        UnsupportedEvent: if an event cannot be accounted for.

    References:
        Charles et al. 2024, arXiv:2407.07737; Choquette-Choo et al. 2023, arXiv:2310.15526.
    """
    validate.positive_integer(size=size)
    validate.open_unit(delta=delta)
    composition = Composition.of(*events)
    relation = relation_of(relation)
    if not composition.private:
        return math.inf
    if size == 1 or not (composition.pairs or composition.skellams):
        return epsilon_of(composition.to_event(), delta=delta, relation=relation)
    whole = ComposedEvent(
        events=tuple(
            GaussianEvent(noise_multiplier=z / size, count=n) for _, z, n in composition.pairs
        )
    )
    if composition.skellams:
        total = renyi.curve(Composition.of(whole), relation)
        for q, z, grid, n in composition.skellams:
            total += n * skellam_curve(q, z, grid, relation, renyi.orders(), size=size)
        return renyi.to_epsilon(renyi.orders(), total, delta)[0]
    if relation is NeighboringRelation.REPLACE_ONE:
        return epsilon_of(whole, delta=delta, relation=relation)
    return _mixture_epsilon(composition, size, delta)


def _mixture_epsilon(composition: Composition, size: int, delta: float) -> float:
    """Compose the losses of Gaussians shifted by a binomial number of clips."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    widest = max(size / z * (size / (2.0 * z) + 10.0) for _, z, _ in composition.pairs)
    interval = max(ONLINE, 2.0 * widest / _MAX_GRID_POINTS)
    total = pld.identity(value_discretization_interval=interval)
    for q, z, n in composition.pairs:
        if q == 1.0:
            one = pld.from_gaussian_mechanism(
                z / (size * math.sqrt(n)), value_discretization_interval=interval
            )
            total = total.compose(one)
            continue
        one = pld.from_mixture_gaussian_mechanism(
            z,
            sensitivities=[float(k) for k in range(size + 1)],
            sampling_probs=_binomial(size, q),
            value_discretization_interval=interval,
        )
        total = total.compose(one.self_compose(n))
    return float(total.get_epsilon_for_delta(delta))


def _binomial(size: int, q: float) -> list[float]:
    """Return the probabilities of 0 to ``size`` units in a Poisson sample, summing to one."""
    logs = [
        math.lgamma(size + 1)
        - math.lgamma(k + 1)
        - math.lgamma(size - k + 1)
        + k * math.log(q)
        + (size - k) * math.log1p(-q)
        for k in range(size + 1)
    ]
    weights = [math.exp(value) for value in logs]
    return [weight / math.fsum(weights) for weight in weights]
