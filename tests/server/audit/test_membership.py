"""Membership inference: a planted leak, no leak, and sides that differ before training."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference_stats

from server.audit.membership import MOST, Membership, TextSplit
from server.audit.protocol import AuditContext, Claim, Effort
from server.audit.scores import SCORES
from server.audit.target import Passage
from shared.errors import AuditError, InvalidValue, MissingArtefact, TooFewCanaries
from tests.server.audit import oracles
from tests.server.audit.texts import Learner, kind, learned, split, texts

AUDIT = Membership()


def around(*artefacts: object, claim: Claim = oracles.NO_CLAIM, **options: Any) -> AuditContext:
    return AuditContext(claim=claim, seed=3, artefacts=artefacts, **options)


def leak(gain: float, *, n: int = 60, claim: Claim = oracles.NO_CLAIM) -> AuditContext:
    """Two kinds of canaries and natural text; only the rare tokens were learned."""
    rare, secret, natural = kind("rare-token", n, n), kind("secret", n, n), split(n, n)
    target = Learner(learned(rare.included, gain=gain))
    return around(target, oracles.planted(secret, rare), natural, claim=claim)


def test_a_planted_leak_is_found_and_named() -> None:
    finding = oracles.run(AUDIT, leak(4.0))
    assert finding.detected
    assert finding.value is not None
    assert finding.value > 0.7
    derived = finding.evidence["derived"]
    assert derived["primary_set"] == "rare-token"
    assert derived["tests"] == 3 * len(SCORES)
    detected = {
        name: [score for score, found in one["scores"].items() if found["detected"]]
        for name, one in derived["sets"].items()
    }
    assert "reference" in detected["rare-token"]
    assert derived["primary_score"] == "loss"
    assert derived["sets"]["natural"]["primary_score"] == "reference"
    assert detected["secret"] == detected["natural"] == []
    # The base model explains most of a text's loss, so the plain loss sees less.
    rare = derived["sets"]["rare-token"]["scores"]
    assert rare["loss"]["auc"] < rare["reference"]["auc"] - 0.05
    assert "rare-token" in finding.explanation
    assert "14 tests" not in finding.explanation
    assert "21 tests" in finding.explanation


def test_evidence_holds_no_text_and_no_order() -> None:
    finding = oracles.run(AUDIT, leak(4.0))
    assert oracles.leaked(finding) == []
    for one in finding.evidence["sets"]:
        arrays = [one["blind_loss"], *one["blind_words"], *one["scores"].values()]
        for pair in arrays:
            assert pair["in"] == sorted(pair["in"])
            assert pair["out"] == sorted(pair["out"])


def test_values_are_those_of_a_library() -> None:
    finding = oracles.run(AUDIT, leak(2.0))
    rare = next(one for one in finding.evidence["sets"] if one["name"] == "rare-token")
    for score, pair in rare["scores"].items():
        u = reference_stats.mannwhitneyu(pair["in"], pair["out"], alternative="greater")
        found = finding.evidence["derived"]["sets"]["rare-token"]["scores"][score]
        assert found["auc"] == pytest.approx(u.statistic / (len(pair["in"]) * len(pair["out"])))
        # Corrected p-values are never smaller; 9,999 permutations see no p below 1e-4.
        assert found["p_value"] >= min(1.0, u.pvalue) * 0.5
    assert finding.value == pytest.approx(
        finding.evidence["derived"]["sets"]["rare-token"]["scores"]["loss"]["auc"]
    )


def test_the_ordinary_auc_is_printed_and_not_that_of_the_hull() -> None:
    """Known answer: 0, 4, 6, 7 against 1, 2, 3, 5 is 11/16 (13/16 under the hull)."""
    evidence = oracles.through_json(AUDIT.measure(leak(0.0, n=20)))
    only = evidence["sets"][0]
    only["scores"] = {"loss": {"in": [0, 4, 6, 7] * 4, "out": [1, 2, 3, 5] * 4}}
    finding = AUDIT.conclude({"sets": [only]}, oracles.terms())
    assert finding.value == pytest.approx(11 / 16)


def test_no_leak_is_not_detected() -> None:
    finding = oracles.run(AUDIT, leak(0.0), control=oracles.caught())
    assert not finding.detected
    assert finding.value == pytest.approx(0.5, abs=0.15)


def test_verdicts() -> None:
    claim = oracles.client_claim(2.0, 3.0)
    assert oracles.run(AUDIT, leak(0.0, claim=claim)).verdict == "inconclusive"
    caught = oracles.run(AUDIT, leak(0.0, claim=claim), control=oracles.caught())
    assert (caught.verdict, caught.positive_control) == ("consistent", True)
    missed = oracles.run(AUDIT, leak(0.0, claim=claim), control=oracles.caught(detected=False))
    assert (missed.verdict, missed.positive_control) == ("inconclusive", False)
    # An attack that works within what the claim allows needs no control.
    weak = oracles.run(AUDIT, leak(1.5, claim=claim))
    assert (weak.verdict, weak.detected) == ("consistent", True)
    assert "95.3 %" in weak.explanation
    assert oracles.run(AUDIT, leak(4.0)).verdict == "inconclusive"


def test_more_than_the_claim_allows_is_said_and_left_to_a_certified_audit() -> None:
    finding = oracles.run(AUDIT, leak(5.0, claim=oracles.client_claim(0.3, 0.5)))
    assert (finding.verdict, finding.strength) == ("inconclusive", "descriptive")
    assert "lies above the 62.2 %" in finding.explanation
    assert "one-run" in finding.explanation


def test_canaries_that_share_a_client_are_held_to_nothing() -> None:
    rare = kind("rare-token", 40, 40)
    shared = replace(rare, per_client=2)
    target = Learner(learned(shared.included, gain=5.0))
    finding = oracles.run(
        AUDIT, around(target, oracles.planted(shared), claim=oracles.client_claim(0.3, 0.5))
    )
    assert finding.evidence["derived"]["sets"]["rare-token"]["auc_allowed"] is None
    assert "lies above" not in finding.explanation


def test_sides_with_other_words_are_named_and_count_for_nothing() -> None:
    """Members of another source: nothing was learned, and yet every score tells them apart."""
    rng = np.random.default_rng(5)
    members = tuple(Passage(text=f"{p.text} Kappa") for p in texts(rng, 60))
    differ = TextSplit(members=members, nonmembers=texts(rng, 60), source="two files")
    secret = kind("secret", 60, 60)
    target = Learner(learned(differ.members, gain=3.0))
    claim = oracles.client_claim(2.0, 3.0)
    both = around(target, oracles.planted(secret), differ, claim=claim)
    finding = oracles.run(AUDIT, both, control=oracles.caught())
    assert (finding.verdict, finding.detected) == ("inconclusive", False)
    assert "natural texts apart" in finding.explanation
    assert finding.evidence["derived"]["primary_set"] == "secret"
    sets = finding.evidence["derived"]["sets"]
    assert sets["natural"]["blind"]["words"]["p_value"] < 0.01
    assert sets["natural"]["blind"]["words"]["auc"] > 0.9
    assert not sets["secret"]["differs_without_training"]
    alone = oracles.run(AUDIT, around(target, differ, claim=claim), control=oracles.caught())
    assert (alone.verdict, alone.detected) == ("inconclusive", None)


def test_sides_that_the_base_model_tells_apart_are_named() -> None:
    natural = split(60, 60)
    for sign in (1, -1):
        target = Learner({}, bias=dict.fromkeys(natural.members, 12.0 * sign))
        finding = oracles.run(AUDIT, around(target, natural))
        assert (
            finding.evidence["derived"]["sets"]["natural"]["blind"]["base_loss"]["p_value"] < 0.01
        )
        assert finding.verdict == "inconclusive"
        assert "differ in distribution" in finding.explanation


def test_rates_that_so_few_texts_cannot_show_are_not_given() -> None:
    finding = oracles.run(AUDIT, leak(2.0, n=100))
    rates = finding.evidence["derived"]["sets"]["rare-token"]["scores"]["reference"]["tpr_at_fpr"]
    assert [(rate["fpr"], rate["value"] is None) for rate in rates] == [
        (0.1, False),
        (0.01, True),
        (0.001, True),
    ]
    assert "At 10 % false accusations" in finding.explanation
    few = oracles.run(AUDIT, leak(2.0, n=40))
    assert "too few non-members" in few.explanation


def test_rmia_compares_with_texts_of_neither_side() -> None:
    with_references = kind("secret", 40, 40, references=50)
    target = Learner({})
    evidence = AUDIT.measure(around(target, oracles.planted(with_references)))
    assert len(evidence["sets"][0]["scores"]["rmia"]["out"]) == 40
    evidence = AUDIT.measure(around(target, split(40, 40)))
    assert len(evidence["sets"][0]["scores"]["rmia"]["out"]) == 30
    evidence = AUDIT.measure(around(target, split(40, 40, population=20)))
    assert len(evidence["sets"][0]["scores"]["rmia"]["out"]) == 40
    few = AUDIT.measure(around(target, split(20, 20)))
    assert "rmia" not in few["sets"][0]["scores"]
    assert few["sets"][0]["blind_words"]


def test_texts_without_capitals_have_no_lowercase_score() -> None:
    rng = np.random.default_rng(1)
    lower = tuple(Passage(text=p.text.lower()) for p in texts(rng, 40))
    target = Learner({})
    sides = TextSplit(members=lower[:20], nonmembers=lower[20:], source="small letters")
    evidence = AUDIT.measure(around(target, sides))
    assert "lowercase" not in evidence["sets"][0]["scores"]
    assert len(target.reads) == 2 * 40


@pytest.mark.parametrize("effort", ["smoke", "release"])
def test_no_more_texts_are_read_than_the_effort_allows(
    effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MOST, "smoke", 30)
    target = Learner({})
    natural = split(50, 45)
    found = around(target, natural, effort=effort)
    (one,) = AUDIT.measure(found)["sets"]
    wanted = (30, 30) if effort == "smoke" else (50, 45)
    assert (len(one["scores"]["loss"]["in"]), len(one["scores"]["loss"]["out"])) == wanted
    assert str(2 * sum(wanted)) in AUDIT.cost(found)


def test_small_sets_are_skipped_and_too_small_ones_refused() -> None:
    secret, tiny = kind("secret", 20, 20), kind("rare-token", 20, 7)
    evidence = AUDIT.measure(around(Learner({}), oracles.planted(secret, tiny)))
    assert [one["name"] for one in evidence["sets"]] == ["secret"]
    assert evidence["skipped"] == [{"name": "rare-token", "n_in": 20, "n_out": 7}]
    with pytest.raises(TooFewCanaries, match="rare-token 20/7"):
        AUDIT.measure(around(Learner({}), oracles.planted(tiny)))
    with pytest.raises(MissingArtefact):
        AUDIT.measure(around(Learner({})))
    with pytest.raises(MissingArtefact):
        AUDIT.measure(around(oracles.planted(secret)))
    assert AUDIT.cost(around()).startswith("0 texts")


def test_a_model_that_answers_nonsense_is_refused() -> None:
    class Silent(Learner):
        def read(self, passages: Any, *, adapter: bool) -> Any:
            return super().read(passages, adapter=adapter)[1:]

    class Diverged(Learner):
        def read(self, passages: Any, *, adapter: bool) -> Any:
            found = super().read(passages, adapter=adapter)
            found[0].log_probability[0] = np.nan
            return found

    for target in (Silent({}), Diverged({}), Learner({}, tokens=0)):
        with pytest.raises(AuditError, match="empty or not finite"):
            AUDIT.measure(around(target, split(20, 20)))


def test_a_text_counts_once() -> None:
    one, other = Passage(text="one zqx"), Passage(text="other zqx")
    with pytest.raises(InvalidValue, match="twice=1") as caught:
        TextSplit(members=(one,), nonmembers=(other, one), source="x")
    assert "zqx" not in str(caught.value)
    with pytest.raises(InvalidValue):
        TextSplit(members=(one, one), nonmembers=(other,), source="x")
    assert "zqx" not in repr(TextSplit(members=(one,), nonmembers=(other,), source="x"))


def changed(evidence: dict[str, Any], path: list[Any], value: object) -> dict[str, Any]:
    """A copy of evidence with one thing replaced, or removed where the value is ``...``."""
    copy: dict[str, Any] = json.loads(json.dumps(evidence))
    place: Any = copy
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


BROKEN: list[tuple[list[Any], object]] = [
    (["sets"], ...),
    (["sets"], []),
    (["sets"], [3]),
    (["sets", 0, "name"], 3),
    (["sets", 0, "planted"], "yes"),
    (["sets", 0, "repeats"], 0),
    (["sets", 0, "scores", "reference"], ...),
    (["sets", 0, "scores", "other"], {"in": [1.0] * 9, "out": [1.0] * 9}),
    (["sets", 0, "scores", "loss", "in"], [1.0, 2.0]),
    (["sets", 0, "scores", "loss", "in", 3], "a"),
    (["sets", 0, "scores", "loss", "in", 3], float("nan")),
    (["sets", 0, "blind_loss"], None),
    (["sets", 0, "blind_words"], [[1.0]]),
    (["sets", 1], "copy"),
]


@pytest.mark.parametrize(("path", "value"), BROKEN)
def test_malformed_evidence_is_an_audit_error(path: list[Any], value: object) -> None:
    evidence = oracles.through_json(AUDIT.measure(around(Learner({}), split(20, 20))))
    if value == "copy":
        broken = {"sets": [evidence["sets"][0]] * 2}
    else:
        broken = changed(evidence, path, value)
    with pytest.raises(AuditError):
        AUDIT.conclude(broken, oracles.terms())
