"""LiRA with shadow adapters: models whose memory is known, and the Gaussians written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference_stats

from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.shadow import SHADOWS, ShadowMembership
from server.audit.shadowscores import Shadows, confidences, halves_of, lira_scores
from server.audit.target import Passage, Reading
from shared.errors import AuditError, MissingArtefact, TooFewCanaries
from tests.server.audit import oracles
from tests.server.audit.texts import Learner, kind, learned, split

AUDIT = ShadowMembership()


class Learners(Shadows):
    """Trains models that gain so many nats on every copy of a text.

    Args:
        gain: per copy.
    """

    def __init__(self, gain: float) -> None:
        self.gain = gain
        self.trained: list[Counter[Passage]] = []

    @property
    def recipe(self) -> str:
        return "made up"

    def read(
        self, chosen: Sequence[Passage], passages: Sequence[Passage], *, number: int
    ) -> list[Reading]:
        self.trained.append(Counter(chosen))
        gains = {passage: self.gain * count for passage, count in self.trained[-1].items()}
        return Learner(gains, seed=0).read(passages, adapter=True)


class Wobbly(Learners):
    """The same, with its own noise in every model."""

    def read(
        self, chosen: Sequence[Passage], passages: Sequence[Passage], *, number: int
    ) -> list[Reading]:
        found = super().read(chosen, passages, number=number)
        rng = np.random.default_rng([99, number])
        return [
            replace(one, log_probability=one.log_probability * rng.uniform(0.97, 1.03))
            for one in found
        ]


def around(
    gain: float, *, shadows: float = 2.0, claim: Claim = oracles.NO_CLAIM, n: int = 40
) -> AuditContext:
    rare, natural = kind("rare-token", n, n), split(n, n)
    target = Learner(learned(rare.included, natural.members, gain=gain))
    return AuditContext(
        claim=claim,
        seed=3,
        artefacts=(target, Wobbly(shadows), oracles.planted(rare), natural),
    )


def audited(gain: float, **options: Any) -> Finding:
    return oracles.run(AUDIT, around(gain, **options))


def test_members_of_a_model_that_learned_are_found_online_and_offline() -> None:
    finding = audited(4.0)
    assert finding.detected
    assert finding.positive_control
    found = finding.evidence["derived"]["sets"]
    assert set(found) == {"rare-token", "natural"}
    for one in found.values():
        assert one["scores"]["online"]["auc"] > 0.9
        assert one["scores"]["offline"]["auc"] > 0.85
        assert one["control_auc"] > 0.8
    assert finding.value == found["rare-token"]["scores"]["online"]["auc"]
    assert "shadow adapters" in finding.explanation
    assert oracles.leaked(finding) == []


def test_shadows_find_more_than_a_comparison_with_the_base_model() -> None:
    """Texts are hard in their own ways, which only models that saw neither or both reveal."""
    found = audited(2.0).evidence["derived"]["sets"]["natural"]
    assert found["scores"]["online"]["auc"] > found["reference_auc"]


def test_a_model_that_learned_nothing_is_consistent_with_its_claim() -> None:
    finding = audited(0.0, claim=oracles.client_claim(4.0, 6.0))
    assert (finding.verdict, finding.detected, finding.positive_control) == (
        "consistent",
        False,
        True,
    )
    assert finding.value == pytest.approx(0.5, abs=0.17)


def test_shadows_that_learn_nothing_are_no_control() -> None:
    finding = audited(0.0, shadows=0.0, claim=oracles.client_claim(4.0, 6.0))
    assert (finding.verdict, finding.positive_control) == ("inconclusive", False)
    assert "positive control was not caught" in finding.explanation


def test_more_than_the_claim_allows_is_left_to_a_certified_audit() -> None:
    finding = audited(6.0, claim=oracles.client_claim(0.2, 0.4))
    assert (finding.verdict, finding.strength) == ("inconclusive", "descriptive")
    assert "one-run audit" in finding.explanation
    assert audited(6.0).verdict == "inconclusive"


def test_sides_that_differ_before_training_count_for_nothing() -> None:
    natural = split(40, 40)
    members = tuple(Passage(text=f"{p.text} Kappa") for p in natural.members)
    differ = replace(natural, members=members)
    context = AuditContext(
        claim=oracles.client_claim(4.0, 6.0),
        seed=3,
        artefacts=(Learner(learned(members, gain=4.0)), Wobbly(2.0), differ),
    )
    finding = oracles.run(AUDIT, context)
    assert (finding.verdict, finding.detected) == ("inconclusive", None)
    assert "differ in distribution" in finding.explanation


def test_each_text_is_in_half_of_the_shadows_as_often_as_in_training() -> None:
    rare = replace(kind("rare-token", 20, 20), repeats=3)
    shadows = Learners(1.0)
    target = Learner(learned(rare.included, gain=1.0))
    context = AuditContext(
        claim=oracles.NO_CLAIM, seed=0, artefacts=(target, shadows, oracles.planted(rare))
    )
    oracles.run(AUDIT, context)
    count = SHADOWS["smoke"]
    assert len(shadows.trained) == count + 1
    for passage in (*rare.included, *rare.held_out):
        copies = [trained[passage] for trained in shadows.trained[:count]]
        assert sorted(copies) == [0] * (count // 2) + [3] * (count // 2)
    assert "5 adapters trained on about 20 texts" in AUDIT.cost(context)


def test_halves_are_drawn_by_the_seed() -> None:
    halves = halves_of([11], 4, 1)
    assert [half.sum() for half in halves] == [5, 6, 5, 6, 5]
    assert (halves[0] == ~halves[1]).all()
    assert all(half[:6].sum() == 3 and half[6:].sum() == 2 for half in halves_of([6, 4], 4, 1))
    assert all((a == b).all() for a, b in zip(halves, halves_of([11], 4, 1), strict=True))
    assert any((a != b).any() for a, b in zip(halves, halves_of([11], 4, 2), strict=True))


def test_scores_are_the_gaussians_written_out() -> None:
    """Oracle: a loop over texts with scipy's densities and one spread for each side."""
    rng = np.random.default_rng(0)
    halves = np.array(halves_of([9], 6, 5)[:6])
    shadows, own = rng.standard_normal((6, 9)), rng.standard_normal(9)
    found = lira_scores(own, shadows, halves)
    inside = halves
    own = own - np.median(own - shadows.mean(axis=0))
    means, spreads = {}, {}
    for side, mask in (("in", inside), ("out", ~inside)):
        columns = [shadows[mask[:, i], i] for i in range(9)]
        means[side] = [column.mean() for column in columns]
        # Pooled: squares over degrees of freedom, two for each text with three models.
        spreads[side] = np.sqrt(sum(2 * column.var(ddof=1) for column in columns) / 18)
    for i in range(9):
        online = reference_stats.norm.logpdf(own[i], means["in"][i], spreads["in"])
        online -= reference_stats.norm.logpdf(own[i], means["out"][i], spreads["out"])
        offline = reference_stats.norm.cdf(own[i], means["out"][i], spreads["out"])
        assert found["online"][i] == pytest.approx(online)
        assert found["offline"][i] == pytest.approx(offline)


