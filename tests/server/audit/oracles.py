"""Ground truth for the audits: a Gaussian mechanism of known epsilon, and small honest scorers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import optimize, stats

from server.audit.protocol import AuditContext, CanaryTexts, Claim, Floats


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta of a mu-GDP mechanism at epsilon (Dong, Roth and Su 2019, corollary 2.13)."""
    first = stats.norm.cdf(-epsilon / mu + mu / 2)
    second = math.exp(epsilon + stats.norm.logcdf(-epsilon / mu - mu / 2))
    return float(first - second)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a mu-GDP mechanism at delta, exactly."""
    return float(optimize.brentq(lambda e: gaussian_delta(e, mu) - delta, 0, 200, xtol=1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism has this epsilon at delta."""
    return float(optimize.brentq(lambda m: gaussian_delta(epsilon, m) - delta, 1e-3, 50))


class Ledger:
    """A scorer that looks losses up; counts how often each text is read."""

    def __init__(self, base: dict[str, float], tuned: dict[str, float]) -> None:
        self.tables = {False: base, True: tuned}
        self.reads: list[tuple[bool, str]] = []

    def losses(self, texts: Sequence[str], *, adapter: bool) -> Floats:
        self.reads.extend((adapter, text) for text in texts)
        return np.array([self.tables[adapter][text] for text in texts])


def names(kind: str, count: int) -> tuple[str, ...]:
    return tuple(f"{kind} {index}" for index in range(count))


def canaries(n_in: int = 50, n_out: int = 50, *, repeats: int = 1) -> CanaryTexts:
    return CanaryTexts(
        included=names("included", n_in),
        held_out=names("held out", n_out),
        references=names("reference", 256),
        repeats=repeats,
        commitment="ab" * 32,
    )


NO_CLAIM = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)


def client_claim(epsilon: float, applicable: float | None, delta: float = 1e-5) -> Claim:
    return Claim(
        mode="client-central",
        epsilon=epsilon,
        delta=delta,
        unit="client",
        neighboring_relation="add-or-remove-one",
        epsilon_applicable=applicable,
    )


def example_claim(epsilon: float, delta: float = 1e-5) -> Claim:
    claim = client_claim(epsilon, epsilon, delta)
    return replace(claim, mode="example", unit="example")


def context(
    texts: CanaryTexts, *, gain: float, claim: Claim = NO_CLAIM, seed: int = 0
) -> AuditContext:
    """A model in which included canaries gained so many nats, in noise of one nat."""
    rng = np.random.default_rng(seed)
    everything = (*texts.included, *texts.held_out, *texts.references)
    base = {text: 30 + 3 * float(rng.standard_normal()) for text in everything}
    planted = set(texts.included)
    tuned = {
        text: loss - gain * (text in planted) - float(rng.standard_normal())
        for text, loss in base.items()
    }
    return AuditContext(scorer=Ledger(base, tuned), canaries=texts, claim=claim, seed=seed)
