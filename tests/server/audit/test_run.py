"""The suite: what every audit must say, verdicts, controls, and reports that verify."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from server.audit.catalog import AUDITS, PROFILES
from server.audit.protocol import ALPHA, AuditContext, Claim, Control, Terms
from server.audit.report import SCHEMA, AuditReport, overall
from server.audit.run import run_audits
from server.audit.target import KnownBase, Passage, Reading, Target
from server.audit.verdict import Bound, bound_for, bound_for_client, judge, stated_delta
from server.audit.verify import sign_report, verify_report
from shared.crypto import SigningKey
from shared.errors import InvalidValue, ReportInvalid
from tests.server.audit import oracles

ON_CANARIES = ("one-run", "exposure")
EVERY = sorted(AUDITS)
CLAIM = oracles.client_claim(2.0, 3.0)


def audited(
    context: AuditContext,
    *,
    names: Sequence[str] = ON_CANARIES,
    controls: Mapping[str, Control] | None = None,
) -> AuditReport:
    return run_audits(context, names, profile="smoke", controls=controls)


def written(report: AuditReport) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_audit_says_who_attacks_what_it_needs_and_what_it_costs(name: str) -> None:
    audit = AUDITS.get(name)
    assert audit.name == name
    assert audit.metric
    assert audit.threat_model[-1] == "."
    assert audit.needs
    empty = AuditContext(claim=CLAIM, seed=1)
    assert audit.cost(empty)
    assert audit.cost(oracles.context(gain=0.0))


def test_audits_that_are_run_last_are_reported_where_they_were_named() -> None:
    empty, begun = AuditContext(claim=CLAIM, seed=1), []
    report = run_audits(
        empty,
        ["one-run", "ledger", "exposure"],
        profile="smoke",
        last=ON_CANARIES,
        announce=lambda name, _: begun.append(name),
    )
    assert begun == ["ledger", "one-run", "exposure"]
    assert [finding.audit for finding in report.findings] == ["one-run", "ledger", "exposure"]


@pytest.mark.parametrize("name", EVERY)
def test_an_audit_without_its_artefacts_is_inconclusive_and_verifies(name: str) -> None:
    report = audited(AuditContext(claim=CLAIM, seed=1), names=[name])
    finding = report.findings[0]
    assert finding.verdict == "inconclusive"
    assert finding.value is None
    assert "needs" in finding.explanation
    assert verify_report(written(report)).holds


def test_profiles_name_audits_and_grow() -> None:
    smoke, release, extended = (set(PROFILES.get(p)) for p in ("smoke", "release", "extended"))
    assert PROFILES.get("none") == ()
    assert smoke <= release <= extended == set(AUDITS)


def test_a_null_result_needs_a_positive_control() -> None:
    quiet = oracles.context(oracles.canaries(200, 200), gain=0.0, claim=CLAIM, seed=2)
    assert {f.verdict for f in audited(quiet).findings} == {"inconclusive"}
    caught = dict.fromkeys(ON_CANARIES, oracles.caught())
    report = audited(quiet, controls=caught)
    assert report.verdict == "consistent"
    assert [finding.positive_control for finding in report.findings] == [True, True]
    missed = {**caught, "one-run": oracles.caught(detected=False)}
    assert [f.verdict for f in audited(quiet, controls=missed).findings] == [
        "inconclusive",
        "consistent",
    ]
    other = dict.fromkeys(ON_CANARIES, oracles.caught(comparable=False))
    assert {f.verdict for f in audited(quiet, controls=other).findings} == {"inconclusive"}


def test_a_violation_outweighs_everything() -> None:
    claim = oracles.client_claim(0.7, 1.1)
    report = audited(oracles.context(oracles.canaries(500, 500), gain=6.0, claim=claim))
    assert report.verdict == "violation"
    assert overall(["consistent", "violation", "inconclusive"]) == "violation"
    assert overall(["consistent", "inconclusive"]) == "inconclusive"
    assert overall(["consistent", "consistent"]) == "consistent"
    assert overall([]) == "inconclusive"


def test_each_text_is_read_once_and_costs_are_announced_first() -> None:
    context = oracles.context(gain=1.0)
    told: list[str] = []
    report = run_audits(
        context,
        ON_CANARIES,
        profile="smoke",
        announce=lambda name, cost: told.append(f"{name}: {cost}"),
        done=lambda finding: told.append(finding.verdict),
    )
    target = context.need(oracles.FakeTarget)
    assert len(target.reads) == len(set(target.reads))
    assert [line.split(":")[0] for line in told[::2]] == list(ON_CANARIES)
    assert told[1::2] == [finding.verdict for finding in report.findings]


def test_a_control_reads_its_own_adapter_and_no_text_twice_with_the_base() -> None:
    """Two suites on one base, as for a run and its planted leak."""
    plain = oracles.context(gain=1.0)
    target = plain.need(oracles.FakeTarget)
    alone = [audited(plain).to_dict() for _ in range(2)]
    separately = list(target.reads)
    target.reads.clear()
    shared = plain.plus(KnownBase(target))
    assert [audited(shared).to_dict() for _ in range(2)] == alone
    reads = {side: [p for adapter, p in target.reads if adapter == side] for side in (True, False)}
    assert reads[True] == [p for adapter, p in separately if adapter]
    assert reads[False]
    assert len(reads[False]) == len(set(reads[False])) == len(separately) // 4


class Wrong(Target):
    """A model whose losses are all the same wrong thing."""

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        return [oracles.reading(math.nan) for _ in passages]

    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        return ["" for _ in prompts]


def test_a_diverged_model_is_inconclusive_and_no_crash() -> None:
    broken = oracles.context(gain=0.0).plus(Wrong())
    report = audited(broken)
    assert {finding.evidence["error"] for finding in report.findings} == {"audit"}
    assert report.verdict == "inconclusive"


def test_an_unknown_audit_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InvalidValue) as refused:
        audited(oracles.context(gain=0.0), names=["one-runs"])
    assert "one-run" in refused.value.hint


def test_a_report_has_its_keys_and_names_no_canary() -> None:
    context = oracles.context(gain=1.0, claim=CLAIM)
    report = written(audited(context))
    assert report["schema"] == SCHEMA
    assert {"verdict", "epsilon_claimed", "epsilon_applicable", "delta", "unit", "findings"} <= set(
        report
    )
    text = json.dumps(report)
    assert "secret in-" not in text
    assert "secret out-" not in text
    assert set(report["findings"][0]) == {
        "audit", "verdict", "strength", "metric", "value", "interval", "ceiling", "baseline",
        "detected", "n_in", "n_out", "alpha", "positive_control", "explanation", "evidence",
    }  # fmt: skip


def test_a_report_verifies_from_its_own_evidence_alone() -> None:
    controls = dict.fromkeys(ON_CANARIES, oracles.caught())
    report = written(audited(oracles.context(gain=2.0, claim=CLAIM), controls=controls))
    found = verify_report(report)
    assert found.holds
    assert found.concluded == ON_CANARIES
    assert found.signed_by is None
    assert found.verdict == report["verdict"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("findings", 0, "value"), 0.123),
        (("findings", 0, "verdict"), "violation"),
        (("findings", 1, "interval"), [0.0, 9.0]),
        (("findings", 1, "explanation"), "Nothing was found."),
        (("findings", 0, "evidence", "kinds", 0, "repeats"), 16),
        (("findings", 0, "extra"), 1),
        (("verdict",), "violation"),
        (("seed",), 99),
        (("epsilon_applicable",), 0.5),
        (("findings", 0, "alpha"), 0.5),
    ],
)
def test_a_tampered_report_does_not_verify(path: tuple[str | int, ...], value: object) -> None:
    report: Any = written(audited(oracles.context(gain=2.0, claim=CLAIM)))
    place = report
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not verify_report(report).holds


def test_a_signature_binds_the_report_and_the_key() -> None:
    report = written(audited(oracles.context(gain=2.0, claim=CLAIM)))
    key, other = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
    signature = sign_report(report, key)
    assert verify_report(report, signature=signature).signed_by == key.public_key
    assert verify_report(report, signature=signature, trusted=key.public_key).holds
    assert not verify_report(report, signature=signature, trusted=other.public_key).holds
    assert not verify_report(report, trusted=key.public_key).holds
    forged = replace(signature, public_key=other.public_key)
    assert not verify_report(report, signature=forged).holds
    assert not verify_report(report, signature=replace(signature, domain="other")).holds
    changed = {**report, "subject": {"weights_sha256": "0" * 64}}
    assert verify_report(changed, signature=signature).signed_by is None


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"findings": []},
        {"seed": 1, "controls": {}, "findings": [3]},
        {"seed": math.nan},
    ],
)
def test_what_is_no_report_is_refused(report: dict[str, Any]) -> None:
    with pytest.raises(ReportInvalid):
        verify_report(report)


def test_copies_of_an_example_are_held_against_group_privacy() -> None:
    bound = bound_for(oracles.example_claim(0.5), repeats=4)
    assert bound.epsilon == pytest.approx(2.0)
    assert bound.delta == pytest.approx(1e-5 * math.expm1(2.0) / math.expm1(0.5))
    flat = bound_for(oracles.example_claim(0.0), repeats=4)
    assert flat.epsilon == 0.0
    assert flat.delta == pytest.approx(4e-5)
    empty = bound_for(oracles.example_claim(8.0), repeats=4)
    assert (empty.epsilon, empty.delta) == (None, None)
    assert "promises nothing" in empty.note
    assert bound_for(oracles.example_claim(8.0), repeats=1).epsilon == 8.0


def test_what_covers_a_record_and_what_covers_a_client() -> None:
    assert bound_for(CLAIM, repeats=16).epsilon == 3.0
    assert bound_for_client(CLAIM).epsilon == 2.0
    assert bound_for_client(oracles.example_claim(1.0)).epsilon is None
    assert bound_for_client(oracles.NO_CLAIM).epsilon is None
    assert bound_for(replace(CLAIM, epsilon_applicable=None), repeats=1).epsilon is None
    assert stated_delta(oracles.NO_CLAIM, bound_for(oracles.NO_CLAIM, repeats=1)) == 0.0
    assert stated_delta(CLAIM, bound_for_client(CLAIM)) == 1e-5


def test_a_ceiling_below_half_of_epsilon_is_inconclusive_whatever_the_control() -> None:
    terms = oracles.terms(CLAIM, control=oracles.caught())
    bound = Bound(epsilon=8.0, delta=1e-5, note="")
    low, _ = judge(terms, bound=bound, ceiling_epsilon=3.9, detected=True)
    high, _ = judge(terms, bound=bound, ceiling_epsilon=4.0, detected=False)
    none, _ = judge(terms, bound=bound, ceiling_epsilon=None, detected=False)
    assert (low, high, none) == ("inconclusive", "consistent", "consistent")
    above, _ = judge(terms, bound=bound, ceiling_epsilon=9.0, detected=True, violated=True)
    assert above == "violation"


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
        replace(CLAIM, **bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue):
        Claim.from_dict({})


def test_a_text_sits_on_one_side_only() -> None:
    texts = oracles.canaries()
    with pytest.raises(InvalidValue, match="only one of these"):
        replace(texts, held_out=texts.included)
    with pytest.raises(InvalidValue, match="only one of these"):
        replace(texts, references=texts.held_out)
    with pytest.raises(InvalidValue):
        replace(texts, repeats=0)
    with pytest.raises(InvalidValue, match="each kind once"):
        oracles.planted(texts, texts)


def test_passages_and_artefacts_show_nothing_of_their_text() -> None:
    assert "hidden" not in repr(Passage(text="hidden", prompt="hidden"))
    assert "hidden" not in repr(oracles.canaries(kind="secret"))


def test_terms_and_controls_are_checked() -> None:
    with pytest.raises(InvalidValue):
        Terms(claim=CLAIM, seed=1, alpha=1.0)
    assert Terms(claim=CLAIM, seed=1).alpha == ALPHA
    control = Control(source="x", detected=True, value=1.0, interval=(0.5, 2.0))
    assert Control.from_dict(json.loads(json.dumps(control.to_dict()))) == control
    with pytest.raises(InvalidValue):
        Control.from_dict({"source": "x"})
