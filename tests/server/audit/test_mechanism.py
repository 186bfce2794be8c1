"""The mechanism audit: what it catches, what it leaves open, and that evidence says it all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import special

from server.audit.conformance import TESTS
from server.audit.declared import declared_noise, most_answers
from server.audit.evidence import DERIVED
from server.audit.mechanism import Mechanism
from server.audit.protocol import AuditContext, Finding, Floats
from server.audit.runrecord import Releases, RunRecord
from server.audit.scrubbing import FailedAnswer, FailureProbe, holds, random_marker
from server.audit.steps import PrivateSteps
from shared.errors import AuditError, MissingArtefact
from shared.privacy.correlated import CorrelatedGaussian
from shared.privacy.plan import PrivacyPlan
from shared.privacy.quantile import QuantileGaussian
from tests.server.audit import mechanisms

WIDTH = 2048
AUDIT = Mechanism()


class Probe(FailureProbe):
    """A client that lets out what a function of the marker says."""

    def __init__(self, sent: Callable[[str], str] = lambda marker: "unexpected") -> None:
        self.sent = sent
        self.markers: list[str] = []

    @property
    def places(self) -> tuple[str, ...]:
        return ("reading",)

    def answer(self, place: str, marker: str) -> FailedAnswer:
        assert place == "reading"
        self.markers.append(marker)
        return FailedAnswer(sent=self.sent(marker).encode(), logged=("failed",), failed=True)


class Steps(PrivateSteps):
    """Steps of a known size whose clip is known."""

    def __init__(self, *, size: float = 1.0, moved: float = 1.0, repeats: bool = False) -> None:
        self.size, self.moved, self.repeats = size, moved, repeats

    def noise(self, steps: int) -> Floats:
        seeds = [0] * steps if self.repeats else range(steps)
        return np.stack([self.size * np.random.default_rng(s).standard_normal(4096) for s in seeds])

    def contribution(self) -> float:
        return self.moved

    def repeatable(self) -> bool:
        return True


def honest(plan: PrivacyPlan = mechanisms.GAUSSIAN, seed: int = 1) -> RunRecord:
    updates = mechanisms.small_updates(seed, WIDTH)
    return mechanisms.run_mechanism(plan, seed, width=WIDTH, updates=updates)


def with_values(run: RunRecord, change: Callable[[Floats], Floats]) -> RunRecord:
    """Return a run whose releases were others, and its adapter with them."""
    assert run.releases is not None
    return mechanisms.record(
        run.plan,
        change(run.releases.values.copy()),
        cohorts=[r.cohort for r in run.rounds],
        clips=[r.clipping_norm for r in run.rounds],
    )


def measure(run: RunRecord, *artefacts: object) -> dict[str, Any]:
    claim = mechanisms.terms(run.plan).claim
    return AUDIT.measure(AuditContext(claim=claim, seed=3, artefacts=(run, *artefacts)))


def conclude(evidence: dict[str, Any], plan: PrivacyPlan = mechanisms.GAUSSIAN) -> Finding:
    """Conclude from evidence that went through JSON, twice, and expect the same."""
    terms = mechanisms.terms(plan)
    stored = json.loads(json.dumps(evidence, allow_nan=False))
    finding = AUDIT.conclude(stored, terms)
    again = json.loads(json.dumps(finding.to_dict(), allow_nan=False))
    assert AUDIT.conclude(again["evidence"], terms) == finding
    assert AUDIT.conclude(evidence, terms) == finding
    return finding


def audit(run: RunRecord, *artefacts: object) -> Finding:
    return conclude(measure(run, *(artefacts or (Probe(),))), run.plan)


def failed(finding: Finding) -> set[str]:
    """Return the checks that failed."""
    checks = finding.evidence[DERIVED]["checks"]
    return {check["check"] for check in checks if check["failed"]}


@pytest.mark.parametrize("form", sorted(mechanisms.FORMS))
def test_an_honest_run_is_consistent(form: str) -> None:
    finding = audit(honest(mechanisms.FORMS[form]))
    assert finding.verdict == "consistent", finding.explanation
    assert finding.detected is False
    assert finding.positive_control is True
    assert finding.strength == "conformance"
    assert finding.value is not None
    assert 1e-3 <= finding.value <= 1.0
    assert finding.n_in > 0
    assert all(finding.evidence[DERIVED]["controls"].values())
    assert "seeded generator" in finding.explanation


def test_evidence_holds_no_marker_and_no_release() -> None:
    probe = Probe()
    run = honest()
    written = json.dumps(audit(run, probe).to_dict())
    assert len(probe.markers) == 1
    assert not holds(written.encode(), probe.markers[0])
    assert run.releases is not None
    assert not any(repr(float(v)) in written for v in run.releases.values[0, :50])


def test_the_cohorts_of_rounds_are_not_in_the_evidence() -> None:
    """Only two sums of them are; nothing pays for a list."""
    run = honest()
    other = replace(run, rounds=(*run.rounds[:2][::-1], *run.rounds[2:]))
    swapped = tuple(
        replace(record, server_round=number + 1) for number, record in enumerate(other.rounds)
    )
    assert {r.cohort for r in run.rounds[:2]} == {r.cohort for r in swapped[:2]}
    one, two = measure(run), measure(replace(run, rounds=swapped))
    assert one["sampling"] == two["sampling"]
    assert one["releases"] == two["releases"]


SABOTAGE: dict[str, tuple[Callable[[RunRecord], RunRecord], set[str]]] = {
    "noise halved": (lambda run: with_values(run, lambda v: 0.5 * v), {"noise-floor"}),
    "noise forgotten": (lambda run: with_values(run, lambda v: 0.01 * v), {"noise-floor"}),
    "no noise at all": (lambda run: with_values(run, np.zeros_like), {"noise-floor"}),
    "same noise every round": (
        lambda run: with_values(run, lambda v: np.repeat(v[:1], len(v), axis=0)),
        {"noise-floor"},
    ),
    "noise repeated after five rounds": (
        lambda run: with_values(run, lambda v: v[[0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 10, 11]]),
        {"noise-floor"},
    ),
    "noise on a part only": (
        lambda run: with_values(run, lambda v: np.hstack([v[:, :-300], 0.1 * v[:, -300:]])),
        {"noise-floor"},
    ),
    "too much length": (lambda run: with_values(run, lambda v: 3.0 * v), {"clip-ceiling"}),
    "fixed batches": (
        lambda run: replace(run, rounds=tuple(replace(r, cohort=10) for r in run.rounds)),
        {"sampling"},
    ),
    "everybody": (
        lambda run: replace(run, rounds=tuple(replace(r, cohort=40) for r in run.rounds)),
        {"sampling"},
    ),
    "another adapter": (
        lambda run: replace(run, released=run.released + np.float32(1e-3)),
        {"replay"},
    ),
    "an adapter that is not finite": (
        lambda run: replace(run, released=np.full_like(run.released, np.nan)),
        {"replay"},
    ),
    "another clip": (
        lambda run: replace(run, rounds=tuple(replace(r, clipping_norm=2.0) for r in run.rounds)),
        {"clip-path"},
    ),
}


@pytest.mark.parametrize("name", sorted(SABOTAGE))
def test_broken_mechanisms_are_violations(name: str) -> None:
    change, expected = SABOTAGE[name]
    finding = audit(change(honest()))
    assert finding.verdict == "violation"
    assert finding.detected is True
    assert failed(finding) == expected
    assert finding.value is not None
    assert finding.value < 1e-3


@pytest.mark.parametrize("form", ["correlated", "distributed", "quantile"])
def test_halved_noise_is_a_violation_in_every_form(form: str) -> None:
    finding = audit(with_values(honest(mechanisms.FORMS[form]), lambda v: 0.5 * v))
    assert finding.verdict == "violation"
    assert failed(finding) == {"noise-floor"}


def test_an_adapter_without_noise_under_the_label_of_a_private_plan() -> None:
    """Releases of plain means, with an epsilon written on them."""
    rng = np.random.default_rng(4)
    means = rng.standard_normal((12, WIDTH)) * 0.5 * mechanisms.CLIP / math.sqrt(WIDTH)
    finding = audit(mechanisms.record(mechanisms.GAUSSIAN, means))
    assert finding.verdict == "violation"
    assert "noise-floor" in failed(finding)


def test_a_moving_clip_must_move_as_its_bits_can() -> None:
    run = honest(mechanisms.QUANTILE)
    clips = [record.clipping_norm or 0.0 for record in run.rounds]
    assert len(set(clips)) == len(clips)
    jumped = tuple(
        replace(r, clipping_norm=(r.clipping_norm or 0.0) * (3.0 if r.server_round > 6 else 1.0))
        for r in run.rounds
    )
    assert "clip-path" in failed(audit(replace(run, rounds=jumped)))
    other = (replace(run.rounds[0], clipping_norm=0.6), *run.rounds[1:])
    assert "clip-path" in failed(audit(replace(run, rounds=other)))
    silent = (replace(run.rounds[0], clipping_norm=None), *run.rounds[1:])
    with pytest.raises(AuditError, match="do not say the clip"):
        measure(replace(run, rounds=silent))


def test_what_was_not_looked_at_leaves_the_verdict_open() -> None:
    run = honest()
    assert run.releases is not None
    no_releases = audit(replace(run, releases=None, replayed=None))
    no_probe = conclude(measure(run))
    not_replayed = audit(replace(run, replayed=None))
    lost = Releases(rounds=run.releases.rounds[:-1], values=run.releases.values[:-1])
    incomplete = audit(replace(run, releases=lost))
    for finding, words in (
        (no_releases, "did not keep its releases"),
        (no_probe, "no client here"),
        (not_replayed, "were not replayed"),
        (incomplete, "1 of 12 releases"),
    ):
        assert finding.verdict == "inconclusive"
        assert words in finding.explanation


def test_few_rounds_cannot_show_fixed_batches() -> None:
    run = honest(replace(mechanisms.GAUSSIAN, rounds=2))
    finding = audit(run)
    assert finding.verdict == "inconclusive"
    assert finding.positive_control is False
    assert "too few to tell cohorts" in finding.explanation
    alone = audit(honest(replace(mechanisms.GAUSSIAN, rounds=1)))
    assert "repeated" not in alone.explanation.replace("not repeated", "")


def test_one_release_of_many_cannot_show_repetition() -> None:
    run = honest()
    assert run.releases is not None
    first = Releases(rounds=(1,), values=run.releases.values[:1])
    finding = audit(replace(run, releases=first))
    assert "One release cannot show" in finding.explanation


def test_updates_that_drown_the_noise_leave_the_verdict_open() -> None:
    """Halved noise under them would not be seen, and the finding says so."""
    weak = replace(mechanisms.GAUSSIAN, noise_multiplier=0.02)
    finding = audit(honest(weak))
    assert finding.verdict == "inconclusive"
    assert "half of the noise could be missing" in finding.explanation
    halved = mechanisms.run_mechanism(
        replace(weak, noise_multiplier=0.01),
        1,
        width=WIDTH,
        updates=mechanisms.small_updates(1, WIDTH),
    )
    assert "noise-floor" not in failed(audit(replace(halved, plan=weak)))


def test_the_power_statement_is_kept() -> None:
    """Noise below the share that the finding names, under the same updates, is flagged."""
    run = honest()
    evidence = measure(run, Probe())
    (floor,) = [
        check
        for check in conclude(evidence).evidence[DERIVED]["checks"]
        if check["check"] == "noise-floor"
    ]
    share = float(floor["facts"][0].split("less than ")[1].split(" %")[0]) / 100
    assert 0.5 < share < 1
    z = mechanisms.GAUSSIAN.noise_multiplier or 0.0
    less = replace(mechanisms.GAUSSIAN, noise_multiplier=0.97 * share * z)
    updates = mechanisms.small_updates(1, WIDTH)
    short = mechanisms.run_mechanism(less, 1, width=WIDTH, updates=updates)
    assert "noise-floor" in failed(audit(replace(short, plan=mechanisms.GAUSSIAN)))


def test_a_run_that_claims_nothing_is_left_open() -> None:
    rng = np.random.default_rng(5)
    finding = audit(mechanisms.record(mechanisms.NONE, rng.standard_normal((3, 64))))
    assert finding.verdict == "inconclusive"
    assert "claims no protection" in finding.explanation
    assert failed(finding) == set()


@pytest.mark.parametrize(
    ("steps", "verdict"),
    [
        (Steps(), "consistent"),
        (Steps(size=0.5), "violation"),
        (Steps(repeats=True), "violation"),
        (Steps(moved=1.2), "violation"),
        (Steps(moved=0.1), "inconclusive"),
        (None, "inconclusive"),
    ],
)
def test_steps_of_clients_are_rehearsed_where_they_are_noised(
    steps: Steps | None, verdict: str
) -> None:
    rng = np.random.default_rng(6)
    run = mechanisms.record(mechanisms.EXAMPLE, rng.standard_normal((3, 64)))
    artefacts = [Probe()] if steps is None else [Probe(), steps]
    finding = audit(run, *artefacts)
    assert finding.verdict == verdict
    assert "no known floor" in finding.explanation


@pytest.mark.parametrize(
    ("sent", "leaks"),
    [
        (lambda marker: "unexpected", False),
        (lambda marker: f"ValueError: {marker}", True),
        (lambda marker: f"ValueError: {marker[20:28]}", True),
        (lambda marker: f"ValueError: {marker[20:27]}", False),
        (lambda marker: marker.swapcase(), True),
        (lambda marker: marker.encode().hex(), True),
    ],
)
def test_a_quoted_record_is_a_violation(sent: Callable[[str], str], leaks: bool) -> None:
    finding = audit(honest(), Probe(sent))
    assert (finding.verdict == "violation") == leaks
    assert (failed(finding) == {"error-scrubbing"}) == leaks


def test_a_logged_record_counts_and_a_client_that_does_not_fail_leaves_it_open() -> None:
    class Logging(Probe):
        def answer(self, place: str, marker: str) -> FailedAnswer:
            return FailedAnswer(sent=b"", logged=("a", f"text={marker}"), failed=True)

    class Unmoved(Probe):
        def answer(self, place: str, marker: str) -> FailedAnswer:
            return FailedAnswer(sent=b"", logged=(), failed=False)

    run = honest()
    assert audit(run, Logging()).verdict == "violation"
    assert audit(run, Unmoved()).verdict == "inconclusive"


def test_markers_are_found_in_what_bytes_travel_in() -> None:
    import base64

    marker = random_marker()
    for before in range(3):
        hidden = base64.b64encode(b"x" * before + b"row " + marker.encode() + b" end")
        assert holds(hidden, marker)
    assert holds(marker.encode("utf-16-le"), marker)
    assert not holds(random_marker().encode() * 50, marker)


def test_the_run_record_is_needed() -> None:
    context = AuditContext(claim=mechanisms.terms(mechanisms.GAUSSIAN).claim, seed=1)
    with pytest.raises(MissingArtefact, match="RunRecord"):
        AUDIT.measure(context)
    assert "seconds" in AUDIT.cost(context)
    assert "12 releases" in AUDIT.cost(context.plus(honest()))


def test_releases_of_rounds_that_never_were_are_refused() -> None:
    run = honest()
    with pytest.raises(AuditError, match="not in the metrics"):
        measure(replace(run, rounds=run.rounds[:-1]))
    with pytest.raises(AuditError, match="a cohort has 41"):
        measure(replace(run, rounds=(replace(run.rounds[0], cohort=41), *run.rounds[1:])))
    assert run.replayed is not None
    with pytest.raises(AuditError, match="replayed"):
        measure(replace(run, replayed=run.replayed[:-1]))


def edited(evidence: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Return evidence in which one value is another, or is gone."""
    copy: dict[str, Any] = json.loads(json.dumps(evidence))
    *parents, last = path.split(".")
    inner = copy
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mode", None),
        ("finished", "three"),
        ("noise_source", None),
        ("releases", []),
        ("releases.rounds", 0),
        ("releases.projected", [1.0]),
        ("releases.ranks", [-1] * 12),
        ("releases.ranks", [2000] * 12),
        ("releases.blocks", []),
        ("releases.kurtosis", -1.0),
        ("releases.whole", ["a"] * 12),
        ("releases.ceiling", 1),
        ("clips.moving", None),
        ("sampling.population", 10**12),
        ("sampling.probability", 0),
        ("sampling.total", -1),
        ("rehearsal.noise", None),
        ("rehearsal.noise.energies", [1.0]),
        ("rehearsal.halved", None),
        ("rehearsal.clip.long", "far"),
        ("rehearsal.repeats", 1),
        ("replay.apart", -1.0),
        ("scrubbing.places", "none"),
    ],
)
def test_malformed_evidence_is_an_audit_error(path: str, value: object) -> None:
    evidence = measure(honest(), Probe())
    with pytest.raises(AuditError):
        AUDIT.conclude(edited(evidence, path, value), mechanisms.terms(mechanisms.GAUSSIAN))


