"""The suite: one contract for every audit, verdicts, controls, and what a report may not hold."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.audit.protocol import (
    AuditContext,
    CanaryTexts,
    Claim,
    Finding,
    Floats,
    PositiveControl,
    read_losses,
)
from server.audit.run import AUDITS, PROFILES, run_audits
from server.audit.verdict import bound_for
from shared.errors import AuditError, InvalidValue
from tests.server.audit import oracles

EVERY = sorted(AUDITS)


@pytest.mark.parametrize("name", EVERY)
def test_every_audit_says_who_attacks_and_gives_a_finding(name: str) -> None:
    audit = AUDITS.get(name)
    texts = oracles.canaries()
    finding = audit.run(oracles.context(texts, gain=2.0, claim=oracles.client_claim(2.0, 3.0)))
    assert audit.name == finding.audit == name
    assert finding.metric == audit.metric
    assert audit.threat_model
    assert audit.needs
    assert "texts" in audit.cost(texts)
    assert finding.verdict in {"violation", "consistent", "inconclusive"}
    assert (finding.n_in, finding.n_out) == (50, 50)
    assert finding.ceiling is not None
    assert finding.value is not None
    assert finding.value <= finding.ceiling


@pytest.mark.parametrize("name", EVERY)
def test_every_audit_is_repeatable(name: str) -> None:
    runs = [
        AUDITS.get(name).run(oracles.context(oracles.canaries(), gain=1.0, seed=4)).to_dict()
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def _verdicts(context: AuditContext) -> dict[str, str]:
    return {f.audit: f.verdict for f in run_audits(context, "smoke").findings}


def _control(texts: CanaryTexts, **caught: bool) -> PositiveControl:
    detected = {name.replace("_", "-"): value for name, value in caught.items()}
    return PositiveControl(
        source="twin", detected=detected, canaries=texts.count, repeats=texts.repeats
    )


def test_a_null_result_needs_a_positive_control() -> None:
    texts = oracles.canaries(200, 200)
    quiet = oracles.context(texts, gain=0.0, claim=oracles.client_claim(2.0, 3.0), seed=2)
    assert set(_verdicts(quiet).values()) == {"inconclusive"}
    caught = _control(texts, exposure=True, membership=True, one_run=True)
    assert set(_verdicts(replace(quiet, positive_control=caught)).values()) == {"consistent"}
    missed = _control(texts, exposure=True, membership=False)
    assert _verdicts(replace(quiet, positive_control=missed)) == {
        "exposure": "consistent",
        "membership": "inconclusive",
        "one-run": "inconclusive",
    }
    other = replace(caught, canaries=12)
    assert set(_verdicts(replace(quiet, positive_control=other)).values()) == {"inconclusive"}


def test_an_attack_that_works_here_needs_no_control_elsewhere() -> None:
    claim = oracles.client_claim(4.0, 4.4)
    loud = oracles.context(oracles.canaries(500, 500), gain=2.0, claim=claim)
    report = run_audits(loud, "smoke")
    assert [finding.detected for finding in report.findings] == [True, True, True]
    assert report.verdict == "consistent"


def test_a_ceiling_below_half_of_epsilon_is_inconclusive_whatever_the_control() -> None:
    texts = oracles.canaries(50, 50)
    claim = oracles.client_claim(8.0, 13.0)
    control = _control(texts, exposure=True, membership=True, one_run=True)
    quiet = replace(oracles.context(texts, gain=0.0, claim=claim), positive_control=control)
    report = run_audits(quiet, "smoke")
    assert report.verdict == "inconclusive"
    assert all("less than half of 13.00" in f.explanation for f in report.findings)


def test_a_violation_outweighs_everything() -> None:
    claim = oracles.client_claim(0.7, 1.1)
    report = run_audits(oracles.context(oracles.canaries(500, 500), gain=6.0, claim=claim), "smoke")
    assert report.verdict == "violation"
    assert {f.audit for f in report.findings if f.verdict == "violation"} == {"one-run"}


def test_copies_of_an_example_are_held_against_group_privacy() -> None:
    texts = oracles.canaries(repeats=4)
    bound = bound_for(oracles.context(texts, gain=0.0, claim=oracles.example_claim(0.5)))
    assert bound.epsilon == pytest.approx(2.0)
    assert bound.delta == pytest.approx(1e-5 * math.expm1(2.0) / math.expm1(0.5))
    flat = bound_for(oracles.context(texts, gain=0.0, claim=oracles.example_claim(0.0)))
    assert flat.epsilon == 0.0
    assert flat.delta == pytest.approx(4e-5)
    empty = bound_for(oracles.context(texts, gain=0.0, claim=oracles.example_claim(8.0)))
    assert (empty.epsilon, empty.delta) == (None, None)
    assert "promises nothing" in empty.note
    single = bound_for(
        oracles.context(oracles.canaries(), gain=0.0, claim=oracles.example_claim(8.0))
    )
    assert single.epsilon == 8.0


def test_copies_inside_one_client_are_one_unit() -> None:
    texts = oracles.canaries(repeats=16)
    bound = bound_for(oracles.context(texts, gain=0.0, claim=oracles.client_claim(2.0, 3.0)))
    assert (bound.epsilon, bound.delta) == (3.0, 1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(7, 50), (50, 7), (0, 0)])
def test_too_few_canaries_are_an_inconclusive_finding(n_in: int, n_out: int) -> None:
    report = run_audits(oracles.context(oracles.canaries(n_in, n_out), gain=9.0), "smoke")
    assert report.verdict == "inconclusive"
    assert [(f.verdict, f.value) for f in report.findings] == [("inconclusive", None)] * 3
    assert report.findings[0].details["error"] == "too-few-canaries"


class Broken:
    """A model whose losses are all the same wrong thing."""

    def __init__(self, value: float, extra: int = 0) -> None:
        self._value, self._extra = value, extra

    def losses(self, texts: Sequence[str], *, adapter: bool) -> Floats:
        return np.full(len(texts) + self._extra, self._value)


@pytest.mark.parametrize("scorer", [Broken(math.nan), Broken(math.inf), Broken(1.0, extra=1)])
def test_a_diverged_model_is_inconclusive_and_no_crash(scorer: Broken) -> None:
    broken = replace(oracles.context(oracles.canaries(), gain=0.0), scorer=scorer)
    report = run_audits(broken, "smoke")
    assert report.verdict == "inconclusive"
    assert {f.details["error"] for f in report.findings} == {"audit"}


def test_losses_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(AuditError, match="expected"):
        read_losses(Broken(1.0, extra=2), ["a"], adapter=True)


def test_each_text_is_read_once_and_costs_are_announced_first() -> None:
    context = oracles.context(oracles.canaries(), gain=1.0)
    told: list[str] = []
    run_audits(context, "smoke", announce=lambda name, cost: told.append(f"{name}: {cost}"))
    reads: list[tuple[bool, str]] = context.scorer.reads  # type: ignore[attr-defined]
    assert len(reads) == len(set(reads)) == 2 * (50 + 50 + 256)
    assert [line.split(":")[0] for line in told] == list(PROFILES.get("smoke"))


def test_the_profile_none_attacks_nothing() -> None:
    report = run_audits(oracles.context(oracles.canaries(), gain=1.0), "none")
    assert (report.findings, report.verdict) == ((), "inconclusive")
    with pytest.raises(InvalidValue, match="Did you mean 'smoke'"):
        run_audits(oracles.context(oracles.canaries(), gain=1.0), "smok")


def test_the_report_has_its_keys_is_json_and_names_no_canary() -> None:
    claim = oracles.client_claim(2.0, 3.0)
    context = oracles.context(oracles.canaries(), gain=1.0, claim=claim)
    report: dict[str, Any] = run_audits(context, "smoke").to_dict()
    text = json.dumps(report, allow_nan=False)
    assert {
        "schema",
        "verdict",
        "epsilon_claimed",
        "epsilon_applicable",
        "delta",
        "unit",
        "neighboring_relation",
        "commitment",
        "findings",
        "canaries",
    } <= set(report)
    assert (report["schema"], report["epsilon_claimed"], report["delta"]) == (1, 2.0, 1e-5)
    assert not any(name in text for name in (*context.canaries.included, "reference 0"))
    words = {report["verdict"], *(f["verdict"] for f in report["findings"])}
    assert words <= {"violation", "consistent", "inconclusive"}


def test_a_twin_becomes_a_positive_control() -> None:
    texts = oracles.canaries(200, 200)
    twin = json.loads(json.dumps(run_audits(oracles.context(texts, gain=4.0), "smoke").to_dict()))
    control = PositiveControl.from_report(twin, source="non-private twin")
    claim = oracles.client_claim(2.0, 3.0)
    quiet = replace(oracles.context(texts, gain=0.0, claim=claim, seed=2), positive_control=control)
    report = run_audits(quiet, "smoke")
    assert report.verdict == "consistent"
    assert report.to_dict()["positive_control"] == "non-private twin"
    assert [finding.positive_control for finding in report.findings] == [True, True, True]


def test_a_private_run_or_another_file_is_no_positive_control() -> None:
    claimed = run_audits(
        oracles.context(oracles.canaries(), gain=4.0, claim=oracles.client_claim(2.0, 3.0)), "smoke"
    )
    with pytest.raises(AuditError, match="claims an epsilon"):
        PositiveControl.from_report(claimed.to_dict(), source="x")
    with pytest.raises(AuditError, match="expected an audit"):
        PositiveControl.from_report({"loss": 1.0}, source="x")


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": math.nan},
        {"epsilon": -1.0},
        {"epsilon_applicable": math.inf},
        {"delta": 0.0},
        {"delta": None},
    ],
)
def test_a_claim_that_is_no_guarantee_is_refused(bad: dict[str, float | None]) -> None:
    with pytest.raises(InvalidValue):
        replace(oracles.client_claim(1.0, 2.0), **bad)  # type: ignore[arg-type]


def test_a_text_sits_on_one_side_only() -> None:
    texts = oracles.canaries()
    with pytest.raises(InvalidValue, match="only one of these"):
        replace(texts, held_out=texts.included)
    with pytest.raises(InvalidValue, match="only one of these"):
        replace(texts, references=texts.held_out)
    with pytest.raises(InvalidValue):
        replace(texts, repeats=0)


def test_alpha_is_a_probability() -> None:
    with pytest.raises(InvalidValue):
        replace(oracles.context(oracles.canaries(), gain=0.0), alpha=1.0)


def test_findings_and_claims_keep_their_json_keys() -> None:
    claim = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)
    assert set(claim.to_dict()) >= {"mode", "epsilon_claimed", "delta", "unit"}
    finding: Finding = run_audits(oracles.context(oracles.canaries(), gain=1.0), "smoke").findings[
        0
    ]
    assert set(finding.to_dict()) == {
        "audit", "verdict", "metric", "value", "interval", "ceiling", "baseline", "detected",
        "n_in", "n_out", "alpha", "positive_control", "explanation", "details",
    }  # fmt: skip
