"""The bound from the top of the ranking: closed forms, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from server.audit.protocol import Claim
from server.audit.topbound import TopProof, epsilon_from_top, in_top, largest_share, top_of
from shared.errors import InvalidValue
from tests.server.audit import oracles


@pytest.mark.parametrize(("hits", "n"), [(3, 40), (20, 20), (50, 200)])
def test_without_delta_the_bound_is_clopper_pearson_over_the_share(hits: int, n: int) -> None:
    low = reference.binomtest(hits, n, alternative="greater").proportion_ci(0.975).low
    found = epsilon_from_top(hits=hits, canaries=n, share=8 / 1000, delta=0.0, alpha=0.025)
    assert found == pytest.approx(math.log(float(low) * 1000 / 8), abs=1e-9)


def test_a_p_value_at_the_bound_is_alpha() -> None:
    """At the bound, P[Bin(n, e^eps s) >= x - j] + n delta / (j + 1) = alpha for the best j."""
    n, x, share, delta, alpha = 60, 25, 0.004, 2e-4, 0.05
    epsilon = epsilon_from_top(hits=x, canaries=n, share=share, delta=delta, alpha=alpha)
    rate = math.exp(epsilon) * share
    totals = [float(reference.binom.sf(x - j - 1, n, rate)) + n * delta / (j + 1) for j in range(x)]
    assert min(totals) == pytest.approx(alpha, abs=1e-9)


@given(st.integers(0, 50), st.floats(1e-4, 0.9), st.floats(0, 0.01))
def test_the_bound_grows_with_hits_and_falls_with_delta(
    hits: int, share: float, delta: float
) -> None:
    def bound(found: int, failure: float) -> float:
        return epsilon_from_top(hits=found, canaries=51, share=share, delta=failure, alpha=0.05)

    assert 0 <= bound(hits, delta) <= bound(hits + 1, delta)
    assert bound(hits, delta) <= bound(hits, 0.0) <= math.log(1 / share)


def test_nothing_is_proven_without_hits_or_with_a_delta_that_allows_all() -> None:
    assert epsilon_from_top(hits=0, canaries=9, share=0.01, delta=0.0, alpha=0.05) == 0
    assert epsilon_from_top(hits=9, canaries=9, share=0.01, delta=0.3, alpha=0.05) == 0


@pytest.mark.parametrize(
    "wrong",
    [{"hits": 10}, {"hits": -1}, {"share": 0.0}, {"delta": -0.1}, {"alpha": 0.0}, {"canaries": 0}],
)
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    good = {"hits": 3, "canaries": 9, "share": 0.1, "delta": 0.0, "alpha": 0.05}
    with pytest.raises(InvalidValue):
        epsilon_from_top(**(good | wrong))  # type: ignore[arg-type]


def test_the_share_above_a_reference_is_beta_distributed() -> None:
    assert largest_share(top=1, references=512, alpha=0.025) == pytest.approx(
        1 - 0.025 ** (1 / 512)
    )
    # The k-th smallest of n uniforms is below s when at least k of n fall below s.
    share = largest_share(top=4, references=600, alpha=0.05)
    assert float(reference.binom.sf(3, 600, share)) == pytest.approx(0.95, abs=1e-9)


def test_ties_with_a_reference_are_no_hit() -> None:
    references = np.array([1.0, 2.0, 3.0])
    canaries = np.array([0.5, 1.0, 1.5, 9.0])
    assert [in_top(canaries, references, top=top) for top in (1, 2, 3)] == [1, 3, 3]
    with pytest.raises(InvalidValue, match="top=4"):
        in_top(canaries, references, top=4)


def test_the_top_is_fixed_by_the_number_of_references() -> None:
    assert [top_of(n) for n in (16, 512, 2047, 2048, 8192)] == [1, 1, 1, 2, 8]


@pytest.mark.statistical
@pytest.mark.parametrize(("epsilon", "delta"), [(3.0, 0.0), (11.0, 0.0), (7.0, 0.002)])
def test_the_bound_holds_for_randomised_response_over_the_space(
    epsilon: float, delta: float
) -> None:
    """Each of 48 secrets out of 65,536 goes through (epsilon, delta)-randomised response, and what
    comes out ranks above all others. 200 runs at level 0.05: at most 20 bounds above the truth
    (99.9 % quantile of Bin(200, 0.05)). At epsilon 11, where half of the secrets come out as they
    are, the median bound is at least 3; all of them would have certified 4.9.
    """
    rng = np.random.default_rng(9)
    space, n = 65_536, 48
    keep = math.exp(epsilon) / (math.exp(epsilon) + space - 1)
    bounds = []
    for _ in range(200):
        secrets = rng.integers(space, size=n)
        kept = (rng.random(n) < keep) | (rng.random(n) < delta)
        said = np.where(kept, secrets, rng.integers(space, size=n))
        losses = rng.standard_normal(space)
        losses[said] -= 20
        proof = TopProof.of(
            losses[secrets],
            losses[rng.integers(space, size=512)],
            repeats=1,
            doubt="",
            terms=oracles.terms(oracles.client_claim(1.0, epsilon, delta or 1e-12)),
        )
        bounds.append(proof.epsilon)
    assert sum(bound > epsilon for bound in bounds) <= 20
    if epsilon == 11.0:
        assert float(np.median(bounds)) >= 3.0


def test_at_example_level_a_swap_is_two_examples_a_copy() -> None:
    """Removing one copy and adding another: twice the epsilon, unless one swap is the unit."""

    def limit(claim: Claim, repeats: int) -> float | None:
        return TopProof.of(
            np.arange(9.0), np.arange(20.0), repeats=repeats, doubt="", terms=oracles.terms(claim)
        ).bound.epsilon

    assert limit(oracles.example_claim(1.0, 1e-9), 1) == pytest.approx(2.0)
    assert limit(oracles.example_claim(1.0, 1e-9), 3) == pytest.approx(6.0)
    assert limit(oracles.client_claim(1.0, 1.5), 3) == pytest.approx(1.5)
