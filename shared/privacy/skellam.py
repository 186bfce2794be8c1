"""Renyi divergence of Skellam noise on an integer grid, with Poisson sampling.

Contributions are integer vectors of L2 norm at most G, so their L1 norm is at most ``G**2`` and no
dimension enters. The noise on each coordinate is Skellam of variance ``(z G)**2``.

Without sampling. Agarwal, Kairouz and Liu 2021 (arXiv:2110.04995, Theorem 3.5 and its corollary
for vectors) bound the divergence between Skellam noise of variance ``v`` and the same noise moved
by an integer vector, at integer orders ``a > 1``::

    a * L2**2 / (2 v) + min(((2 a - 1) * L2**2 + 6 * L1) / (4 v**2), 3 * L1 / (2 v))

The first term is that of Gaussian noise. The second falls with ``1 / (z**4 G**2)`` and is what
discreteness costs.

With sampling. A dataset that has the unit gives the mixture ``M = (1 - q) P + q Q``, ``Q`` being
``P`` moved (given the other units' coins; the divergence of the whole is at most the largest of
these, by quasi-convexity). ``E_P[(M / P)**a]`` is a binomial sum of ``E_P[(Q / P)**k]``, each
bounded as above. The other direction, ``P`` against ``M``, is never larger (Mironov, Talwar and
Zhang 2019, arXiv:1908.10530, Theorem 5): their argument needs a map that is its own inverse, keeps
volume and swaps ``P`` and ``Q``, and on the integers that is the reflection ``k -> x - k``, because
Skellam noise is symmetric; a uniform fraction added to each integer makes densities of the
probabilities and changes no divergence.

Between integers. ``(a - 1) D_a`` is convex in ``a`` and 0 at 1, so the chord between the bounds at
the two neighbouring integers bounds it.

Replace-one. The contributions of the old and the new unit differ by at most 2G in L2 and
``2 G**2`` in L1; sampling cannot make that larger. The weak triangle inequality through the dataset
without the unit (Mironov 2017, Corollary 4) is the alternative; the smaller one counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.privacy.events import NeighboringRelation

Curve = npt.NDArray[np.float64]


@lru_cache(maxsize=4096)
def skellam_curve(
    q: float,
    z: float,
    grid: int,
    relation: NeighboringRelation,
    orders: tuple[float, ...],
    *,
    size: int = 1,
) -> Curve:
    """Return upper bounds on the Renyi divergences of one release.

    Args:
        q: sampling probability in ``(0, 1]``.
        z: noise standard deviation divided by the grid, > 0.
        grid: G >= 1, the largest L2 norm of a contribution.
        relation: the neighbouring relation.
        orders: all > 1, integers or not.
        size: units that change together. More than one are assumed to take part in every release,
            because their coins fall together or apart.

    Returns:
        One bound per order, read-only.
    """
    replaced = relation is NeighboringRelation.REPLACE_ONE
    alpha = np.asarray(orders, dtype=np.float64)
    whole = _between(alpha, lambda a: shifted(a, z, grid, size * (2 if replaced else 1)))
    if q == 1.0 or size > 1:
        return _frozen(whole)
    if not replaced:
        return _frozen(np.minimum(whole, _between(alpha, lambda a: _sampled(a, q, z, grid))))
    first = _between(2.0 * alpha, lambda a: _sampled(a, q, z, grid))
    second = _between(2.0 * alpha - 1.0, lambda a: _sampled(a, q, z, grid))
    return _frozen(np.minimum(whole, (alpha - 0.5) / (alpha - 1.0) * first + second))


def shifted(orders: Curve, z: float, grid: int, shift: int) -> Curve:
    """Bound the divergence between Skellam noise and itself moved by ``shift`` contributions.

    The move has L2 norm at most ``shift * grid`` and L1 norm at most ``shift * grid**2``.

    Args:
        orders: integers above 1, as float64.
        z: noise standard deviation divided by the grid, > 0.
        grid: G >= 1.
        shift: how many contributions change, each by at most G; 2 for one that is replaced.
    """
    square = 1.0 / z**2
    gaussian = shift**2 * square * orders / 2.0
    fine = ((2.0 * orders - 1.0) * shift**2 + 6.0 * shift) * square**2 / (4.0 * float(grid) ** 2)
    return gaussian + np.minimum(fine, 1.5 * shift * square)


def _sampled(orders: Curve, q: float, z: float, grid: int) -> Curve:
    """Bound the divergence, in either direction, of one Poisson-sampled release; integer orders."""
    return np.array([_sampled_at(int(order), q, z, grid) for order in orders])


def _sampled_at(order: int, q: float, z: float, grid: int) -> float:
    """Return ``log(E_P[(M / P)**a]) / (a - 1)`` by the binomial expansion.

    The terms of k = 0 and 1 and the 1 of every other term add up to 1, so what is summed is
    ``C(a, k) (1-q)**(a-k) q**k (exp((k-1) D_k) - 1)`` for k >= 2, all of it positive: small
    divergences keep their digits.
    """
    k = np.arange(2, order + 1, dtype=np.float64)
    moments = (k - 1.0) * shifted(k, z, grid, 1)
    logs = _log_binomials(order)[2:] + k * math.log(q) + (order - k) * math.log1p(-q)
    logs += _log_expm1(moments)
    top = float(logs.max())
    excess = top + math.log(float(np.exp(logs - top).sum()))
    return float(np.logaddexp(0.0, excess)) / (order - 1)


def _log_expm1(x: Curve) -> Curve:
    """Return ``log(exp(x) - 1)`` for positive x without overflow or cancellation."""
    small = np.minimum(x, 1.0)
    return np.where(x < 1.0, np.log(np.expm1(small)), x + np.log1p(-np.exp(-np.maximum(x, 1.0))))


@lru_cache(maxsize=512)
def _log_binomials(n: int) -> Curve:
    """Return ``log C(n, k)`` for k = 0, ..., n."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, n + 1.0)))])
    return _frozen(factorials[n] - factorials - factorials[::-1])


def _between(orders: Curve, bound: Callable[[Curve], Curve]) -> Curve:
    """Extend a bound from integer orders >= 2 to all orders > 1 by convexity."""
    below = np.floor(orders)
    needed = np.unique(np.concatenate([below, below + 1.0, [2.0]]))
    needed = needed[needed >= 2.0]
    values = (needed - 1.0) * bound(needed)
    knots, convex = np.append(1.0, needed), np.append(0.0, values)
    return np.asarray(np.interp(orders, knots, convex) / (orders - 1.0), dtype=np.float64)


def _frozen(curve: Curve) -> Curve:
    """Make a kept array read-only."""
    curve.setflags(write=False)
    return curve
