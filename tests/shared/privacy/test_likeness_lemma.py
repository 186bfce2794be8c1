"""The ratio of Skellam and rounded normal probabilities, at sixty digits."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from shared.privacy.likeness import first, second

mpmath = pytest.importorskip("mpmath", reason="an oracle with sixty digits")


def log_skellam(k: int, mu: int) -> Any:
    """``log(exp(-mu) I_k(mu))`` at 60 digits: Laplace's method by quadrature, no expansion.

    The trapezium rule on a whole period of the shifted contour converges geometrically; the
    integrand is below 1e-70 outside of 18 deviations.
    """
    x = mpmath.mpf(k) / mu
    s = mpmath.sqrt(mpmath.mpf(k) ** 2 + mpmath.mpf(mu) ** 2)
    width = 18 / mpmath.sqrt(s)
    step = mpmath.mpf(1) / 5 / mpmath.sqrt(s)
    points = [j * step for j in range(round(width / step) + 1)]
    values = [
        mpmath.exp(-2 * s * mpmath.sin(u / 2) ** 2) * mpmath.cos(k * (u - mpmath.sin(u)))
        for u in points
    ]
    integral = 2 * step * (mpmath.fsum(values) - values[0] / 2)
    rate = mpmath.mpf(mu) * (x * mpmath.asinh(x) - mpmath.sqrt(1 + x**2) + 1)
    return -rate + mpmath.log(integral / (2 * mpmath.pi))


def log_rounded(k: int, mu: int) -> Any:
    """Log probability of k under the rounded normal law, at 60 digits, by Gauss' quadrature."""
    nodes = mpmath.quad(
        lambda u: mpmath.exp(-((k + u) ** 2 - mpmath.mpf(k) ** 2) / (2 * mpmath.mpf(mu))),
        [mpmath.mpf(-1) / 2, mpmath.mpf(1) / 2],
    )
    return (
        -(mpmath.mpf(k) ** 2) / (2 * mpmath.mpf(mu))
        - mpmath.log(2 * mpmath.pi * mu) / 2
        + (mpmath.log(nodes))
    )


def test_the_oracles_are_the_laws() -> None:
    """Bessel functions by mpmath's own series, normal probabilities by its error function."""
    with mpmath.workdps(60):
        for mu, k in [(2**10, 0), (2**10, 7), (2**10, 300), (2**13, 1500)]:
            series = mpmath.log(mpmath.besseli(k, mu)) - mu
            assert abs(log_skellam(k, mu) - series) < mpmath.mpf(10) ** -40
            top, low = ((k + side * mpmath.mpf(1) / 2) / mpmath.sqrt(mu) for side in (1, -1))
            exact = mpmath.log(
                mpmath.erfc(low / mpmath.sqrt(2)) - mpmath.erfc(top / mpmath.sqrt(2))
            )
            assert abs(log_rounded(k, mu) - (exact - mpmath.log(2))) < mpmath.mpf(10) ** -35


@lru_cache(maxsize=1)
def margins() -> tuple[tuple[float, float, float], ...]:
    """Return ``(t, ell * mu / first, share of second's bound used)`` over grids of t and mu."""
    found = []
    with mpmath.workdps(60):
        for power in (20, 22, 40, 60):
            mu = 2**power
            for t in [*np.linspace(0.0, 6.0, 17), *np.linspace(6.5, 20.0, 15)]:
                k = int(t * math.sqrt(mu))
                exact = mpmath.mpf(k) / mpmath.sqrt(mu)
                ell = log_skellam(k, mu) - log_rounded(k, mu)
                centre = (exact**4 - 7 * exact**2 + 4) / 24
                used = (
                    abs(ell - centre / mu) * mpmath.mpf(mu) ** 2 / mpmath.mpf(second(float(exact)))
                )
                found.append((float(exact), float(ell * mu - centre), float(used)))
    return tuple(found)


def test_the_lemma_holds_at_sixty_digits() -> None:
    """Some of the room is left, so the errors of the oracle do not decide."""
    used = [share for *_, share in margins()]
    assert len(used) == 128
    assert max(used) < 0.97


def test_a_tighter_lemma_would_be_false() -> None:
    """With nine tenths of the bound some point of the grid is outside: the test has power."""
    assert max(share for *_, share in margins()) > 0.9
    worst = max(margins(), key=lambda row: row[2])
    assert worst[0] > 19.0


def test_the_first_order_is_needed_as_it_stands() -> None:
    """At k = 0 the ratio is 1 + 1/(6 mu): a bound by the Hermite polynomial alone would fail."""
    with mpmath.workdps(60):
        ell = log_skellam(0, 2**30) - log_rounded(0, 2**30)
        assert float(ell * 2**30) == pytest.approx(first(0.0), rel=1e-6)
        assert float(ell * 2**30) > 1.3 * 3 / 24
