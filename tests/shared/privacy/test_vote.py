"""Votes: update and vote against dp-accounting's composition, and against a distinguisher."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from shared.errors import (
    CalibrationError,
    ConflictingSettings,
    InvalidValue,
    SchemaMismatch,
    SensitivityError,
)
from shared.privacy.clauses import how
from shared.privacy.events import Composition, GaussianEvent
from shared.privacy.noise import NoiseSource
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.vote import VoteSum, VoteTerms
from tests.shared.privacy.test_plan import CENTRAL, EXAMPLE

VOTE = VoteTerms(every=3, noise_multiplier=4.0)
NOISES = st.floats(1e-2, 1e4)


def theirs(noises: list[tuple[float, float]], probability: float, delta: float) -> float:
    """Epsilon of rounds, each of them two Gaussians on one Poisson sample, by dp-accounting."""
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for update, vote in noises:
        both = [dp_accounting.GaussianDpEvent(update)]
        if math.isfinite(vote):
            both.append(dp_accounting.GaussianDpEvent(vote))
        together = dp_accounting.ComposedDpEvent(both)
        if probability < 1:
            # dp-accounting samples Gaussians alone: two of them are one by rotation.
            sigma = sum(event.noise_multiplier**-2 for event in both) ** -0.5
            one = dp_accounting.GaussianDpEvent(sigma)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(probability, one))
        else:
            accountant.compose(together)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("probability", [1.0, 0.1])
def test_a_target_epsilon_covers_updates_and_votes(probability: float) -> None:
    """Oracle: dp-accounting, round by round; without sampling as two releases in each round."""
    said = {**CENTRAL, "rounds": 10, "noise_multiplier": None, "epsilon": 3.0}
    plan = make_plan(**{**said, "sampling_probability": probability}, vote=VOTE)
    z = plan.noise_multiplier or 0.0
    rounds = [(z, 4.0 if t in {4, 7, 10} else math.inf) for t in range(1, 11)]
    found = theirs(rounds, probability, 1e-4)
    assert 0.99 * 3.0 <= found <= 3.0 * 1.0001
    assert plan.epsilon() == pytest.approx(found, rel=5e-3)
    without = make_plan(**{**said, "sampling_probability": probability})
    assert z > (without.noise_multiplier or 0.0)


@given(NOISES, NOISES)
def test_two_gaussians_are_one(z: float, z_vote: float) -> None:
    joint = VoteTerms(every=1, noise_multiplier=z_vote).joint(z)
    assert joint == pytest.approx((z**-2 + z_vote**-2) ** -0.5, rel=1e-12)
    assert joint <= min(z, z_vote)


def test_no_distinguisher_of_update_and_vote_beats_the_joint_event() -> None:
    """The best test on both outputs has exactly the power that the joint Gaussian allows.

    A client of the largest influence is in every sample or in none. 200,000 draws of each; the
    power of the likelihood-ratio test at level 0.05 has a standard deviation below 0.0012, so five
    of them are passed by chance once in three million.
    """
    rng = np.random.default_rng(11)
    z, votes, draws = 1.0, VoteTerms(every=1, noise_multiplier=0.8), 200_000
    update = z * rng.standard_normal((2, draws)) + np.array([[0.0], [1.0]])
    source = NoiseSource.seeded(3, "vote-noise", 1)
    vote = 0.8 * source.normal(2 * draws).reshape(2, draws) + np.array([[0.0], [1.0]])
    statistic = update / z**2 + vote / 0.8**2
    threshold = np.quantile(statistic[0], 0.95)
    power = float((statistic[1] > threshold).mean())
    allowed = norm.cdf(norm.ppf(0.05) + 1 / votes.joint(z))
    assert power == pytest.approx(allowed, abs=0.006)
    alone = norm.cdf(norm.ppf(0.05) + 1 / z)
    assert power > alone + 0.05


def test_every_round_is_charged_what_it_releases_and_together_they_are_the_plan() -> None:
    plan = make_plan(**CENTRAL, vote=VOTE, schedule=NoiseSchedule(final=0.5))
    charged = [plan.event_for_round(t) for t in range(1, plan.rounds + 1)]
    assert Composition.of(*charged) == Composition.of(plan.total_events())
    assert Composition.of(*charged).releases == plan.rounds
    assert Composition.of(plan.every_round()) == Composition.of(plan.total_events())
    voting = [t for t in range(1, plan.rounds + 1) if VOTE.taken(t)]
    assert voting == list(range(4, plan.rounds + 1, 3))
    assert len(voting) == VOTE.among(plan.rounds)
    assert VOTE.among(1) == 0
    for t in voting:
        own = plan.noise_multiplier_of(t) or 0.0
        event = plan.event_for_round(t)
        assert isinstance(event, GaussianEvent)
        assert event.noise_multiplier == pytest.approx((own**-2 + 4.0**-2) ** -0.5)
        assert plan.mechanism_of(t).noise_multiplier == own
    least = min(e.noise_multiplier for e in charged if isinstance(e, GaussianEvent))
    assert plan.least_noise_multiplier == least
    assert plan.event_for_participation() == next(
        e for e in charged if isinstance(e, GaussianEvent) and e.noise_multiplier == least
    )
    assert plan.observer_epsilon() > plan.epsilon()
    assert plan.epsilon_after(4) > plan.epsilon_after(3)


def test_the_stored_form_and_the_statement_name_the_vote() -> None:
    plan = make_plan(**CENTRAL, vote=VOTE)
    stored = plan.to_json()
    assert stored["schema"] == 4
    assert PrivacyPlan.from_json(stored) == plan
    assert plan.digest() != make_plan(**CENTRAL).digest()
    assert make_plan(**CENTRAL).to_json()["schema"] == 1
    with pytest.raises(SchemaMismatch):
        PrivacyPlan.from_json({**stored, "schema": 3})
    with pytest.raises(SchemaMismatch):
        VoteTerms.from_json({"every": 1})
    text = " ".join(clause.text for clause in how(plan))
    assert "standard deviation 4" in text
    assert "After every 3 rounds" in text


def test_votes_go_with_independent_noise_of_a_trusted_server_alone() -> None:
    with pytest.raises(ConflictingSettings, match="a vote goes with"):
        make_plan(**EXAMPLE, vote=VOTE)
    with pytest.raises(ConflictingSettings, match="a vote goes with"):
        make_plan(**CENTRAL, vote=VOTE, mechanism="correlated", min_separation=4)
    with pytest.raises(ConflictingSettings, match="held-out records"):
        make_plan(
            **CENTRAL,
            vote=VOTE,
            example=make_plan(**{**EXAMPLE, **{k: CENTRAL[k] for k in ("rounds", "population")}}),
        )
    few = VoteTerms(every=1, noise_multiplier=0.1)
    with pytest.raises(CalibrationError):
        make_plan(**{**CENTRAL, "noise_multiplier": None, "epsilon": 1.0}, vote=few)


@pytest.mark.parametrize(("every", "noise"), [(0, 1.0), (1, 0.0), (1, math.nan)])
def test_terms_out_of_range_are_refused(every: int, noise: float) -> None:
    with pytest.raises(InvalidValue):
        VoteTerms(every=every, noise_multiplier=noise)


def test_a_sum_takes_votes_and_is_released_once_with_its_noise() -> None:
    """20,000 sums of 3 votes: mean and deviation within five standard errors."""
    released = []
    source = NoiseSource.seeded(1, "vote-noise", 1)
    for _ in range(20_000):
        votes = VoteSum(VoteTerms(every=1, noise_multiplier=2.0))
        for vote in (1, 1, -1, 0, 1):
            votes.add(vote)
        released.append(votes.release(expected_count=4.0, source=source))
    assert np.mean(released) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(20_000))
    assert np.std(released) == pytest.approx(0.5, rel=5 / math.sqrt(40_000))
    with pytest.raises(SensitivityError):
        votes.release(expected_count=4.0, source=source)
    with pytest.raises(SensitivityError):
        votes.add(1)
    for bad in (2, -2, True, 1.0):
        with pytest.raises(SensitivityError):
            VoteSum(VOTE).add(bad)  # type: ignore[arg-type]
