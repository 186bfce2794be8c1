"""The one-run audit: verdicts by kind, what breaks the theorem, and what evidence may hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.guessing import epsilon_lower_bound
from server.audit.onerun import OneRun
from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.run import attempt
from server.audit.target import Passage
from shared.errors import AuditError, TooFewCanaries
from tests.server.audit import oracles

ONE_RUN = OneRun()
TIGHT = oracles.client_claim(0.7, 1.1)


def _find(*kinds: CanaryTexts, gain: float, claim: Claim = oracles.NO_CLAIM) -> Finding:
    return oracles.run(ONE_RUN, oracles.context(*kinds, gain=gain, claim=claim))


def _derived(finding: Finding, kind: int = 0) -> dict[str, Any]:
    derived: dict[str, Any] = finding.evidence["derived"]["kinds"][kind]
    return derived


def test_a_bound_above_the_applicable_epsilon_is_a_violation() -> None:
    finding = _find(oracles.canaries(500, 500), gain=6.0, claim=TIGHT)
    assert (finding.verdict, finding.strength, finding.detected) == ("violation", "certified", True)
    assert finding.value is not None
    assert finding.ceiling is not None
    # All of m / 10 guesses on either side are right: the ceiling, which is a published number.
    assert finding.value == finding.ceiling == pytest.approx(4.166490, abs=1e-6)
    assert (finding.n_in, finding.n_out, finding.baseline) == (500, 500, 0.0)
    assert "lies above the epsilon" in finding.explanation


def test_a_record_canary_is_not_judged_by_the_add_or_remove_epsilon() -> None:
    finding = _find(oracles.canaries(500, 500), gain=6.0, claim=oracles.client_claim(1.0, 7.0))
    assert finding.value is not None
    assert finding.value > 1.0  # above the claimed epsilon, below the one that covers a record
    assert finding.verdict == "consistent"
    assert _derived(finding)["epsilon_applicable"] == 7.0
    assert "replacing one client" in finding.explanation


@pytest.mark.parametrize("claim", [oracles.client_claim(0.01, None), oracles.NO_CLAIM])
def test_without_an_applicable_epsilon_nothing_is_a_violation(claim: Claim) -> None:
    finding = _find(oracles.canaries(500, 500), gain=6.0, claim=claim)
    assert finding.verdict == "inconclusive"
    assert finding.value is not None
    assert finding.value > 4


def test_the_value_is_the_best_of_the_kinds_and_each_pays_for_the_choice() -> None:
    kinds = oracles.canaries(500, 500, kind="rare-token"), oracles.canaries(60, 60)
    finding = _find(*kinds, gain=6.0, claim=TIGHT)
    expected = [
        epsilon_lower_bound(m=m, guesses=r, correct=r, delta=1e-5, alpha=0.025)
        for m, r in ((1000, 200), (120, 30))
    ]
    found = [_derived(finding, kind)["epsilon_lower_bound"] for kind in (0, 1)]
    assert found == pytest.approx(expected, abs=2e-6)
    assert finding.value == max(found)
    assert finding.evidence["derived"]["tests"] == 2
    assert "kind rare-token and secret" in finding.explanation
    assert "corrected" in finding.explanation


def test_copies_are_held_against_group_privacy_at_example_level() -> None:
    """Four copies at epsilon 1: 4.0 and a larger delta, which 4.17 still exceeds; eight do not."""
    for repeats, verdict in ((1, "violation"), (4, "violation"), (8, "inconclusive")):
        texts = oracles.canaries(500, 500, repeats=repeats)
        finding = _find(texts, gain=9.0, claim=oracles.example_claim(1.0, 1e-7))
        assert (repeats, finding.verdict) == (repeats, verdict)
        bound = _derived(finding)
        group = 1e-7 * math.expm1(repeats) / math.expm1(1)
        assert bound["epsilon_applicable"] in {repeats, None}
        assert bound["delta"] == pytest.approx(group if bound["epsilon_applicable"] else 1e-7)


def test_a_null_result_needs_a_control_and_a_ceiling_of_half_the_epsilon() -> None:
    def verdict(epsilon: float, **control: bool | None) -> tuple[str, bool | None]:
        quiet = oracles.context(
            oracles.canaries(200, 200), gain=0.0, claim=oracles.client_claim(epsilon, epsilon)
        )
        known = oracles.caught(**control) if control else None  # type: ignore[arg-type]
        finding = oracles.run(ONE_RUN, quiet, control=known)
        assert finding.value == 0.0
        assert finding.detected is False
        return finding.verdict, finding.positive_control

    assert verdict(2.0, detected=True) == ("consistent", True)
    assert verdict(2.0, detected=False) == ("inconclusive", False)
    assert verdict(2.0, detected=None) == ("inconclusive", None)
    assert verdict(2.0, detected=True, comparable=False) == ("inconclusive", None)
    assert verdict(2.0) == ("inconclusive", None)
    assert verdict(9.0, detected=True) == ("inconclusive", True)


def test_a_low_ceiling_is_named() -> None:
    finding = _find(oracles.canaries(20, 20), gain=6.0, claim=oracles.client_claim(8.0, 13.0))
    assert finding.verdict == "inconclusive"
    assert "less than half of 13.00" in finding.explanation


@pytest.mark.parametrize("change", [{"per_client": 2}, {"independent_coins": False}])
def test_canaries_that_break_the_theorem_certify_nothing(change: dict[str, Any]) -> None:
    finding = _find(replace(oracles.canaries(500, 500), **change), gain=6.0, claim=TIGHT)
    assert (finding.verdict, finding.value, finding.detected) == ("inconclusive", None, None)
    assert finding.ceiling is None
    assert "no bound is certified" in finding.explanation
    assert _derived(finding)["epsilon_lower_bound"] is None


def test_one_sound_kind_certifies_beside_one_that_is_not() -> None:
    unsound = replace(oracles.canaries(300, 300, kind="mine"), independent_coins=False)
    finding = _find(unsound, oracles.canaries(500, 500), gain=6.0, claim=TIGHT)
    assert finding.verdict == "violation"
    assert finding.value == _derived(finding, 1)["epsilon_lower_bound"]
    assert "kind mine did not each have a fair coin" in finding.explanation


def test_two_canaries_in_one_client_are_fine_at_example_level() -> None:
    texts = replace(oracles.canaries(500, 500), per_client=2)
    assert _find(texts, gain=6.0, claim=oracles.example_claim(1.1)).verdict == "violation"


@pytest.mark.parametrize("claim", [TIGHT, oracles.example_claim(8.0), oracles.NO_CLAIM])
def test_a_canary_in_two_clients_is_caught_as_broken_conformance(claim: Claim) -> None:
    texts = replace(oracles.canaries(500, 500), clients_per_canary=2)
    finding = _find(texts, gain=0.0, claim=claim)
    assert (finding.verdict, finding.strength) == ("violation", "conformance")
    assert (finding.value, finding.detected) == (None, None)
    assert "more than one client (secret)" in finding.explanation
    assert "harness" in finding.explanation
    honest = _find(oracles.canaries(500, 500), gain=0.0, claim=claim)
    assert honest.verdict != "violation"


def test_a_canary_in_two_clients_is_caught_however_few_there_are() -> None:
    few = replace(oracles.canaries(3, 2, kind="few"), clients_per_canary=2)
    for kinds in ((few,), (few, oracles.canaries(500, 500))):
        finding = _find(*kinds, gain=6.0, claim=oracles.client_claim(8.0, 13.0))
        assert (finding.verdict, finding.strength) == ("violation", "conformance")
        assert "more than one client (few)" in finding.explanation


def test_evidence_holds_no_text_and_no_order() -> None:
    around = oracles.context(oracles.canaries(40, 30), oracles.canaries(9, 9, kind="pii"), gain=2.0)
    finding = oracles.run(ONE_RUN, around)
    assert oracles.leaked(finding, "ask") == []
    for kind in finding.evidence["kinds"]:
        for side in ("included", "held_out"):
            assert kind[side] == sorted(kind[side])


def test_the_scores_are_minus_the_losses_under_the_adapter() -> None:
    texts = oracles.canaries(8, 8, references=0)
    everything = (*texts.included, *texts.held_out)
    base = dict.fromkeys(everything, 50.0)
    tuned = {passage: 16.0 - index for index, passage in enumerate(everything)}
    around = AuditContext(
        claim=oracles.NO_CLAIM,
        seed=0,
        artefacts=(oracles.FakeTarget(base, tuned), oracles.planted(texts)),
    )
    (kind,) = ONE_RUN.measure(around)["kinds"]
    assert kind["included"] == [float(n) for n in range(-16, -8)]
    assert kind["held_out"] == [float(n) for n in range(-8, 0)]


def test_kinds_with_too_few_on_a_side_are_left_out_but_keep_their_share_of_alpha() -> None:
    unlucky = oracles.canaries(7, 50, kind="unlucky")  # 57 coins could have fallen otherwise
    small = oracles.canaries(4, 4, kind="small")  # 8 canaries could never have been enough
    finding = _find(oracles.canaries(500, 500), unlucky, small, gain=6.0, claim=TIGHT)
    assert finding.evidence["derived"]["tests"] == 2
    assert [kind["kind"] for kind in finding.evidence["left_out"]] == ["unlucky", "small"]
    assert finding.n_in == 500


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 50), (50, 7), (0, 0)])
def test_too_few_canaries_are_refused(n_in: int, n_out: int) -> None:
    around = oracles.context(oracles.canaries(n_in, n_out), gain=9.0)
    with pytest.raises(TooFewCanaries, match=f"included={n_in}"):
        ONE_RUN.measure(around)
    finding = attempt(ONE_RUN, around, oracles.terms())
    assert (finding.verdict, finding.value) == ("inconclusive", None)


def test_no_kind_at_all_is_refused() -> None:
    around = oracles.context(gain=1.0).plus(PlantedCanaries(kinds=()))
    with pytest.raises(TooFewCanaries):
        ONE_RUN.measure(around)


def test_missing_artefacts_are_an_inconclusive_finding() -> None:
    empty = AuditContext(claim=TIGHT, seed=0)
    finding = attempt(ONE_RUN, empty, oracles.terms(TIGHT))
    assert finding.verdict == "inconclusive"
    assert "needs what is not here" in finding.explanation
    assert ONE_RUN.cost(empty).startswith("0 texts")
    assert ONE_RUN.cost(oracles.context(gain=0.0)).startswith("200 texts")


def test_losses_that_are_not_finite_are_refused() -> None:
    around = oracles.context(oracles.canaries(8, 8), gain=0.0)
    around.need(oracles.FakeTarget).losses[True][
        Passage(text="secret in-zqx-3", prompt="secret in ask")
    ] = math.nan
    with pytest.raises(AuditError, match="1 of 8 losses"):
        ONE_RUN.measure(around)


def test_ties_do_not_certify_anything() -> None:
    """Every score equal: nobody can guess, however the sides are listed."""
    texts = oracles.canaries(300, 300, references=0)
    same = dict.fromkeys((*texts.included, *texts.held_out), 5.0)
    around = AuditContext(
        claim=TIGHT, seed=1, artefacts=(oracles.FakeTarget(same, same), oracles.planted(texts))
    )
    finding = oracles.run(ONE_RUN, around)
    assert finding.value == 0.0
    assert 40 < _derived(finding)["correct"] < 110  # of 150; the chance of leaving this is 1e-8


def test_the_parametric_bounds_are_named_and_larger() -> None:
    finding = _find(oracles.canaries(500, 500), gain=2.0, claim=oracles.client_claim(9.0, 9.0))
    derived = _derived(finding)
    parametric = derived["parametric"]
    assert parametric["delta"] == 1e-5
    assert parametric["f_dp_one_run"]["epsilon"] > derived["epsilon_lower_bound"]
    assert "Gaussian" in parametric["f_dp_one_run"]["assumes"]
    assert "Gaussian" in parametric["gdp_thresholds"]["assumes"]
    # A gain of 2 nats in noise of 1 is a 2-GDP mechanism.
    assert 0.5 < parametric["f_dp_one_run"]["mu"] < 2
    assert 1.0 < parametric["gdp_thresholds"]["mu"] < 2


def test_a_parametric_bound_above_the_claim_is_not_a_violation() -> None:
    finding = _find(oracles.canaries(500, 500), gain=2.0, claim=oracles.client_claim(4.0, 5.0))
    derived = _derived(finding)
    assert derived["parametric"]["gdp_thresholds"]["epsilon"] > 5.0 > finding.value  # type: ignore[operator]
    assert finding.verdict == "consistent"


def test_a_conclusion_reads_only_evidence_and_terms() -> None:
    around = oracles.context(oracles.canaries(60, 60), gain=2.0, claim=TIGHT)
    evidence = ONE_RUN.measure(around)
    first = ONE_RUN.conclude(evidence, oracles.terms(TIGHT))
    poisoned = {**evidence, "derived": {"tests": "nonsense"}}
    assert ONE_RUN.conclude(poisoned, oracles.terms(TIGHT)).to_dict() == first.to_dict()


BREAKS: list[Callable[[dict[str, Any]], object]] = [
    lambda e: e.pop("kinds"),
    lambda e: e.update(kinds=[]),
    lambda e: e.update(kinds="all"),
    lambda e: e.update(kinds=[3]),
    lambda e: e.update(kinds=e["kinds"] * 2),
    lambda e: e.pop("left_out"),
    lambda e: e.update(left_out=[{"included": 40}]),
    lambda e: e.update(left_out=[{"kind": "x", "clients_per_canary": 1, "included": 40}]),
    lambda e: e["kinds"][0].pop("included"),
    lambda e: e["kinds"][0].update(included=[1.0] * 7),
    lambda e: e["kinds"][0].update(held_out=[None] * 60),
    lambda e: e["kinds"][0].update(repeats=0),
    lambda e: e["kinds"][0].update(repeats=10**400),
    lambda e: e["kinds"][0].update(per_client=True),
    lambda e: e["kinds"][0].update(independent_coins=1),
    lambda e: e["kinds"][0].update(kind=None),
]


@pytest.mark.parametrize("damage", BREAKS)
def test_damaged_evidence_is_an_audit_error(damage: Callable[[dict[str, Any]], object]) -> None:
    around = oracles.context(oracles.canaries(60, 60), gain=2.0)
    evidence = oracles.through_json(ONE_RUN.measure(around))
    damage(evidence)
    with pytest.raises(AuditError):
        ONE_RUN.conclude(evidence, oracles.terms())


def test_changed_scores_change_the_finding() -> None:
    around = oracles.context(oracles.canaries(100, 100), gain=4.0, claim=TIGHT)
    evidence = oracles.through_json(ONE_RUN.measure(around))
    honest = ONE_RUN.conclude(evidence, oracles.terms(TIGHT))
    kind = evidence["kinds"][0]
    kind["included"], kind["held_out"] = kind["held_out"], kind["included"]
    forged = ONE_RUN.conclude(evidence, oracles.terms(TIGHT))
    assert honest.value is not None
    assert honest.value > 1
    assert forged.value == 0.0


def test_the_audit_says_what_it_is() -> None:
    assert ONE_RUN.name == "one-run"
    assert "coins" in ONE_RUN.threat_model
    assert len(ONE_RUN.needs) == 3
    assert np.isfinite(epsilon_lower_bound(m=16, guesses=4, correct=4, delta=0.0))
