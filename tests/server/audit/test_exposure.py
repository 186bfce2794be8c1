"""The exposure audit: a planted leak, its null, its verdicts, and what it keeps to itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.audit.canaries import PlantedCanaries
from server.audit.exposure import Exposure
from server.audit.protocol import AuditContext, Finding
from server.audit.ranking import CHANCE_BITS
from server.audit.target import Target
from shared.errors import AuditError, MissingArtefact, TooFewCanaries
from tests.server.audit import oracles

EXPOSURE = Exposure()


def derived(finding: Finding) -> dict[str, Any]:
    found: dict[str, Any] = finding.evidence["derived"]
    return found


def test_a_planted_leak_is_found_and_explained() -> None:
    finding = oracles.run(EXPOSURE, oracles.context(gain=18.0))
    assert finding.value is not None
    assert finding.baseline is not None
    assert finding.interval is not None
    assert finding.value > 6
    assert finding.baseline < 2.5
    assert finding.detected
    assert finding.ceiling == pytest.approx(math.log2(257))
    assert finding.interval[0] <= finding.value <= finding.interval[1]
    assert finding.verdict == "inconclusive"  # nothing is claimed, so nothing is contradicted
    assert oracles.leaked(finding) == []


def test_a_leak_above_the_claim_is_a_certified_violation() -> None:
    around = oracles.context(gain=40.0, claim=oracles.client_claim(1.0, 2.0))
    finding = oracles.run(EXPOSURE, around)
    assert finding.verdict == "violation"
    assert finding.strength == "certified"
    bound = derived(finding)["bound"]
    assert bound["certified"]
    assert bound["hits"] == 50
    assert 4.0 < bound["epsilon_lower_bound"] < 4.2
    assert bound["epsilon_applicable"] == 2.0


def test_a_null_result_is_consistent_only_if_the_control_was_caught() -> None:
    around = oracles.context(gain=0.0, claim=oracles.client_claim(3.0, 5.0))
    caught = oracles.run(EXPOSURE, around, control=oracles.caught())
    missed = oracles.run(EXPOSURE, around, control=oracles.caught(detected=False))
    alone = oracles.run(EXPOSURE, around)
    assert [f.verdict for f in (caught, missed, alone)] == [
        "consistent",
        "inconclusive",
        "inconclusive",
    ]
    assert [f.positive_control for f in (caught, missed, alone)] == [True, False, None]
    assert caught.strength == "descriptive"


def test_a_claim_far_above_the_ceiling_cannot_be_tested() -> None:
    around = oracles.context(gain=0.0, claim=oracles.client_claim(8.0, 11.0))
    finding = oracles.run(EXPOSURE, around, control=oracles.caught())
    assert finding.verdict == "inconclusive"
    assert "less than half" in finding.explanation


def test_every_kind_is_tested_and_the_secrets_are_reported() -> None:
    kinds = (oracles.canaries(kind="rare-token", references=128), oracles.canaries(20, 21))
    finding = oracles.run(EXPOSURE, oracles.context(*kinds, gain=16.0))
    found = derived(finding)
    assert found["tests"] == 4
    assert found["main_kind"] == "secret"
    assert (finding.n_in, finding.n_out) == (20, 21)
    assert set(found["kinds"]) == {"rare-token", "secret"}
    assert found["kinds"]["rare-token"]["mean_included"] > 5
    assert found["kinds"]["secret"]["mean_included"] == finding.value
    assert found["kinds"]["secret"]["mean_extrapolated"] > found["kinds"]["secret"]["mean_held_out"]
    assert found["chance_bits"] == pytest.approx(CHANCE_BITS)


def test_fisher_is_reported_only_with_references_for_every_canary() -> None:
    few = oracles.run(EXPOSURE, oracles.context(oracles.canaries(references=64), gain=16.0))
    many = oracles.run(EXPOSURE, oracles.context(oracles.canaries(references=400), gain=16.0))
    assert derived(few)["kinds"]["secret"]["p_value_fisher"] is None
    assert derived(many)["kinds"]["secret"]["p_value_fisher"] < 1e-6


def test_sides_that_differ_before_training_are_pointed_out() -> None:
    texts = oracles.planted(oracles.canaries())
    target = oracles.model(texts, gain=0.0)
    for passage in texts.kinds[0].included:
        target.losses[False][passage] -= 5
        target.losses[True][passage] -= 5
    around = AuditContext(claim=oracles.NO_CLAIM, seed=0, artefacts=(target, texts))
    assert "already differ under the base model" in oracles.run(EXPOSURE, around).explanation


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"clients_per_canary": 2}, "more than one client"),
        ({"per_client": 2}, "more than one canary"),
        ({"kind": "user file"}, "not drawn independently"),
    ],
)
def test_nothing_is_certified_without_its_assumptions(change: dict[str, Any], why: str) -> None:
    texts = replace(oracles.canaries(), **change)
    around = oracles.context(texts, gain=40.0, claim=oracles.client_claim(1.0, 2.0))
    finding = oracles.run(EXPOSURE, around)
    assert finding.verdict == "inconclusive"
    assert why in finding.explanation
    assert not derived(finding)["bound"]["certified"]


def test_a_users_own_files_certify_nothing() -> None:
    around = oracles.context(gain=40.0, claim=oracles.client_claim(1.0, 2.0))
    own = replace(around.need(PlantedCanaries), coins="")
    assert oracles.run(EXPOSURE, around.plus(own)).verdict == "inconclusive"


def test_kinds_that_cannot_be_ranked_are_named_and_left_out() -> None:
    kinds = (oracles.canaries(), oracles.canaries(kind="rare-token", references=15))
    finding = oracles.run(EXPOSURE, oracles.context(*kinds, gain=0.0))
    assert finding.evidence["skipped"] == {"rare-token": "references=15, expected at least 16"}
    assert derived(finding)["tests"] == 2
    with pytest.raises(TooFewCanaries, match="included=7"):
        EXPOSURE.measure(oracles.context(oracles.canaries(7, 9), gain=0.0))


def test_a_smoke_test_reads_fewer_references() -> None:
    texts = oracles.canaries(references=600)
    smoke = oracles.run(EXPOSURE, oracles.context(texts, gain=0.0))
    release = oracles.run(EXPOSURE, oracles.context(texts, gain=0.0, effort="release"))
    assert smoke.ceiling == pytest.approx(math.log2(513))
    assert release.ceiling == pytest.approx(math.log2(601))
    assert EXPOSURE.cost(oracles.context(texts, gain=0.0)).startswith("1224 texts")


def test_what_is_missing_is_said() -> None:
    bare = AuditContext(claim=oracles.NO_CLAIM, seed=0)
    assert EXPOSURE.cost(bare).startswith("0 texts")
    with pytest.raises(MissingArtefact, match="Target"):
        EXPOSURE.measure(bare)
    with pytest.raises(MissingArtefact, match="PlantedCanaries"):
        EXPOSURE.measure(bare.plus(oracles.FakeTarget({}, {})))


def test_a_model_that_diverged_is_an_audit_error() -> None:
    around = oracles.context(gain=0.0)
    target = around.need(Target)
    assert isinstance(target, oracles.FakeTarget)
    target.losses[True] = dict.fromkeys(target.losses[True], math.nan)
    with pytest.raises(AuditError, match="not finite"):
        EXPOSURE.measure(around)


@pytest.mark.parametrize(
    "damage",
    [
        {"kinds": []},
        {"kinds": "none"},
        {"kinds": [{}]},
        {"planted": 1},
    ],
)
def test_malformed_evidence_is_an_audit_error(damage: dict[str, Any]) -> None:
    evidence = EXPOSURE.measure(oracles.context(gain=0.0))
    with pytest.raises(AuditError):
        EXPOSURE.conclude({**evidence, **damage}, oracles.terms())


@pytest.mark.parametrize("side", ["included", "held_out", "references"])
def test_losses_that_do_not_match_are_an_audit_error(side: str) -> None:
    evidence = oracles.through_json(EXPOSURE.measure(oracles.context(gain=0.0)))
    for wrong in ([1.0, 2.0], None, ["x"] * 50, [math.inf] * 50):
        evidence["kinds"][0]["base"][side] = wrong
        with pytest.raises(AuditError):
            EXPOSURE.conclude(evidence, oracles.terms())


def test_the_conclusion_uses_the_evidence_and_not_what_was_derived() -> None:
    around = oracles.context(gain=3.0)
    evidence = EXPOSURE.measure(around)
    forged = {**evidence, "derived": {"p_value": 1.0, "bound": {"epsilon_lower_bound": 0.0}}}
    assert EXPOSURE.conclude(forged, oracles.terms()) == EXPOSURE.conclude(
        evidence, oracles.terms()
    )
    assert np.isfinite(derived(EXPOSURE.conclude(evidence, oracles.terms()))["p_value"])
