"""The ledger audit on ledgers that real runs' own code wrote, honest and spoiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from server.audit import ledgerchecks
from server.audit.ledger import (
    LedgerArtefact,
    LedgerAudit,
    committed_in_time,
    ledger_artefact,
)
from server.audit.ledgerchecks import checks_of
from server.audit.ledgerfacts import Facts
from server.audit.ledgerfigures import figures_of
from server.audit.protocol import Audit, AuditContext, Claim, Finding
from server.audit.runrecord import RoundRecord
from server.budget import POPULATION, RunBudget
from shared.errors import AuditError, InvalidValue, MissingArtefact
from shared.privacy.events import GaussianEvent, NonPrivateEvent
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_notes import CANARY_COINS, FIRST_ROUND
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.ledger_store import entry_hash, read_chain
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from tests.ledgers import Place, sqlite_place
from tests.server.audit import oracles

AUDIT: Audit = LedgerAudit()
RUN, SCOPE = "clinics-0123456789ab", "somebody/zqx-notes.jsonl"
COHORT = (3, 5, 8)
NAMES = [f"client-{client}" for client in range(10)]
SIGNER = LedgerSigner(b"a key for the tests of an audit.")


def make(**change: Any) -> PrivacyPlan:
    base: dict[str, Any] = {
        "mode": "client-central",
        "unit": "client",
        "neighboring_relation": "add-or-remove-one",
        "delta": 1e-3,
        "noise_multiplier": 1.5,
        "clipping_norm": 1.0,
        "sampling_probability": 0.2,
        "rounds": 6,
        "population": 100,
    }
    return make_plan(**{**base, **change})


def local(**change: Any) -> PrivacyPlan:
    settings: dict[str, Any] = {
        "mode": "example",
        "unit": "example",
        "max_grad_norm": 1.0,
        "clipping_norm": None,
        "sampling_probability": 0.1,
        "releases_per_round": 4,
        "dataset_size": 400,
    }
    return make(**{**settings, **change})


def skellam(**change: Any) -> PrivacyPlan:
    settings: dict[str, Any] = {
        "mode": "client-distributed",
        "honest_fraction": 0.9,
        "survivor_fraction": 0.8,
        "min_cohort": 10,
        "max_participations": 3,
    }
    return make(**{**settings, **change})


PLAN = make()
HONEST: dict[str, Callable[[], PrivacyPlan]] = {
    "fixed clip": lambda: PLAN,
    "quantile clip": lambda: make(
        quantile=QuantileClipping(
            target=0.5, learning_rate=0.2, initial=1.0, count_noise_stddev=5.0
        )
    ),
    "correlated": lambda: make(mechanism="correlated", min_separation=3, sampling_probability=None),
    "skellam": skellam,
    "example": local,
    "example with a quota": lambda: local(max_participations=3),
    "both": lambda: make(example=local()),
    "replace-one": lambda: make(neighboring_relation="replace-one"),
    "simulated": lambda: make(noise_source="seeded-simulation"),
}


@dataclass
class Run:
    """A run as the round loop makes it: reserve, perhaps abort, commit."""

    ledger: Ledger
    plan: PrivacyPlan
    run_id: str = RUN

    def __post_init__(self) -> None:
        self.budget = RunBudget(self.ledger, plan=self.plan, run_id=self.run_id, scope=SCOPE)
        self.rounds: list[RoundRecord] = []

    def go(self, rounds: int = 6, *, aborted: Sequence[int] = (), free: Sequence[int] = ()) -> Run:
        """Run rounds; ``aborted`` ones give their charge back, ``free`` ones forget to charge."""
        for number in range(len(self.rounds) + 1, len(self.rounds) + rounds + 1):
            cohort = [number % 4, *COHORT[1:]] if number % 2 else list(COHORT)
            if self.plan.max_participations is not None and self.plan.mode == "example":
                had = self.budget.participations()
                cohort = [c for c in cohort if had.get(c, 0) < self.plan.max_participations]
            if number not in free:
                charge = self.budget.reserve(number, cohort)
                (self.budget.abandon if number in aborted else self.budget.commit)(charge)
            self.rounds.append(
                RoundRecord(
                    server_round=number,
                    cohort=len(cohort),
                    answered=0 if number in aborted else len(cohort),
                    aborted=number in aborted,
                    clipping_norm=1.0,
                )
            )
        return self

    def claim(self, **change: Any) -> Claim:
        plan = self.plan
        said: dict[str, Any] = {
            "mode": plan.mode,
            "epsilon": self.budget.spent().epsilon,
            "delta": plan.delta,
            "unit": str(plan.unit),
            "neighboring_relation": str(plan.neighboring_relation),
        }
        return Claim(**{**said, **change})

    def artefact(self, **change: Any) -> LedgerArtefact:
        given: dict[str, Any] = {
            "run_id": self.run_id,
            "scope": SCOPE,
            "plan": self.plan,
            "population": self.plan.population,
            "rounds": self.rounds,
            "second_epsilon": None
            if self.plan.example is None
            else self.budget.spent_by_clients().epsilon,
        }
        return ledger_artefact(self.ledger, **{**given, **change})


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return sqlite_place(tmp_path)


@pytest.fixture
def ledger(place: Place) -> Any:
    with Ledger(place.where, signer=SIGNER) as opened:
        yield opened


@pytest.fixture
def honest(ledger: Ledger) -> Run:
    return Run(ledger, PLAN).go()


def audited(artefact: LedgerArtefact, claim: Claim, *more: object) -> Finding:
    """Measure, go through JSON, conclude twice; nothing that names anybody may come out."""
    context = AuditContext(claim=claim, seed=7, artefacts=(artefact, *more))
    finding = oracles.run(AUDIT, context)
    assert oracles.leaked(finding, "somebody", *NAMES) == []
    return finding


def state(finding: Finding, check: str) -> str:
    found = {c["name"]: c["state"] for c in finding.evidence["derived"]["checks"]}
    return str(found[check])


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_run_of_each_mode_is_consistent(ledger: Ledger, kind: str) -> None:
    run = Run(ledger, HONEST[kind]()).go()
    began = time.perf_counter()
    finding = audited(run.artefact(), run.claim())
    assert time.perf_counter() - began < 30.0
    assert (finding.verdict, finding.positive_control) == ("consistent", True), finding.explanation
    assert finding.detected is False
    assert finding.strength == "conformance"
    assert finding.baseline is not None
    assert finding.value is not None
    assert 0.0 < finding.value <= finding.baseline * (1 + 1e-6)
    assert finding.value >= 0.9 * finding.baseline
    first = finding.evidence["derived"]["figures"][0]
    assert first["second"] == pytest.approx(finding.value, abs=0.02 + 0.01 * finding.value)
    assert first["renyi"] >= finding.value
    assert f"{finding.value:.4g}" in finding.explanation


def test_the_second_guarantee_is_recomputed_beside_the_first(ledger: Ledger) -> None:
    run = Run(ledger, make(example=local())).go()
    finding = audited(run.artefact(), run.claim())
    client, example = finding.evidence["derived"]["figures"]
    assert (client["unit"], client["releases"]) == ("client", 6)
    assert (example["unit"], example["releases"]) == ("example", 24)
    small = audited(run.artefact(second_epsilon=0.9 * example["epsilon"]), run.claim())
    assert small.verdict == "violation"
    assert "per example" in small.explanation


def test_a_run_that_aborted_rounds_or_was_killed_is_consistent(ledger: Ledger) -> None:
    run = Run(ledger, PLAN)
    run.budget.reserve(1, COHORT)  # Killed after the reservation; the round is run again.
    run = Run(ledger, PLAN).go(4, aborted=[2])
    finding = audited(run.artefact(), run.claim())
    assert finding.verdict == "consistent", finding.explanation
    assert finding.evidence["derived"]["figures"][0]["releases"] == 4
    assert finding.n_in == 4


def test_a_later_run_on_the_same_data_does_not_touch_an_earlier_claim(ledger: Ledger) -> None:
    plan = make(cap=50.0)
    first = Run(ledger, plan).go(3)
    claim = first.claim()
    second = Run(ledger, plan, run_id="later").go(3)
    finding = audited(first.artefact(), claim)
    assert finding.verdict == "consistent", finding.explanation
    assert finding.evidence["derived"]["figures"][0]["releases"] == 3
    later = audited(second.artefact(), second.claim())
    assert later.evidence["derived"]["figures"][0]["releases"] == 6
    alone = audited(second.artefact(), claim)
    assert alone.verdict == "violation"
    assert "too small" in alone.explanation


@pytest.mark.slow
def test_several_plans_on_the_same_data_are_composed(ledger: Ledger) -> None:
    Run(ledger, make(cap=50.0), run_id="earlier").go(3)
    run = Run(ledger, make(cap=50.0, noise_multiplier=2.5)).go(3)
    finding = audited(run.artefact(), run.claim())
    assert finding.verdict == "consistent", finding.explanation
    (figure,) = finding.evidence["derived"]["figures"]
    assert figure["releases"] == 6


@pytest.mark.slow
def test_the_worst_client_need_not_be_the_one_with_most_releases(ledger: Ledger) -> None:
    Run(ledger, local(cap=200.0, noise_multiplier=4.0), run_id="earlier").go(3)
    run = Run(ledger, local(cap=200.0, noise_multiplier=1.2)).go(2)
    for number in range(3, 7):
        run.budget.commit(run.budget.reserve(number, [9]))
        run.rounds.append(replace(run.rounds[0], server_round=number, cohort=1))
    alone, busy = ledger.spent("client-9", SCOPE), ledger.spent("client-5", SCOPE)
    assert (alone.releases, busy.releases) == (16, 20)
    assert busy.epsilon_rdp < alone.epsilon_rdp
    finding = audited(run.artefact(), run.claim(epsilon=alone.epsilon))
    assert finding.verdict == "consistent", finding.explanation
    assert finding.value == pytest.approx(alone.epsilon, rel=1e-3)


def test_a_run_whose_rounds_were_all_charged_twice_is_consistent(ledger: Ledger) -> None:
    """Over-counted, so no single missing charge would show; halved noise still would."""
    run = Run(ledger, make(cap=50.0)).go(2)
    for number in (1, 2):
        run.budget.commit(run.budget.reserve(number, COHORT))
    finding = audited(run.artefact(), run.claim())
    assert (finding.verdict, finding.positive_control) == ("consistent", True)
    assert finding.evidence["derived"]["figures"][0]["releases"] == 4


def test_an_infinite_history_is_above_every_label(honest: Run) -> None:
    context = AuditContext(claim=honest.claim(), seed=7, artefacts=(honest.artefact(),))
    evidence = oracles.through_json(AUDIT.measure(context))
    evidence["events"].append({"schema": 1, "type": "non-private"})
    evidence["histories"][0]["counts"].append({"event": 1, "times": 1})
    finding = AUDIT.conclude(evidence, oracles.terms(honest.claim()))
    assert (finding.verdict, finding.value) == ("violation", None)
    assert state(finding, "size") == "broken"
    assert state(finding, "charged") == "holds"


# Broken budgets.


@pytest.mark.parametrize("kind", ["fixed clip", "correlated", "skellam", "example", "both"])
def test_a_round_that_was_not_charged_is_a_violation(ledger: Ledger, kind: str) -> None:
    free = range(1, 7) if kind == "correlated" else [4]
    run = Run(ledger, HONEST[kind]()).go(free=list(free))
    finding = audited(run.artefact(), run.claim())
    assert (finding.verdict, finding.detected) == ("violation", True)
    assert state(finding, "charged") == "broken"
    if kind != "correlated":
        assert "1 of 6 finished rounds" in finding.explanation


def test_a_client_that_was_not_charged_is_a_violation(ledger: Ledger) -> None:
    run = Run(ledger, local()).go()
    rounds = [replace(done, cohort=done.cohort + 1) for done in run.rounds]
    finding = audited(run.artefact(rounds=rounds), run.claim())
    assert finding.verdict == "violation"
    assert "6 of 6 finished rounds" in finding.explanation
    assert "..." in finding.explanation


def test_an_event_with_more_noise_than_the_plan_is_a_violation(ledger: Ledger, honest: Run) -> None:
    """Somebody who knows the hashes and holds the key: only the plan gives it away."""
    artefact = honest.artefact()
    quiet = GaussianEvent(noise_multiplier=3.0, sampling_probability=0.2)
    charges = [*artefact.charges[:-1], replace(artefact.charges[-1], event=quiet)]
    finding = audited(replace(artefact, charges=tuple(charges)), honest.claim())
    assert finding.verdict == "violation"
    assert state(finding, "events") == "broken"
    assert "noise multiplier 3 at" in finding.explanation
    assert "noise multiplier 1.5 at" in finding.explanation
    assert ledger.verify().entries == 12


@pytest.mark.parametrize(
    "event",
    [
        GaussianEvent(noise_multiplier=1.5, sampling_probability=0.1),
        GaussianEvent(noise_multiplier=1.5, sampling_probability=0.2, count=2),
        NonPrivateEvent(),
    ],
)
def test_an_event_of_other_sampling_or_number_is_a_violation(honest: Run, event: Any) -> None:
    artefact = honest.artefact()
    charges = [*artefact.charges[:-1], replace(artefact.charges[-1], event=event)]
    finding = audited(replace(artefact, charges=tuple(charges)), honest.claim())
    assert finding.verdict == "violation"
    assert state(finding, "events") == "broken"
    if event == NonPrivateEvent():
        assert finding.value is None
        assert "no finite epsilon" in finding.explanation
        assert state(finding, "size") == "broken"


def test_a_run_charged_under_another_plan_than_it_shows_is_a_violation(honest: Run) -> None:
    shown = make(noise_multiplier=1.0)
    finding = audited(honest.artefact(plan=shown), honest.claim())
    assert finding.verdict == "violation"
    assert state(finding, "plan") == "broken"


def test_a_label_below_what_was_spent_is_a_violation(honest: Run) -> None:
    spent = honest.budget.spent().epsilon
    for share, verdict in ((0.98, "violation"), (0.997, "consistent"), (1.5, "consistent")):
        finding = audited(honest.artefact(), honest.claim(epsilon=share * spent))
        assert finding.verdict == verdict
    assert finding.value == pytest.approx(spent, rel=0.01)


def test_an_adapter_without_privacy_that_is_labelled_with_an_epsilon_is_a_violation(
    ledger: Ledger,
) -> None:
    """It was trained in mode none, which charges nobody, and shows another plan than its own."""
    run = Run(ledger, make(mode="none")).go()
    claim = Run(ledger, PLAN, run_id="borrowed").claim(epsilon=PLAN.epsilon())
    for rounds in (run.rounds, None):
        finding = audited(run.artefact(plan=PLAN, rounds=rounds), claim)
        assert finding.verdict == "violation"
        assert state(finding, "charged") == "broken"
        assert finding.value is None
    finding = audited(run.artefact(), claim)
    assert finding.verdict == "violation"
    assert "mode='client-central' where the plan has 'none'" in finding.explanation


def test_a_ledger_that_says_without_privacy_is_a_violation_of_any_label(ledger: Ledger) -> None:
    bare = make(mode="none")
    ledger.register_plan(RUN, bare, SCOPE)
    ledger.commit(
        ledger.reserve(run_id=RUN, server_round=1, subjects=[POPULATION], event=NonPrivateEvent())
    )
    done = RoundRecord(server_round=1, cohort=3, answered=3, aborted=False, clipping_norm=None)
    artefact = ledger_artefact(
        ledger, run_id=RUN, scope=SCOPE, plan=PLAN, population=100, rounds=[done]
    )
    finding = audited(artefact, replace(oracles.client_claim(3.0, None), delta=PLAN.delta))
    assert finding.verdict == "violation"
    assert state(finding, "plan") == state(finding, "charged") == "broken"


@pytest.mark.parametrize(
    "wrong",
    [
        {"delta": 1e-2 / 2},
        {"delta": 1e-5},
        {"neighboring_relation": "replace-one"},
        {"unit": "example"},
        {"mode": "client-distributed"},
    ],
)
def test_a_label_of_another_kind_than_the_charges_is_a_violation(
    honest: Run, wrong: dict[str, Any]
) -> None:
    finding = audited(honest.artefact(), honest.claim(**wrong))
    assert finding.verdict == "violation"
    assert state(finding, "label") == "broken"
    assert next(iter(wrong)).removeprefix("neighboring_") in finding.explanation


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"delta": 1e-4}, "the ledger counts in"),
        ({"unit": "example"}, "unit='example' in the ledger"),
    ],
)
def test_a_ledger_that_counts_in_other_terms_than_the_plan_is_a_violation(
    honest: Run, change: dict[str, Any], what: str
) -> None:
    context = AuditContext(claim=honest.claim(), seed=7, artefacts=(honest.artefact(),))
    evidence = oracles.through_json(AUDIT.measure(context))
    evidence["histories"][0] |= change
    finding = AUDIT.conclude(evidence, oracles.terms(honest.claim()))
    assert finding.verdict == "violation"
    assert what in finding.explanation


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE entries SET event = replace(event, '1.5', '9.0') WHERE seq = 3", "entry 3"),
        ("UPDATE spent SET count = 1", "the sums of one subject"),
        ("UPDATE plans SET json = '{}'", "cannot be read"),
        ("DELETE FROM entries WHERE seq > 6", "entry 7 is missing"),
    ],
)
def test_a_tampered_ledger_is_a_violation_and_nothing_is_read_from_it(
    honest: Run, place: Place, statement: str, problem: str
) -> None:
    claim = honest.claim()
    place.damage(statement)
    finding = audited(honest.artefact(), claim)
    assert finding.verdict == "violation"
    assert problem in finding.explanation
    assert finding.value is None
    assert finding.positive_control is None


def test_a_ledger_of_another_key_or_an_old_copy_is_a_violation(honest: Run) -> None:
    other = LedgerSigner(b"not the key that it was signed..").public_key
    assert audited(honest.artefact(trusted_key=other), honest.claim()).verdict == "violation"
    anchor = honest.ledger.signed_head()
    assert anchor is not None
    fine = audited(honest.artefact(anchor=anchor, trusted_key=SIGNER.public_key), honest.claim())
    assert fine.verdict == "consistent"
    assert "known from elsewhere" in fine.explanation
    assert "tail" not in fine.explanation
    late = audited(honest.artefact(anchor=replace(anchor.head, seq=99)), honest.claim())
    assert late.verdict == "violation"


def test_an_event_that_nobody_here_can_read_is_inconclusive(honest: Run, place: Place) -> None:
    claim = honest.claim()
    statement = "UPDATE entries SET event = replace(event, 'gaussian', 'laplace')"
    place.damage(statement, "DELETE FROM heads")
    with honest.ledger._store.snapshot() as db:
        hashes, previous = [], "0" * 64
        for link in read_chain(db):
            previous = entry_hash(link.seq, previous, link.entry)
            hashes.append((link.seq, previous))
    for (seq, digest), (_, before) in zip(hashes, [(0, "0" * 64), *hashes], strict=False):
        place.damage(
            f"UPDATE entries SET hash = '{digest}', prev_hash = '{before}' WHERE seq = {seq}"  # noqa: S608
        )
    finding = audited(honest.artefact(), claim)
    assert finding.verdict == "inconclusive"
    assert "laplace" in finding.explanation


# Claims that cannot be held against anything.


def test_a_run_that_claims_nothing_is_inconclusive(ledger: Ledger) -> None:
    run = Run(ledger, make(mode="none")).go()
    finding = audited(run.artefact(), oracles.NO_CLAIM)
    assert (finding.verdict, finding.value, finding.positive_control) == (
        "inconclusive",
        None,
        None,
    )
    assert "claims no epsilon" in finding.explanation


def test_a_delta_of_one_over_the_population_makes_the_claim_empty(ledger: Ledger) -> None:
    run = Run(ledger, make(delta=1e-2)).go()
    for population, verdict in ((99, "consistent"), (100, "inconclusive")):
        finding = audited(run.artefact(population=population), run.claim())
        assert finding.verdict == verdict
    assert "publishing one of them" in finding.explanation


def test_examples_are_counted_in_the_data_of_one_client(ledger: Ledger) -> None:
    for name, size, due in (
        ("a", 999, "holds"),
        ("b", 1000, "doubtful"),
        ("c", None, "not checked"),
    ):
        run = Run(ledger, local(dataset_size=size, cap=50.0), run_id=name).go(2)
        assert state(audited(run.artefact(), run.claim()), "delta") == due
    both = Run(ledger, make(example=local(dataset_size=1000, cap=50.0), cap=50.0), run_id="d").go(2)
    assert state(audited(both.artefact(), both.claim()), "delta") == "doubtful"


def test_without_the_list_of_rounds_it_is_inconclusive(honest: Run) -> None:
    finding = audited(honest.artefact(rounds=None), honest.claim())
    assert (finding.verdict, finding.positive_control) == ("inconclusive", None)
    assert "not known" in finding.explanation


def test_a_run_that_released_nothing_is_inconclusive(ledger: Ledger) -> None:
    run = Run(ledger, PLAN).go(2, aborted=[1, 2])
    finding = audited(run.artefact(), run.claim(epsilon=0.0))
    assert finding.verdict == "inconclusive"
    assert finding.value == 0.0
    assert "about nothing" in finding.explanation


def test_a_protected_unit_that_was_never_charged_is_inconclusive(ledger: Ledger) -> None:
    plan = make(example=local())
    run = Run(ledger, plan)
    run.budget.commit(run.budget.reserve(1, []))
    empty = RoundRecord(server_round=1, cohort=0, answered=0, aborted=False, clipping_norm=1.0)
    finding = audited(run.artefact(rounds=[empty]), run.claim())
    assert finding.verdict == "inconclusive"
    assert state(finding, "size") == "doubtful"


def test_a_scope_that_was_named_otherwise_is_a_slip_and_no_finding(honest: Run) -> None:
    with pytest.raises(InvalidValue, match="not about the data") as caught:
        honest.artefact(scope="notes")
    assert "zqx" not in str(caught.value)
    nobody = honest.artefact(run_id="unheard of", scope="notes")
    assert (nobody.charges, nobody.of_run, nobody.began) == ((), (), None)


def test_without_a_ledger_it_cannot_be_run() -> None:
    context = AuditContext(claim=oracles.NO_CLAIM, seed=1)
    assert "no model" in AUDIT.cost(context)
    with pytest.raises(MissingArtefact, match="budget ledger"):
        AUDIT.measure(context)


def test_coarse_skellam_noise_has_the_renyi_figure_alone(ledger: Ledger) -> None:
    plan = skellam()
    assert plan.distributed is not None
    coarse = replace(plan, distributed=replace(plan.distributed, grid=64), cap=100.0)
    run = Run(ledger, coarse).go()
    finding = audited(run.artefact(), run.claim())
    assert finding.verdict == "consistent", finding.explanation
    figure = finding.evidence["derived"]["figures"][0]
    assert (figure["accountant"], figure["second"]) == ("rdp", None)
    assert state(finding, "accountants") == "not checked"


# Canaries.

PLANTED = oracles.planted(oracles.canaries())


def committed(ledger: Ledger, digest: str = PLANTED.commitment) -> None:
    ledger.note(RUN, SCOPE, CANARY_COINS, digest)


def test_coins_that_were_committed_to_before_the_first_round(ledger: Ledger) -> None:
    committed(ledger)
    run = Run(ledger, PLAN).go()
    finding = audited(run.artefact(), run.claim(), PLANTED)
    assert finding.verdict == "consistent"
    assert "before the first round" in finding.explanation
    assert committed_in_time(ledger, run_id=RUN, commitment=PLANTED.commitment)
    assert not committed_in_time(ledger, run_id=RUN, commitment="00" * 32)
    assert not committed_in_time(ledger, run_id="another", commitment=PLANTED.commitment)


@pytest.mark.parametrize("how", ["not at all", "to something else", "after the first round"])
def test_coins_that_were_not_committed_to_in_time_are_inconclusive(
    ledger: Ledger, how: str
) -> None:
    if how == "to something else":
        committed(ledger, "00" * 32)
    run = Run(ledger, PLAN).go()
    if how == "after the first round":
        committed(ledger)
    finding = audited(run.artefact(), run.claim(), PLANTED)
    assert finding.verdict == "inconclusive"
    assert state(finding, "canaries") == "doubtful"
    assert not committed_in_time(ledger, run_id=RUN, commitment=PLANTED.commitment)
    assert audited(run.artefact(), run.claim()).verdict == "consistent"


def test_canaries_of_a_users_own_files_need_no_commitment(honest: Run) -> None:
    own = replace(PLANTED, commitment="", coins="", salt="")
    assert audited(honest.artefact(), honest.claim(), own).verdict == "consistent"


@pytest.mark.parametrize("said", [True, False])
def test_a_run_that_charges_nobody_says_when_it_began(ledger: Ledger, said: bool) -> None:
    committed(ledger)
    if said:
        ledger.note(RUN, SCOPE, FIRST_ROUND, "cd" * 32)
    run = Run(ledger, make(mode="none")).go()
    finding = audited(run.artefact(), oracles.NO_CLAIM, PLANTED)
    assert state(finding, "canaries") == ("holds" if said else "doubtful")
    assert committed_in_time(ledger, run_id=RUN, commitment=PLANTED.commitment) is said


# Evidence.


def test_an_accountant_that_does_not_hear_less_noise_is_inconclusive(
    honest: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledgerchecks, "history_epsilon", lambda *_, **__: 0.5)
    finding = audited(honest.artefact(), honest.claim())
    assert (finding.verdict, finding.positive_control) == ("inconclusive", False)
    assert "put in on purpose" in finding.explanation


def test_what_costs_nothing_changes_no_figure(honest: Run) -> None:
    context = AuditContext(claim=honest.claim(), seed=7, artefacts=(honest.artefact(),))
    evidence = oracles.through_json(AUDIT.measure(context))
    agreed = oracles.terms(honest.claim())
    before = AUDIT.conclude(evidence, agreed)
    evidence["events"].append({"schema": 1, "type": "no-op"})
    evidence["histories"][0]["counts"].append({"event": 1, "times": 1})
    after = AUDIT.conclude(evidence, agreed)
    assert (after.value, after.verdict) == (before.value, before.verdict)


@pytest.mark.parametrize(
    ("change", "state_of", "said"),
    [
        ({"second": 1.5}, "doubtful", "disagree"),
        ({"renyi": 0.5}, "doubtful", "cannot be"),
        ({"renyi": None}, "holds", "agree"),
        ({"second": None}, "not checked", "only cross-check"),
    ],
)
def test_accountants_that_contradict_one_another_are_doubted(
    honest: Run, change: dict[str, Any], state_of: str, said: str
) -> None:
    context = AuditContext(claim=honest.claim(), seed=7, artefacts=(honest.artefact(),))
    facts = Facts.read(AUDIT.measure(context))
    (figure,) = figures_of(facts)
    checks = {c.name: c for c in checks_of(facts, honest.claim(), (replace(figure, **change),))}
    assert checks["accountants"].state == state_of
    assert said in checks["accountants"].reason


def test_the_finding_is_recomputed_from_the_events_in_it(honest: Run) -> None:
    claim = honest.claim()
    finding = audited(honest.artefact(), claim)
    evidence = oracles.through_json(finding.evidence)
    evidence["derived"] = {"figures": "nonsense"}
    assert AUDIT.conclude(evidence, oracles.terms(claim)).to_dict() == finding.to_dict()
    evidence["histories"][0]["counts"][0]["times"] = 12
    again = AUDIT.conclude(evidence, oracles.terms(claim))
    assert again.verdict == "violation"
    assert again.value is not None
    assert finding.value is not None
    assert again.value > finding.value


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a plan of another version": lambda e: e["plan"].update(schema=9),
    "a plan that is not one": lambda e: e.update(plan=[]),
    "a plan with a word": lambda e: e["plan"].update(rounds="six"),
    "an unknown event": lambda e: e["events"][0].update(type="laplace"),
    "no events": lambda e: e.update(events=[]),
    "an event by another number": lambda e: e["charges"][0].update(event=7),
    "a charge to nobody": lambda e: e["charges"][0].update(subjects=0),
    "a charge that perhaps counts": lambda e: e["charges"][0].update(counts=1),
    "half a release": lambda e: e["histories"][0]["counts"][0].update(times=0.5),
    "fewer releases than charges": lambda e: e["histories"][0]["counts"][0].update(times=5),
    "no histories": lambda e: e.update(histories=[]),
    "a history of another unit": lambda e: e["histories"][0].update(unit="village"),
    "a delta that is not one": lambda e: e["histories"][0].update(delta=2.0),
    "a delta of nothing": lambda e: e["histories"][0].update(delta=0.0),
    "rounds that are not a list": lambda e: e.update(rounds=6),
    "no chain": lambda e: e.pop("chain"),
    "a chain that is somewhat whole": lambda e: e["chain"].update(whole="yes"),
    "a population of none": lambda e: e.update(units=0),
    "a note without a digest": lambda e: e["notes"].append({"seq": 1, "name": "a"}),
    "a commitment that is a number": lambda e: e.update(commitment=7),
    "a second label below nothing": lambda e: e.update(second_epsilon=-1.0),
}


@pytest.mark.parametrize("how", SPOILED)
def test_malformed_evidence_is_an_audit_error(honest: Run, how: str) -> None:
    context = AuditContext(claim=honest.claim(), seed=7, artefacts=(honest.artefact(),))
    evidence = oracles.through_json(AUDIT.measure(context))
    SPOILED[how](evidence)
    with pytest.raises(AuditError):
        AUDIT.conclude(evidence, oracles.terms(honest.claim()))
