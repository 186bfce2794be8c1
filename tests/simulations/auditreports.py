"""Audit reports for the tests of pages: what the audits conclude from made-up models and runs."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np

from server.audit.canaries import PlantedCanaries
from server.audit.protocol import AuditContext, Claim, Control, Finding, Terms
from server.audit.queryprivacy import LabelledQueries
from server.audit.report import AuditReport
from server.audit.run import run_audits
from tests.server.audit import (
    oracles,
    test_extraction,
    test_pii,
    test_queryprivacy,
    test_span,
)
from tests.server.audit.canaryruns import plan_of_run, released_run
from tests.server.audit.mechanisms import GAUSSIAN, pure_noise, record
from tests.server.audit.promptleak.test_audit import TwoFaced, asked_in_code, leaky
from tests.server.audit.texts import Learner, kind, learned, split

Json = dict[str, Any]

ATTACKS = ("one-run", "exposure", "membership")
TWIN = "the non-private twin of this run"
CLAIM = Claim(
    mode="client-central",
    epsilon=7.94,
    delta=5e-4,
    unit="client",
    neighboring_relation="add-or-remove-one",
    epsilon_applicable=11.9,
)


@cache
def attacked(gain: float, *, private: bool, count: int = 60) -> AuditReport:
    """Attacks on a model that learned rare tokens by ``gain`` nats, secrets by half of that."""
    rare = kind("rare-token", count, count, references=64, repeats=4)
    secret = kind("secret", count, count, references=256, repeats=4)
    natural = split(count, count)
    gains = learned(rare.included, gain=gain) | learned(secret.included, gain=gain / 2)
    planted = PlantedCanaries(
        kinds=(rare, secret), commitment="c0" * 32, coins="9f" * 30, salt="5e" * 32, committed=True
    )
    context = AuditContext(
        claim=CLAIM if private else oracles.NO_CLAIM,
        seed=7,
        artefacts=(Learner(gains), planted, natural),
    )
    controls = {}
    if private:
        caught = attacked(6.0, private=False, count=count).findings
        controls = {
            f.audit: Control(source=TWIN, detected=f.detected, value=f.value, interval=f.interval)
            for f in caught
        }
    return run_audits(context, ATTACKS, profile="smoke", controls=controls, subject=_subject())


def small(gain: float, *, private: bool) -> Json:
    """A report of three attacks."""
    return through_json(attacked(gain, private=private))


@cache
def _every() -> str:
    """The JSON of a report in which almost every audit has something to show."""
    report = attacked(0.6, private=True)
    found = {finding.audit: finding for finding in report.findings}
    for finding in _others():
        found[finding.audit] = finding
    everything = AuditReport(
        claim=report.claim,
        findings=tuple(found.values()),
        canaries=report.canaries,
        profile="release",
        seed=7,
        controls=report.controls,
        subject=report.subject,
    )
    return json.dumps(everything.to_dict(), allow_nan=False)


def every() -> Json:
    """A report in which almost every audit has something to show; a new copy each time."""
    found: Json = json.loads(_every())
    return found


def through_json(report: AuditReport) -> Json:
    """A report as its file gives it back."""
    found: Json = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return found


def _others() -> list[Finding]:
    """Findings of the audits that read no canary texts; the ledger is not there."""
    plan = plan_of_run(rounds=30)
    run, canaries = released_run(plan, canaries=20, dimension=400)
    rng = np.random.default_rng(5)
    noise = record(GAUSSIAN, pure_noise(GAUSSIAN, rng, rounds=4, width=64))
    artefacts: dict[str, tuple[object, ...]] = {
        "client-canary": (run, canaries),
        "mechanism": (noise,),
        "span": (test_span.MadeUpProbe(tokens=40),),
        "prompt-leak": (TwoFaced(leaky, asked_in_code),),
        "query-privacy": (_redactor(), _queries()),
        "ledger": (),
    }
    findings = [
        finding
        for name, these in artefacts.items()
        for finding in run_audits(
            AuditContext(claim=CLAIM, seed=7, artefacts=these), [name], profile="x"
        ).findings
    ]
    return [*findings, _extraction()]


def _redactor() -> test_queryprivacy.ByList:
    """A redactor that knows the names of some people."""
    return test_queryprivacy.ByList(*((f"Ada{i}", "PERSON") for i in range(20)))


def _queries() -> LabelledQueries:
    """Queries with names and numbers, of which the redactor knows half of the names."""
    queries = [
        test_queryprivacy.labelled(
            f"I am Ada{i}, id Q{i}7.", (f"Ada{i}", "PERSON"), (f"Q{i}7", "ID")
        )
        for i in range(40)
    ]
    return LabelledQueries(queries=tuple(queries), source="made up")


def _extraction() -> Finding:
    """Canaries and facts, a few of which were learned by heart."""
    audit, facts = test_extraction.EXTRACTION, test_pii.facts(count=6)
    known = AuditContext(claim=CLAIM, seed=1, artefacts=(test_pii.model(facts, learned=2), facts))
    around = test_extraction.context(
        test_extraction.canaries(prompted=True), learned=3, claim=CLAIM, end=False
    )
    evidence = {**audit.measure(around), "facts": audit.measure(known)["facts"]}
    return audit.conclude(oracles.through_json(evidence), Terms(claim=CLAIM, seed=7))


def _subject() -> Json:
    """What a run's report says was audited."""
    return {
        "kind": "run",
        "scenario": "made-up figures",
        "weights_sha256": "ab" * 32,
        "ledger_head": {"seq": 68, "hash": "23" * 32},
        "noise_source": "seeded-simulation",
        "versions": {"fedslm": "0.1.0", "numpy": "2.4.6"},
        "seconds": 143.2,
    }