def test_no_audit_makes_more_tests_than_are_corrected_for() -> None:
    """Every check at once: a quantile plan whose clients' steps are noised as well."""
    both = replace(mechanisms.QUANTILE, example=mechanisms.EXAMPLE)
    finding = audit(honest(both), Probe(), Steps())
    by_chance = {
        *("all rounds", "worst round", "worst block", "longest round", "mean", "spread"),
        *("size", "size of a round", "law", "rounds", "coordinates", "noise on the count"),
    }
    names = [n for check in finding.evidence[DERIVED]["checks"] for n in check["p_values"]]
    assert finding.verdict == "consistent"
    assert len([name for name in names if name in by_chance]) == 20
    assert TESTS >= 20


@pytest.mark.parametrize("form", sorted(mechanisms.FORMS))
def test_the_declared_noise_is_that_of_the_mechanisms(form: str) -> None:
    """Two ways to the same number: the plan's formulas written again, and the mechanism's own."""
    plan = mechanisms.FORMS[form]
    declared = declared_noise(plan)
    assert declared is not None
    z, clip = plan.noise_multiplier or 0.0, plan.clipping_norm or 0.0
    if plan.correlated is not None:
        mechanism = CorrelatedGaussian(
            noise_multiplier=z, clipping_norm=clip, terms=plan.correlated
        )
        assert declared.over_clip * clip == pytest.approx(mechanism.row_stddev, rel=1e-12)
        column = mechanisms.square_root(12, 4)[:4, 0]
        assert declared.coefficients == pytest.approx(column)
        rows = np.random.default_rng(7).standard_normal((12, 5))
        mixed = np.linalg.solve(mechanisms.square_root(12, 4), rows).astype(np.float64)
        undone = declared.whitened(mixed)
        np.testing.assert_allclose(undone, rows, atol=1e-12)
    elif plan.quantile is not None:
        moving = QuantileGaussian(noise_multiplier=z, clipping=plan.quantile, clipping_norm=clip)
        assert declared.over_clip * clip == pytest.approx(moving.noise_stddev, rel=1e-12)
    else:
        assert declared.over_clip == z
    assert declared.divisor == plan.expected_cohort


def test_the_public_bound_on_answers_is_a_binomial_quantile() -> None:
    for population, q in ((40, 0.25), (1000, 0.01), (7, 0.9)):
        plan = replace(mechanisms.GAUSSIAN, population=population, sampling_probability=q)
        most = most_answers(plan, population)
        assert special.bdtrc(most, population, q) <= 1e-9 or most == population
        assert special.bdtrc(most - 1, population, q) > 1e-9
    assert most_answers(mechanisms.CORRELATED, 41) == 11
    everyone = replace(mechanisms.GAUSSIAN, sampling_probability=1.0)
    assert most_answers(everyone, 40) == 40
