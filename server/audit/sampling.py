"""Whether cohorts were drawn by independent coins, as amplification by sampling assumes.

Sizes of Poisson cohorts are binomial. Batches of a fixed size, or dealt by shuffling, vary less;
clients that are drawn together vary more. Who was in a cohort is not looked at: a server that lies
about sizes, or always draws the same clients with coins of the right number, is not caught.

Only the sum of the sizes and the sum of their squared distances from the declared mean are stored;
both are functions of who took part, and no event pays for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from server.audit.conformance import LEVEL, TESTS, Check, Test, exact, two_sided
from server.audit.evidence import integer, number, text
from server.audit.protocol import Floats
from server.audit.runrecord import RunRecord
from shared.errors import AuditError

NAME = "sampling"

_NEGLIGIBLE = 1e-16
_LATTICE = 1 << 17

Sentences = tuple[str, ...]


def measure_sampling(record: RunRecord) -> dict[str, Any]:
    """Return how the sizes of the cohorts were spread.

    Raises:
        AuditError: if a cohort is larger than the population.
    """
    plan, sizes = record.plan, [r.cohort for r in record.rounds]
    if plan.mode not in {"client-central", "client-distributed"}:
        return {"skipped": "Nothing is claimed for the sampling of clients in this mode."}
    if plan.correlated is not None:
        return {"skipped": "Clients take turns, and nothing is claimed for their being drawn."}
    if sizes and not max(sizes) <= record.population:
        msg = f"a cohort has {max(sizes)} clients, the population {record.population}."
        raise AuditError(msg)
    return spread(sizes, population=record.population, probability=plan.sampling_probability)


def spread(sizes: list[int], *, population: int, probability: float) -> dict[str, Any]:
    """Return the sums that the tests need.

    Args:
        sizes: clients in each cohort.
        population: clients that could be drawn.
        probability: chance of each.
    """
    centre = _centre(population, probability)
    return {
        "rounds": len(sizes),
        "population": population,
        "probability": probability,
        "total": sum(sizes),
        "squares": sum((size - centre) ** 2 for size in sizes),
    }


def fixed_batches(evidence: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the same run would have shown with cohorts of one size; None if skipped."""
    if "skipped" in evidence:
        return None
    rounds, population, probability = _terms(evidence)
    centre = _centre(population, probability)
    return spread([centre] * rounds, population=population, probability=probability)


