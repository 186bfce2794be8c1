"""Gradient inversion: what is concluded from attacks of known success."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats as reference_stats

from server.audit.inversion import Inversion
from server.audit.inverter import Inverter, Recovered, Tokens
from server.audit.protocol import AuditContext, Claim, Effort, Finding
from shared.errors import AuditError, MissingArtefact, TooFewCanaries
from tests.server.audit import oracles

AUDIT = Inversion()
VOCABULARY = 50_000
LENGTH = 12


class Attacker(Inverter):
    """Gets each token of a text with a known chance, by arm.

    Args:
        hits: chance of a token, by arm; the arm ``control`` is always there.
        mode: of the run.
        sent: what leaves a client.
        clients: how many.
        common: tokens at the beginning of every text, which the model guesses too.
    """

    def __init__(
        self,
        hits: dict[str, float],
        *,
        mode: str = "client-central",
        sent: str = "clipped",
        clients: int = 6,
        common: int = 0,
    ) -> None:
        self._hits, self._mode, self._sent = {"control": 1.0, **hits}, mode, sent
        self._clients, self._common = clients, common
        self.attacks: list[tuple[str, int, int]] = []

    mode = property(lambda self: self._mode)
    factors = property(lambda self: "AB")
    arms = property(lambda self: tuple(arm for arm in self._hits if arm != "control"))
    sent = property(lambda self: self._sent)
    clients = property(lambda self: self._clients)
    largest_batch = property(lambda self: 2)
    tokens = property(lambda self: LENGTH)
    together = property(lambda self: 3)
    evaluations = property(lambda self: 1_000)

    def text(self, rng: np.random.Generator) -> Tokens:
        own = rng.integers(1_000, VOCABULARY, LENGTH - self._common)
        return (*range(self._common), *(int(token) for token in own))

    def attack(self, arm: str, number: int, *, batch: int) -> Recovered:
        self.attacks.append((arm, number, batch))
        rng = np.random.default_rng([number, batch, *arm.encode()])
        count = 3 if arm == "summed" else batch
        truth = tuple(self.text(rng) for _ in range(count))
        found = tuple(
            tuple(
                token if rng.random() < self._hits[arm] else int(rng.integers(1_000, VOCABULARY))
                for token in text
            )
            for text in truth[::-1]
        )
        guess = tuple(range(self._common)) + (7,) * (LENGTH - self._common)
        return Recovered(
            truth=truth,
            found=found,
            guess=guess,
            others=tuple(self.text(rng) for _ in range(6)),
        )

    def control(self, number: int) -> Recovered:
        return self.attack("control", number, batch=1)


HITS = {"plain": 0.95, "clipped": 0.95, "noised": 0.0, "summed": 0.1}


def around(
    inverter: Inverter, *, claim: Claim | None = None, effort: Effort = "smoke"
) -> AuditContext:
    stated = oracles.client_claim(4.0, 6.0) if claim is None else claim
    return AuditContext(claim=stated, seed=1, effort=effort, artefacts=(inverter,))


def concluded(hits: dict[str, float], *, claim: Claim | None = None, **options: Any) -> Finding:
    inverter = Attacker({**HITS, **hits}, **options)
    return oracles.run(AUDIT, around(inverter, claim=claim))


def results(finding: Finding) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["arm"], one["batch"]): one for one in finding.evidence["derived"]["results"]}


def test_text_that_comes_back_is_measured_and_blamed_on_the_trust_in_the_server() -> None:
    finding = concluded({})
    assert (finding.verdict, finding.detected, finding.strength) == (
        "inconclusive",
        True,
        "descriptive",
    )
    assert finding.value == pytest.approx(0.95, abs=0.08)
    assert finding.baseline == pytest.approx(0.0, abs=0.01)
    assert finding.positive_control is True
    assert "trusted with clipped updates" in finding.explanation
    assert "can read clients' text" in finding.explanation


def test_every_arm_is_told() -> None:
    found = results(concluded({}))
    assert set(found) == {(arm, 1) for arm in (*HITS, "control")}
    for arm, hits in HITS.items():
        assert found[arm, 1]["rouge_1"] == pytest.approx(hits, abs=0.12)
    # A batch comes back in another order, which does not count.
    assert found["control", 1]["exact"] == 1.0


def test_intervals_are_those_of_a_library() -> None:
    inverter = Attacker({**HITS, "clipped": 0.6})
    evidence = AUDIT.measure(around(inverter))
    finding = AUDIT.conclude(evidence, oracles.terms(oracles.client_claim(4.0, 6.0)))
    clipped = next(one for one in evidence["results"] if one["arm"] == "clipped")
    values = np.array(clipped["rouge_1"])
    expected = reference_stats.t.interval(
        0.95, len(values) - 1, loc=values.mean(), scale=reference_stats.sem(values)
    )
    assert finding.interval == pytest.approx((max(0.0, expected[0]), min(1.0, expected[1])))


@pytest.mark.parametrize("mode", ["client-central", "example", "client-distributed"])
def test_nothing_that_comes_back_is_consistent(mode: str) -> None:
    claim = replace(oracles.client_claim(4.0, 6.0), mode=mode)
    finding = concluded({"clipped": 0.0, "summed": 0.0}, mode=mode, claim=claim)
    assert (finding.verdict, finding.detected) == ("consistent", False)
    assert "A stronger attack may find more" in finding.explanation


def test_what_is_sent_decides_and_not_what_could_have_been() -> None:
    claim = replace(oracles.client_claim(4.0, 6.0), mode="example", unit="example")
    finding = concluded({}, mode="example", sent="noised", claim=claim)
    assert finding.verdict == "consistent"
    assert finding.value == pytest.approx(0.0, abs=0.05)


def test_what_anybody_could_have_guessed_does_not_count() -> None:
    """Six of twelve tokens begin every text, and that is all that comes back."""
    finding = concluded({"clipped": 0.0}, common=6)
    assert finding.baseline == pytest.approx(0.5)
    assert finding.detected is False


def test_a_weak_attack_says_nothing() -> None:
    finding = concluded({"clipped": 0.0, "control": 0.05})
    assert (finding.verdict, finding.positive_control) == ("inconclusive", False)
    assert "too weak" in finding.explanation


def test_a_run_without_a_claim_is_inconclusive() -> None:
    finding = concluded({"plain": 0.9}, mode="none", sent="plain", claim=oracles.NO_CLAIM)
    assert finding.verdict == "inconclusive"
    assert "claims no epsilon" in finding.explanation


def test_no_token_is_kept() -> None:
    inverter = Attacker(HITS)
    finding = oracles.run(AUDIT, around(inverter, effort="extended"))
    written = json.dumps(finding.to_dict())
    again = Attacker(HITS)
    for arm, number, batch in inverter.attacks:
        for text in again.attack(arm, number, batch=batch).truth:
            assert not any(f" {token}," in written or f"[{token}," in written for token in text)
    assert repr(again.attack("plain", 0, batch=1)) == "Recovered()"


def test_larger_batches_are_attacked_where_there_are_texts_for_them() -> None:
    inverter = Attacker(HITS)
    finding = oracles.run(AUDIT, around(inverter, effort="extended"))
    assert {key for key in results(finding) if key[1] > 1} == {("plain", 2), ("clipped", 2)}
    planned = 4 + 4 + 4 + 3 * 3 + 2 * 3 + 2 * 3 + 4
    assert AUDIT.cost(around(inverter, effort="extended")).startswith(f"{planned} texts")


def test_what_is_missing_is_said() -> None:
    empty = AuditContext(claim=oracles.NO_CLAIM, seed=0)
    assert "nothing" in AUDIT.cost(empty)
    with pytest.raises(MissingArtefact, match="Inverter"):
        AUDIT.measure(empty)
    with pytest.raises(TooFewCanaries, match="clients=2"):
        AUDIT.measure(around(Attacker(HITS, clients=2)))


@pytest.mark.parametrize(
    "change",
    [
        {"results": []},
        {"sent": "noised up"},
        {"mode": 3},
        {"tokens": None},
    ],
)
def test_evidence_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    evidence = oracles.through_json(AUDIT.measure(around(Attacker(HITS))))
    with pytest.raises(AuditError):
        AUDIT.conclude({**evidence, **change}, oracles.terms())


@pytest.mark.parametrize("value", [1.5, "much", None])
def test_rates_that_are_none_are_refused(value: object) -> None:
    evidence = oracles.through_json(AUDIT.measure(around(Attacker(HITS))))
    evidence["results"][0]["rouge_2"][0] = value
    with pytest.raises(AuditError):
        AUDIT.conclude(evidence, oracles.terms())


def test_a_null_attack_is_seldom_called_a_success() -> None:
    """The lead of a guess over a guess, 200 times at three updates; 5 % nominal, 8 % allowed."""
    rng = np.random.default_rng(0)
    evidence = oracles.through_json(AUDIT.measure(around(Attacker(HITS))))
    own = next(one for one in evidence["results"] if one["arm"] == "clipped")
    alarms = 0
    for _ in range(200):
        scores = rng.binomial(LENGTH, 0.3, size=(3, 3)) / LENGTH
        own["rouge_1"], own["guess_1"], own["other_1"] = scores.tolist()
        alarms += bool(AUDIT.conclude(evidence, oracles.terms()).detected)
    assert alarms <= 16
