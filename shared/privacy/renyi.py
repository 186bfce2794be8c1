"""Renyi divergences of composed events, and the epsilon that they imply.

Curves are kept on the grid of orders of ``dp-accounting``. Gaussian releases take its curve,
Skellam releases that of :mod:`shared.privacy.skellam`; divergences of releases on the same data add
up, whichever the mechanism.

Replace-one. A noise multiplier is always noise divided by the clip C, and replacing a unit moves
the sum by up to 2C. ``dp-accounting`` 0.6 handles this in its PLD (the pair N(-1), N(+1)) but not
in its RDP accountant, which returns the add-or-remove figure for a Gaussian event and refuses a
Poisson-sampled one. Here the RDP curve under replace-one is the smaller of two sound bounds:
``2 * alpha / z**2`` (everyone takes part, sensitivity 2C; sampling cannot make it larger) and the
weak triangle inequality through the dataset without the unit (Mironov 2017, Corollary 4)::

    D_a(P, Q) <= (a - 1/2) / (a - 1) * D_2a(P, R) + D_2a-1(R, Q)

It is looser than PLD, never smaller than the truth.
"""

from __future__ import annotations

import logging
import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import InvalidValue
from shared.privacy.events import Composition, NeighboringRelation
from shared.privacy.skellam import skellam_curve

Curve = npt.NDArray[np.float64]


@lru_cache(maxsize=1)
def orders() -> tuple[float, ...]:
    """Return the grid of Renyi orders, the default one of ``dp-accounting``."""
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    return tuple(float(order) for order in DEFAULT_RDP_ORDERS)


def best(
    composition: Composition, delta: float, relation: NeighboringRelation
) -> tuple[float, float]:
    """Return the smallest epsilon over the grid of orders, and its order.

    Raises:
        InvalidValue: if ``delta`` is not in ``(0, 1)``.
    """
    validate.open_unit(delta=delta)
    if not composition.private:
        return math.inf, orders()[0]
    if not (composition.pairs or composition.skellams):
        return 0.0, orders()[0]
    return to_epsilon(orders(), curve(composition, relation), delta)


def at(
    composition: Composition, delta: float, relation: NeighboringRelation, order: float
) -> float:
    """Return epsilon by the divergence at one order of the grid.

    Raises:
        InvalidValue: if the order is not on the grid.
    """
    if order not in orders():
        msg = f"order={order!r} is not on the grid of Renyi orders."
        raise InvalidValue(msg)
    if not composition.private:
        return math.inf
    index = orders().index(order)
    return to_epsilon((order,), curve(composition, relation)[index : index + 1], delta)[0]


def curve(composition: Composition, relation: NeighboringRelation) -> Curve:
    """Sum the Renyi divergences of the noised releases of a composition, over the grid."""
    total = np.zeros(len(orders()))
    for q, z, n in composition.pairs:
        total += n * _gaussian_curve(q, z, relation)
    for q, z, grid, n in composition.skellams:
        total += n * skellam_curve(q, z, grid, relation, orders())
    return total


def to_epsilon(over: tuple[float, ...], divergences: Curve, delta: float) -> tuple[float, float]:
    """Convert Renyi divergences to epsilon (Canonne, Kamath, Steinke 2020, Proposition 12).

    Args:
        over: orders above 1.
        divergences: one per order, possibly infinite.
        delta: in ``(0, 1)``.

    Returns:
        The smallest epsilon, and the order that gives it.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    epsilon, order = compute_epsilon(over, divergences, delta)
    return float(epsilon), float(order)


@lru_cache(maxsize=4096)
def _add_remove_curve(q: float, z: float, over: tuple[float, ...]) -> Curve:
    """Return the Renyi divergences of one release under add-or-remove-one."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant as Theirs

    logging.getLogger("absl").addFilter(_is_not_about_one_order)
    accountant = Theirs(over)
    accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(z)))
    return np.asarray(accountant.rdp, dtype=np.float64)


@lru_cache(maxsize=4096)
def _gaussian_curve(q: float, z: float, relation: NeighboringRelation) -> Curve:
    """Return the Renyi divergences of one Gaussian release, under either relation."""
    if relation is NeighboringRelation.ADD_OR_REMOVE_ONE:
        return _add_remove_curve(q, z, orders())
    alpha = np.asarray(orders())
    whole = 2.0 * alpha / z**2
    if q == 1.0:
        return whole
    first = _add_remove_curve(q, z, tuple(2.0 * alpha))
    second = _add_remove_curve(q, z, tuple(2.0 * alpha - 1.0))
    return np.minimum(whole, (alpha - 0.5) / (alpha - 1.0) * first + second)


def _is_not_about_one_order(record: logging.LogRecord) -> bool:
    """Drop the library's note that a Renyi order did not converge: it counts as infinite."""
    return not str(record.msg).startswith("_compute_log_a_frac failed to converge")