def test_confidences_are_logits_of_the_probability_per_token() -> None:
    both = [oracles.reading(4.0, 2), oracles.reading(0.0, 1)]
    found = confidences(both, 2)
    assert found[0] == pytest.approx(np.log(np.exp(-2) / (1 - np.exp(-2))))
    assert np.isfinite(found[1])
    with pytest.raises(AuditError, match="2 readings of 3"):
        confidences(both, 3)


def test_what_is_missing_is_said() -> None:
    rare = kind("rare-token", 20, 20)
    target = Learner({})
    with pytest.raises(MissingArtefact, match="Shadows"):
        AUDIT.measure(AuditContext(claim=oracles.NO_CLAIM, seed=0, artefacts=(target,)))
    with pytest.raises(MissingArtefact, match="PlantedCanaries"):
        AUDIT.measure(
            AuditContext(claim=oracles.NO_CLAIM, seed=0, artefacts=(target, Learners(1.0)))
        )
    few = oracles.planted(kind("rare-token", 3, 20))
    with pytest.raises(TooFewCanaries):
        AUDIT.measure(
            AuditContext(claim=oracles.NO_CLAIM, seed=0, artefacts=(target, Learners(1.0), few))
        )
    assert rare.count == 40


@pytest.mark.parametrize("change", [{"sets": []}, {"shadows": 2}, {"sets": [{}]}, {"sets": 1}])
def test_evidence_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    evidence = oracles.through_json(AUDIT.measure(around(1.0, n=20)))
    with pytest.raises(AuditError):
        AUDIT.conclude({**evidence, **change}, oracles.terms())


@pytest.mark.parametrize("key", ["shadow", "control"])
def test_scores_that_were_changed_are_refused(key: str) -> None:
    evidence = oracles.through_json(AUDIT.measure(around(1.0, n=20)))
    evidence["sets"][0][key] = {"in": [1.0], "out": ["x"], "online": {}, "offline": {}}
    with pytest.raises(AuditError):
        AUDIT.conclude(evidence, oracles.terms())


@pytest.mark.slow
@pytest.mark.statistical
def test_false_alarms() -> None:
    """Nothing learned, 40 seeds at 5 % nominal: at most 7, the 99.9 % quantile of Bin(40, .05)."""
    alarms = 0
    for seed in range(40):
        natural = split(20, 20, seed=seed)
        context = AuditContext(
            claim=oracles.NO_CLAIM, seed=seed, artefacts=(Learner({}), Wobbly(2.0), natural)
        )
        alarms += bool(AUDIT.conclude(AUDIT.measure(context), oracles.terms(seed=seed)).detected)
    assert alarms <= 7
