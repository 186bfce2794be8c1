"""The client-canary audit: broken noise is a violation, honest noise is not, and doubt is said."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from server.audit.canaryparts import conclude_rehearsal
from server.audit.canaryrehearsal import rehearse
from server.audit.clientcanary import ClientCanaries, ClientCanary
from server.audit.directions import update_noise
from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.runrecord import RunRecord
from shared.errors import AuditError, MissingArtefact
from shared.privacy.mechanism import GaussianMechanism
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from tests.server.audit.canaryruns import CLIP, plan_of_run, released_run
from tests.server.audit.oracles import (
    NO_CLAIM,
    client_claim,
    example_claim,
    run,
    terms,
    through_json,
)

LEDGER = 7.05
"""PLD epsilon of q = 0.1, T = 100, z = 1 at delta 1e-5 (notes, section 3.1)."""


@cache
def planned() -> PrivacyPlan:
    return plan_of_run()


def audited(
    claim: Claim | None = None, *, plan: PrivacyPlan | None = None, **arguments: Any
) -> Finding:
    record, canaries = released_run(plan or planned(), **arguments)
    context = AuditContext(
        claim=claim or client_claim(LEDGER, 10.5), seed=0, artefacts=(record, canaries)
    )
    return run(ClientCanary(), context)


@cache
def honest() -> Finding:
    return audited()


def test_honest_noise_contradicts_nothing() -> None:
    finding = honest()
    assert finding.verdict == "consistent"
    assert finding.strength == "parametric"
    assert finding.value is not None
    assert 2.0 < finding.value < LEDGER
    assert finding.detected is True
    assert finding.positive_control is True
    assert (finding.n_in, finding.n_out) == (100, 100)
    derived = finding.evidence["derived"]["run"]
    assert derived["predicted_score"] == pytest.approx(1.0, abs=0.01)
    assert abs(derived["sigmas"]) < 3
    assert derived["andrew_epsilon"] > derived["epsilon_estimate"]
    assert finding.ceiling is not None
    assert finding.ceiling > LEDGER


def test_evidence_holds_no_direction_and_no_release() -> None:
    """Nothing of the length of the adapter is stored."""
    finding = honest()

    def lengths(value: object) -> list[int]:
        if isinstance(value, dict):
            return [n for inner in value.values() for n in lengths(inner)]
        return [len(value)] if isinstance(value, list) else []

    assert max(lengths(through_json(finding.evidence))) == 100


def test_half_of_the_noise_is_a_violation() -> None:
    finding = audited(noise=0.5)
    assert finding.verdict == "violation"
    assert "lean further" in finding.explanation


def test_half_of_the_noise_is_a_violation_where_the_bound_does_not_see_it() -> None:
    """q = 0.1, T = 100, z = 0.5: ledger 31.37, and the bound stays below it."""
    plan = plan_of_run(noise=0.5)
    finding = audited(client_claim(31.37, None), plan=plan, noise=0.25)
    assert finding.value is not None
    assert finding.value < 31.37
    assert finding.verdict == "violation"


def test_noise_that_was_forgotten_is_a_violation() -> None:
    assert audited(noise=0.0).verdict == "violation"


def test_a_clip_that_is_off_is_a_violation() -> None:
    finding = audited(weight=1e4)
    assert finding.verdict == "violation"


def test_a_budget_that_is_under_counted_is_a_violation() -> None:
    finding = audited(client_claim(0.5, 1.0))
    assert finding.verdict == "violation"
    assert "above the epsilon that applies" in finding.explanation


def test_what_clients_learn_does_not_make_a_violation() -> None:
    """As long as the noise of all rounds: the cosine shrinks by the square root of two."""
    finding = audited(drift=1.0)
    assert finding.verdict == "consistent"
    derived, still = (f.evidence["derived"]["run"] for f in (finding, honest()))
    assert derived["mu"] == pytest.approx(still["mu"] / np.sqrt(2), rel=0.2)
    assert derived["mean_score"] == pytest.approx(still["mean_score"], rel=0.1)


def test_noise_under_what_clients_learn_is_still_seen() -> None:
    assert audited(drift=1.0, noise=0.5).verdict == "violation"


def test_learning_that_drowns_the_noise_is_inconclusive() -> None:
    finding = audited(drift=20.0)
    assert finding.verdict == "inconclusive"
    assert "could hide" in finding.explanation


def test_a_score_below_the_prediction_is_explained_and_no_violation() -> None:
    """Rounds three times as long as their noise, in another direction each time."""
    evidence = through_json(honest().evidence)
    scores = [score / 3 for score in evidence["run"]["scores"]]
    evidence["run"] |= {"scores": scores, "mean_square_length": 9.0}
    finding = ClientCanary().conclude(evidence, terms(client_claim(LEDGER, None)))
    assert finding.verdict == "inconclusive"
    assert "own updates" in finding.explanation


def test_too_few_canaries_are_inconclusive() -> None:
    finding = audited(plan=plan_of_run(canaries=4), canaries=4)
    assert finding.verdict == "inconclusive"
    assert "so few canaries" in finding.explanation
    assert finding.positive_control is True


@pytest.mark.parametrize(
    ("claim", "why"),
    [(NO_CLAIM, "claims no epsilon"), (example_claim(8.0), "not one example")],
)
def test_a_claim_about_something_else_is_inconclusive(claim: Claim, why: str) -> None:
    record, canaries = released_run(planned())
    context = AuditContext(claim=claim, seed=0, artefacts=(record, canaries))
    finding = run(ClientCanary(), context)
    assert finding.verdict == "inconclusive"
    assert why in finding.explanation


def test_an_adapter_alone_gives_a_bound_and_no_more() -> None:
    record, canaries = released_run(planned())
    bare = replace(record, releases=None)
    context = AuditContext(claim=client_claim(LEDGER, None), seed=0, artefacts=(bare, canaries))
    finding = run(ClientCanary(), context)
    assert finding.verdict == "inconclusive"
    assert "only the bound" in finding.explanation
    assert finding.value == pytest.approx(honest().value or 0.0, rel=1e-3)
    small = AuditContext(claim=client_claim(0.5, None), seed=0, artefacts=(bare, canaries))
    assert run(ClientCanary(), small).verdict == "violation"


def test_a_run_without_canaries_is_rehearsed() -> None:
    record, _ = released_run(planned())
    context = AuditContext(claim=client_claim(LEDGER, None), seed=0, artefacts=(record,))
    finding = run(ClientCanary(), context)
    assert finding.verdict == "consistent"
    assert finding.strength == "conformance"
    assert finding.value is None
    assert finding.n_in == 0
    assert "rehearsal" in finding.explanation
    assert "installed mechanism alone" in finding.explanation
    assert finding.evidence["rehearsal"]["canaries"] == 100


def test_an_installed_mechanism_with_half_its_noise_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = GaussianMechanism.noise_stddev.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(GaussianMechanism, "noise_stddev", property(lambda self: exact(self) / 2))
    record, _ = released_run(planned())
    context = AuditContext(claim=client_claim(LEDGER, None), seed=0, artefacts=(record,))
    finding = run(ClientCanary(), context)
    assert finding.verdict == "violation"
    assert finding.detected is True
    assert "does not conform" in finding.explanation


def test_a_rehearsal_that_cannot_see_half_of_the_noise_is_inconclusive() -> None:
    record, _ = released_run(planned())
    context = AuditContext(claim=client_claim(LEDGER, None), seed=0, artefacts=(record,))
    evidence = ClientCanary().measure(context)
    evidence["rehearsal"]["halved"] = evidence["rehearsal"]["planned"]
    finding = ClientCanary().conclude(evidence, terms(client_claim(LEDGER, None)))
    assert finding.verdict == "inconclusive"
    assert finding.positive_control is False


def test_the_non_private_twin_shows_its_canaries() -> None:
    """Without noise nothing is predicted, canaries stand out, and there is no claim to judge."""
    twin = make_plan(mode="none", rounds=100, population=1000)
    record, canaries = released_run(planned(), noise=0.01)
    context = AuditContext(claim=NO_CLAIM, seed=0, artefacts=(replace(record, plan=twin), canaries))
    finding = run(ClientCanary(), context)
    assert finding.verdict == "inconclusive"
    assert finding.detected is True
    assert finding.value is not None
    assert finding.value > 20
    assert finding.evidence["rehearsal"] is None
    assert finding.evidence["run"]["scores"] is None


def test_what_is_missing_is_said() -> None:
    audit = ClientCanary()
    nothing = AuditContext(claim=NO_CLAIM, seed=0)
    assert "no run" in audit.cost(nothing)
    with pytest.raises(MissingArtefact, match="RunRecord"):
        audit.measure(nothing)
    record, canaries = released_run(planned(), canaries=2, dimension=50)
    twin = replace(record, plan=make_plan(mode="none", rounds=100, population=1000))
    with pytest.raises(AuditError, match="nothing to look at"):
        audit.measure(AuditContext(claim=NO_CLAIM, seed=0, artefacts=(twin,)))
    with pytest.raises(AuditError, match="nobody adds noise"):
        rehearse(twin.plan, seed=0, dimension=100)
    both = AuditContext(claim=NO_CLAIM, seed=0, artefacts=(record, canaries))
    assert "4 directions of 50 numbers" in audit.cost(both)


def broken_evidence() -> dict[str, Any]:
    """Evidence with something missing or of another kind, by what is wrong with it."""
    evidence = through_json({k: v for k, v in honest().evidence.items() if k != "derived"})

    def without(data: dict[str, Any], key: str) -> dict[str, Any]:
        return {name: value for name, value in data.items() if name != key}

    def part(name: str, **changes: object) -> dict[str, Any]:
        return {**evidence, name: {**evidence[name], **changes}}

    top = ("canaries", "dimension", "run")
    of_run = ("coordinates", "cosines", "sampling_variance", "spread", "own_square_length")
    of_rehearsal = ("canaries", "planned", "halved", "predicted", "dimension")
    return {
        **{key: without(evidence, key) for key in top},
        **{f"run.{key}": {**evidence, "run": without(evidence["run"], key)} for key in of_run},
        **{
            f"rehearsal.{key}": {**evidence, "rehearsal": without(evidence["rehearsal"], key)}
            for key in of_rehearsal
        },
        "no canary and no rehearsal": {**evidence, "canaries": 0, "rehearsal": None},
        "canaries of another number": {**evidence, "canaries": 99},
        "canaries that are true": {**evidence, "canaries": True},
        "a run that is a list": {**evidence, "run": []},
        "empty maxima": part("run", largest_seen=[]),
        "scores of text": part("run", scores=["a"] * 100),
        "a mean that is null": part("rehearsal", planned={"mean": None, "spread": 1.0}),
    }


def test_malformed_evidence_is_an_audit_error() -> None:
    agreed = terms(client_claim(LEDGER, None))
    for evidence in broken_evidence().values():
        with pytest.raises(AuditError):
            ClientCanary().conclude(evidence, agreed)


def test_old_derived_values_are_ignored() -> None:
    evidence = {**honest().evidence, "derived": {"run": {"mu": 99}}}
    again = ClientCanary().conclude(evidence, terms(client_claim(LEDGER, 10.5)))
    assert json.dumps(again.to_dict()) == json.dumps(honest().to_dict())


def mechanism(kind: str) -> PrivacyPlan:
    common: dict[str, Any] = {
        "unit": "client",
        "neighboring_relation": "add-or-remove-one",
        "delta": 1e-5,
        "clipping_norm": CLIP,
        "population": 400,
        "rounds": 10,
        "noise_multiplier": 1.0,
    }
    if kind == "correlated":
        return make_plan(
            mode="client-central", mechanism="correlated", bands=3, min_separation=4, **common
        )
    if kind == "skellam":
        return make_plan(
            mode="client-distributed",
            sampling_probability=0.1,
            honest_fraction=0.9,
            survivor_fraction=0.7,
            min_cohort=5,
            **common,
        )
    quantile = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=2, initial=CLIP)
    return make_plan(mode="client-central", sampling_probability=0.1, quantile=quantile, **common)


@pytest.mark.parametrize("kind", ["quantile", "correlated", "skellam"])
def test_every_mechanism_is_rehearsed(kind: str) -> None:
    """A false alarm has probability 1e-3 for a fresh seed; this seed is fixed."""
    evidence = {"rehearsal": rehearse(mechanism(kind), seed=3, dimension=1000)}
    found = conclude_rehearsal(through_json(evidence), conformance=1e-3)
    assert found.broken == []
    assert found.control.detected is True
    assert found.derived["planned"]["predicted_score"] > 0.5


def test_a_rehearsal_repeats_itself() -> None:
    plan = mechanism("quantile")
    first = rehearse(plan, seed=1, dimension=100)
    assert first == rehearse(plan, seed=1, dimension=100)
    assert first != rehearse(plan, seed=2, dimension=100)


def test_noise_that_is_the_same_every_round_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds then lean together, and canaries hide; the spread says so."""
    fixed = NoiseSource.seeded(0, "one").normal(4096)
    monkeypatch.setattr(NoiseSource, "normal", lambda self, n: fixed[:n].copy())
    spread = rehearse(planned(), seed=0, dimension=100)["planned"]["spread"]
    assert spread > 20


def test_the_run_of_a_mode_without_noise_predicts_nothing() -> None:
    record, _ = released_run(planned(), canaries=2, dimension=50)
    assert isinstance(record, RunRecord)
    assert update_noise(make_plan(mode="none", rounds=1, population=5)) is None
    assert ClientCanaries(count=2, seed=0).count == 2
