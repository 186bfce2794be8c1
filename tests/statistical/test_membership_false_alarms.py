"""How often the membership audit cries wolf, and how often it sees what is there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from server.audit.blind import word_scores
from server.audit.membership import Membership
from server.audit.permutation import permutation_p_values
from server.audit.protocol import AuditContext, Finding
from server.audit.target import Passage
from tests.server.audit import oracles
from tests.server.audit.texts import Learner, kind, learned, split, texts

pytestmark = pytest.mark.statistical

RUNS = 40


def finding(seed: int, *, gain: float) -> Finding:
    rare, secret = kind("rare-token", 30, 30, seed=seed), kind("secret", 30, 30, seed=seed)
    natural = split(40, 40, seed=seed)
    gains = learned(rare.included, gain=gain)
    artefacts = (Learner(gains, seed=seed), oracles.planted(rare, secret), natural)
    around = AuditContext(claim=oracles.NO_CLAIM, seed=seed, artefacts=artefacts)
    return Membership().conclude(Membership().measure(around), oracles.terms(seed=seed))


@pytest.mark.slow
def test_twenty_scores_on_three_sets_alarm_at_most_as_often_as_one() -> None:
    """Forty runs without a leak: at most the 99.9 % quantile of Bin(40, 5 %) detect one.

    A warning that the sides differ is allowed once in a hundred runs, so four are its quantile.
    """
    found = [finding(seed, gain=0.0) for seed in range(RUNS)]
    assert sum(bool(one.detected) for one in found) <= stats.binom.ppf(0.999, RUNS, 0.05)
    warned = sum("differ in distribution" in one.explanation for one in found)
    assert warned <= stats.binom.ppf(0.999, RUNS, 0.01)
    values = [one.value for one in found if one.value is not None]
    assert np.mean(values) == pytest.approx(0.5, abs=4 * 0.075 / np.sqrt(RUNS))
    covered = sum(one.interval[0] <= 0.5 <= one.interval[1] for one in found if one.interval)
    assert covered >= stats.binom.ppf(0.001, RUNS, 0.95)


@pytest.mark.slow
def test_a_leak_of_two_nats_in_thirty_canaries_is_seen() -> None:
    """Noise of one nat: AUC 92 %; missed in at most two of ten runs."""
    assert sum(bool(finding(seed, gain=2.0).detected) for seed in range(10)) >= 8


def test_words_of_one_population_are_not_told_apart() -> None:
    """A hundred pairs of sides; each half's p-value is uniform: Kolmogorov-Smirnov at 1e-3."""
    p_values: list[float] = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        drawn = [passage.text for passage in texts(rng, 60)]
        folds = word_scores(drawn[:30], drawn[30:], rng=rng, smallest=8)
        pairs = {i: (fold.members, fold.nonmembers) for i, fold in enumerate(folds)}
        p_values += permutation_p_values(pairs, seed=seed, permutations=499).values()
    assert len(p_values) == 200
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_lengths_alone_are_told_apart() -> None:
    """Members are longer by half: found in each of five draws at 1 %."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        short, long = ([Passage(text=p.text * n) for p in texts(rng, 60)] for n in (2, 3))
        folds = word_scores([p.text for p in long], [p.text for p in short], rng=rng, smallest=8)
        pairs = {i: (fold.members, fold.nonmembers) for i, fold in enumerate(folds)}
        assert min(permutation_p_values(pairs, seed=seed).values()) < 0.01