def check_sampling(evidence: Mapping[str, Any]) -> Check:
    """Test mean and spread of the sizes of the cohorts.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if "skipped" in evidence:
        return Check(name=NAME, skipped=text(evidence, "skipped"))
    rounds, population, probability = _terms(evidence)
    if rounds == 0:
        return Check(name=NAME, doubts=("No round was finished.",))
    total = integer(evidence, "total", low=0, high=rounds * population)
    squares = integer(evidence, "squares", low=0)
    if probability == 1:
        everyone = total == rounds * population
        return Check(
            name=NAME,
            tests=(exact("everyone", holds=everyone, broken="Not everyone was asked."),),
            facts=("Every client takes part in every round; nothing is claimed for coins.",),
        )
    trials = rounds * population
    mean = two_sided(
        float(special.bdtr(total, trials, probability)),
        float(special.bdtrc(total - 1, trials, probability)) if total > 0 else 1.0,
    )
    tests = (
        Test(
            name="mean",
            p=mean,
            broken="Clients were drawn more or less often than the plan accounts for.",
        ),
        Test(
            name="spread",
            p=spread_p_value(squares, rounds, population, probability),
            broken="The sizes of the cohorts do not vary as independent coins make them vary: "
            "batches of a fixed size, or clients that are drawn together.",
        ),
    )
    facts, doubts = _power(rounds, population, probability)
    return Check(name=NAME, tests=tests, facts=facts, doubts=doubts)


def spread_p_value(squares: int, rounds: int, population: int, probability: float) -> float:
    """Return the two-sided p-value of a sum of squared distances from the rounded mean.

    Exact, by convolution, where the lattice of possible sums is small enough; else by a gamma
    distribution with the exact mean and variance, which the sum of many nearly normal terms has.

    Args:
        squares: the sum over rounds of ``(size - round(population * probability))**2``.
        rounds: how many sizes, at least 1.
        population: clients that could be drawn.
        probability: chance of each, in ``(0, 1)``.
    """
    values, chances = _squared_distances(population, probability)
    if rounds * int(values.max()) <= _LATTICE:
        lower, upper = _exact_tails(squares, rounds, values, chances)
        return two_sided(lower, upper)
    mean = float(values @ chances)
    variance = float(np.square(values - mean) @ chances)
    freedom, unit = 2.0 * rounds * mean**2 / variance, variance / (2.0 * mean)
    return two_sided(
        float(special.chdtr(freedom, squares / unit)),
        float(special.chdtrc(freedom, squares / unit)),
    )


def _exact_tails(squares: int, rounds: int, values: Floats, chances: Floats) -> tuple[float, float]:
    """Return ``P[S <= squares]`` and ``P[S >= squares]``; right to about 1e-14."""
    most = rounds * int(values.max())
    single = np.zeros(most + 1, dtype=np.float64)
    np.add.at(single, values.astype(np.int64), chances)
    size = 1 << int(most + 1).bit_length()
    summed = np.fft.irfft(np.fft.rfft(single, size) ** rounds, size)[: most + 1]
    summed = np.maximum(summed, 0.0)
    last = min(squares, most)
    lower, upper = float(summed[: last + 1].sum()), float(summed[last:].sum())
    return min(1.0, lower), min(1.0, upper) if squares <= most else 0.0


def _squared_distances(population: int, probability: float) -> tuple[Floats, Floats]:
    """Return possible squared distances of a size from the rounded mean, and their chances."""
    mean, reach = population * probability, _reach(population, probability)
    low, high = max(0.0, mean - reach), min(float(population), mean + reach)
    sizes = np.arange(np.floor(low), np.ceil(high) + 1.0)
    log_chance = (
        special.gammaln(population + 1)
        - special.gammaln(sizes + 1)
        - special.gammaln(population - sizes + 1)
        + special.xlogy(sizes, probability)
        + special.xlog1py(population - sizes, -probability)
    )
    chances = np.exp(log_chance)
    kept = chances > _NEGLIGIBLE
    return np.square(sizes[kept] - _centre(population, probability)), chances[kept]


def _reach(population: int, probability: float) -> float:
    """Return a distance from the mean beyond which sizes have a chance below 1e-16.

    Bernstein's inequality: ``exp(-t**2 / (2 v + 2 t / 3))`` is below that at this t.
    """
    nats = -np.log(_NEGLIGIBLE)
    variance = population * probability * (1.0 - probability)
    return float(nats / 3.0 + np.sqrt((nats / 3.0) ** 2 + 2.0 * nats * variance)) + 1.0


def _power(rounds: int, population: int, probability: float) -> tuple[Sentences, Sentences]:
    """Say whether cohorts of one size would have been noticed: facts, then doubts."""
    fixed = spread(
        [_centre(population, probability)] * rounds, population=population, probability=probability
    )
    seen = TESTS * spread_p_value(fixed["squares"], rounds, population, probability) < LEVEL
    if seen:
        fact = f"Cohorts of one size in all {rounds} rounds would have been flagged."
        return (fact,), ()
    doubt = f"{rounds} rounds are too few to tell cohorts of one size from cohorts drawn by coins."
    return (), (doubt,)


def _terms(evidence: Mapping[str, Any]) -> tuple[int, int, float]:
    """Read rounds, population and probability."""
    return (
        integer(evidence, "rounds", low=0, high=10**6),
        integer(evidence, "population", low=1, high=10**8),
        number(evidence, "probability", low=1e-12, high=1.0),
    )


def _centre(population: int, probability: float) -> int:
    """Return the integer that distances are taken from."""
    return round(population * probability)
