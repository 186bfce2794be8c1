"""Skellam noise is so like rounded Gaussian noise that its histories take the Gaussian figures.

Notation. ``mu = (z G)**2`` is the variance of the noise on one coordinate, ``p`` its law, ``r``
that of N(0, mu) rounded to the nearest integer, ``t = |k| / sqrt(mu)``, ``ell = log(p / r)``.

Rounded Gaussian noise. For an integer f, ``f + round(N) = round(f + N)``: a release with noise
``r`` is a function of the Gaussian release with clip G and the same z, and so is a whole adaptive
history. Sampling, both neighbouring relations and every dimension are those of the Gaussian.

Lemma. For ``mu >= 2**20`` and ``t <= 20``::

    |ell(k) - first(t) / mu| <= second(t) / mu**2
    first(t) = (t**4 - 7 t**2 + 4) / 24,    second(t) = t**6 / 80 + t**4 / 7 + t**2 / 3 + 1 / 3

Proof. ``p(k) = exp(-mu) I_k(mu)`` is the integral of ``exp(mu (cos u - 1) + i k u) / (2 pi)`` over
a period. Moved to the line of imaginary part ``asinh(k / mu)``, with ``s = sqrt(k**2 + mu**2)``::

    p(k) = exp(-mu g(k / mu)) / (2 pi) * integral exp(-s (1 - cos u)) cos(k (u - sin u)) du
    g(x) = x asinh x - sqrt(1 + x**2) + 1

From ``x**2/2 - x**4/24 <= g <= x**2/2 - x**4/24 + x**6/80`` come ``-t**2/2 + t**4/(24 mu)`` and at
most ``t**6/80`` of the second order. With ``1 - v**2/2 <= cos v <= 1``, ``|u - sin u| <= |u|**3/6``
the integral is ``exp(-s) I_0(s)`` less a share of at most ``0.21 t**2 / mu**2``. That is
``(1 + 1/(8 s) + e) / sqrt(2 pi s)`` with ``-1e-9 < e s**2 < 0.2``, by expanding
``(1 - sin(u/2)**2)**-0.5``, and ``s**-0.5`` gives ``-t**2/(4 mu)``, within ``t**4/8``. On the other
side ``r(k) = exp(-t**2/2) / sqrt(2 pi mu)`` times the mean of ``cosh(t u / sqrt(mu)) exp(-u**2/(2
mu))`` over ``|u| <= 1/2``, which is ``1 + (t**2 - 1)/(24 mu)`` within ``(t**4/1900 + t**2/320 +
1/640) / mu**2``. The rest is adding up; what a logarithm leaves is below ``(t**2 - 1)**2 / 1152``.

Theorem. T Skellam releases of at most d = 2**31 - 1 coordinates each (the largest vector that is
aggregated) use at most N = T d independent coordinates of noise. Call P, Q the laws of the whole
history on two neighbours, P', Q' the same with rounded Gaussian noise. With eta and tau as below,
for every event E::

    P(E) <= exp(eta) P'(E) + tau,    Q'(E) <= exp(eta) Q(E) + tau

so if the Gaussian history is (eps', delta')-private, this one is private with ``eps' + 2 eta`` and
``exp(eta) delta' + tau (1 + exp(eps' + eta))``.

Proof. A history is a function of coins and noise, also if its queries depend on earlier outputs,
so it is enough to compare the noises. Let A say that no coordinate is beyond 20 deviations. By
Chernoff, a coordinate of either noise is with probability at most ``a = 2 exp(-199.9)``.
With L the sum of ell over all coordinates, and lam > 1::

    P(L > eta) <= N a + exp(-(lam - 1) eta) * product of E_r[1_A (p / r)**lam]
    E_r[1_A exp(lam ell)] <= 1 + lam E_r[1_A ell] + lam**2 / 2 * E_r[1_A ell**2 exp(lam |ell|)]

By Jensen ``E_r[1_A ell] <= -r(A) log r(A) <= a``. With M the lemma's bound of ``|ell|`` at t = 20,
its largest, and ``E_r[first**2] <= 27 / 24**2`` (26 for the normal law itself; rounding adds less
than 1)::

    E_r[1_A (p / r)**lam] <= exp(lam a + lam**2 / 2 * W exp((lam + 1) M))
    W = (sqrt(27) / 24 + second(20) / mu)**2 / mu**2

For Q' against Q, p and r change places; expectations over p are those over r times at most
``exp(M)``, the one more M in the exponent. Solved for eta at ``tau = exp(-100)``, the best lam of a
fixed grid counts; more releases or less noise make eta larger at every lam.

A privacy loss distribution of Skellam noise itself would need its worst direction, which is not
known; this needs none, and costs ``2 eta``: about 1e-4 with G = 2**18 and noise multiplier 1/2.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from shared.privacy.events import MAX_DIMENSION, ComposedEvent, Composition, GaussianEvent

Curve = npt.NDArray[np.float64]

REACH = 20.0
SMALLEST_VARIANCE = 2.0**20
LARGEST_SLACK = 0.1
LOG_TAU = -100.0
_OUTSIDE = 2.0 * math.exp(-199.9)
_LARGEST_EXPONENT = 50.0
_SHARE_OF_DELTA = 1e-6
_ORDERS = 2.0 ** np.arange(1.0, 60.0, 0.125)


def first(t: float) -> float:
    """Return the coefficient of ``1 / mu`` in ``log(p / r)`` at t standard deviations."""
    return (t**4 - 7.0 * t**2 + 4.0) / 24.0


def second(t: float) -> float:
    """Return the bound on what is left, as a coefficient of ``1 / mu**2``; t at most 20."""
    return t**6 / 80.0 + t**4 / 7.0 + t**2 / 3.0 + 1.0 / 3.0


def log_moments(orders: Curve, mu: float) -> Curve:
    """Bound ``log E_r[1_A (p/r)**lam]`` and ``log E_p[1_A (r/p)**lam]`` of one coordinate.

    Args:
        orders: lam > 1.
        mu: variance, at least 2**20.

    Returns:
        One bound per order; infinite where it would be of no use.
    """
    largest = first(REACH) / mu + second(REACH) / mu**2
    square = (math.sqrt(27.0) / 24.0 + second(REACH) / mu) ** 2 / mu**2
    exponent = (orders + 1.0) * largest
    useful = exponent <= _LARGEST_EXPONENT
    grown = square * np.exp(np.minimum(exponent, _LARGEST_EXPONENT))
    bound = orders * _OUTSIDE + orders**2 / 2.0 * grown
    return np.asarray(np.where(useful, bound, np.inf), dtype=np.float64)


def slack(composition: Composition) -> float:
    """Return ``2 eta``, what likeness adds to the epsilon of the Gaussian twin of a history.

    It grows with the number of releases and falls with their noise.

    Returns:
        0 without Skellam releases; infinite if it would be above 0.1, or if a Skellam release has
        a variance below 2**20, for which the lemma is not proved.
    """
    return _slack(composition.skellams)


@lru_cache(maxsize=4096)
def _slack(skellams: tuple[tuple[float, float, int, int], ...]) -> float:
    """Return ``2 eta`` for ``(q, z, grid, count)`` of Skellam releases."""
    if not skellams:
        return 0.0
    coordinates = float(MAX_DIMENSION) * sum(n for *_, n in skellams)
    smallest = min((z * grid) ** 2 for _, z, grid, _ in skellams)
    half = math.log(0.5) + LOG_TAU
    if not (smallest >= SMALLEST_VARIANCE and coordinates * _OUTSIDE <= math.exp(half)):
        return math.inf
    logs = np.zeros(_ORDERS.size)
    for _, z, grid, n in skellams:
        logs += float(MAX_DIMENSION) * n * log_moments(_ORDERS, (z * grid) ** 2)
    found = 2.0 * float(((logs - half) / (_ORDERS - 1.0)).min())
    return found if found <= LARGEST_SLACK else math.inf


def gaussian_twin(composition: Composition) -> Composition:
    """Return the history with Gaussian noise in the place of Skellam noise, variance by variance.

    A history without Skellam releases is its own twin.
    """
    if not composition.skellams:
        return composition
    twins = tuple(
        GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n)
        for q, z, _, n in composition.skellams
    )
    rest = Composition(pairs=composition.pairs, private=composition.private)
    return Composition.of(rest.to_event(), ComposedEvent(events=twins))


def twin_delta(delta: float, added: float) -> float:
    """Return the delta at which the twin's epsilon is asked for.

    Args:
        delta: of the history, in ``(0, 1)``.
        added: its :func:`slack`, finite.
    """
    return delta * (1.0 - _SHARE_OF_DELTA) * math.exp(-added / 2.0) if added else delta


def epsilon_from_twin(epsilon: float, delta: float, added: float) -> float:
    """Return epsilon of a history at ``delta``.

    Args:
        epsilon: of its twin at :func:`twin_delta`.
        delta: in ``(0, 1)``.
        added: its slack, finite.

    Returns:
        Infinite if ``tau`` is more than the part of delta kept for it: for epsilons above about
        fifty and for tiny deltas.
    """
    if not added:
        return epsilon
    log_spent = LOG_TAU + float(np.logaddexp(0.0, epsilon + added / 2.0))
    fits = log_spent <= math.log(_SHARE_OF_DELTA) + math.log(delta)
    return epsilon + added if fits else math.inf


def delta_from_twin(delta: float, epsilon: float, added: float) -> float:
    """Return delta of a history at ``epsilon``.

    Args:
        delta: of its twin at ``max(0, epsilon - added)``.
        epsilon: finite and at least 0.
        added: its slack, finite.

    Returns:
        At most 1. Below ``added`` it is the delta at ``added`` and what the difference can hold.
    """
    if not added:
        return delta
    inner = max(0.0, epsilon - added)
    spent = LOG_TAU + float(np.logaddexp(0.0, inner + added / 2.0))
    below = max(0.0, math.exp(added) - math.exp(epsilon)) if epsilon < added else 0.0
    return min(1.0, math.exp(added / 2.0) * delta + math.exp(min(0.0, spent)) + below)
