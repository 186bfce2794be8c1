"""The extraction audit: canaries and facts, with a model that remembers and one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.extraction import Extraction
from server.audit.protocol import AuditContext, Claim, Finding
from server.audit.target import Passage
from shared.errors import AuditError, MissingArtefact
from tests.server.audit import oracles, test_pii
from tests.server.audit.babbler import Babbler

EXTRACTION = Extraction()
BEGINNING = "Pt portal access code:"


def secrets(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"zqx{word}" for word in rng.integers(200, size=4)) for _ in range(count)]


def canaries(
    n_in: int = 20, n_out: int = 20, *, kind: str = "secret", prompted: bool = False, seed: int = 0
) -> CanaryTexts:
    """Secrets of four words, in running text or as the answer to a prompt of their own."""
    texts = [
        Passage(text=text, prompt=f"{kind} portal {kind}{number}")
        if prompted
        else Passage(text=f"{BEGINNING} {text}")
        for number, text in enumerate(secrets(n_in + n_out, seed))
    ]
    return CanaryTexts(kind=kind, included=tuple(texts[:n_in]), held_out=tuple(texts[n_in:]))


def full(passage: Passage) -> str:
    return f"{passage.prompt} \n {passage.text}" if passage.prompt else passage.text


def context(
    *kinds: CanaryTexts, learned: int = 0, claim: Claim = oracles.NO_CLAIM, end: bool = True
) -> AuditContext:
    """A model that remembers the first included canaries of each kind, word for word."""
    words = [full(p) for kind in kinds for p in (*kind.included, *kind.held_out)]
    pairs = [kind.included[number] for kind in kinds for number in range(learned)]
    model = Babbler([*words, BEGINNING], end=end)
    for passage in pairs:
        remember(model, passage)
    return AuditContext(claim=claim, seed=0, artefacts=(model, oracles.planted(*kinds)))


def remember(model: Babbler, passage: Passage) -> None:
    """Remember a passage; two words back, of which the first of an answer is the line end."""
    before = [*passage.prompt.split(), "\n"] if passage.prompt else []
    words = [*before, *passage.text.split()]
    for place in range(max(1, len(before)), len(words)):
        model.memory[True][tuple(words[max(0, place - 2) : place])] = words[place]


def derived(finding: Finding) -> dict[str, Any]:
    found: dict[str, Any] = finding.evidence["derived"]
    return found


@pytest.mark.parametrize("end", [False, True])
def test_secrets_that_were_remembered_are_extracted(end: bool) -> None:
    """After a beginning that all share, only what is remembered of one text can win."""
    finding = oracles.run(EXTRACTION, context(canaries(), learned=1, end=end))
    included = derived(finding)["kinds"]["secret"]["included"]
    assert finding.value == 1 / 20
    assert included["tuned"]["greedy"] == 1
    assert included["tuned"]["discoverable_1000_0.1"] == 1
    assert included["base"]["greedy"] == 0
    assert finding.evidence["kinds"][0]["included"]["tuned"]["tokens"] == [4] * 20
    assert finding.baseline == 0
    assert not finding.detected  # one of twenty is no evidence
    assert oracles.leaked(finding, "portal") == []


def test_answers_to_prompts_are_extracted_and_detected() -> None:
    finding = oracles.run(EXTRACTION, context(canaries(prompted=True), learned=15, end=False))
    assert finding.value == 15 / 20
    assert finding.interval is not None
    assert finding.interval[0] < 0.75 < finding.interval[1]
    assert finding.detected
    assert finding.verdict == "inconclusive"  # nothing is claimed
    assert finding.strength == "descriptive"
    assert derived(finding)["p_values"]["canaries"] < 1e-4
    assert derived(finding)["kinds"]["secret"]["p_value_against_base"] == pytest.approx(2**-15)
    assert derived(finding)["kinds"]["secret"]["included"]["tuned"]["extraction_strength"] == 0.75
    assert oracles.leaked(finding, "portal") == []


def test_a_secret_completed_from_its_first_words_is_seen_as_such() -> None:
    texts = canaries(prompted=True)
    around = context(texts, learned=12, end=False)
    model = around.need(Babbler)
    for passage in texts.included[:12]:
        del model.memory[True][tuple([*passage.prompt.split(), "\n"][-2:])]
    included = derived(oracles.run(EXTRACTION, around))["kinds"]["secret"]["included"]["tuned"]
    assert included["greedy"] == 0
    # The second word needs the line end and the first; both are there once the first is shown.
    assert included["greedy_after_1"] == 12
    assert included["greedy_after_half"] == 12


def test_text_without_a_prompt_is_completed_from_its_first_half() -> None:
    """A user's own documents share no beginning."""
    rng = np.random.default_rng(2)
    documents = [
        Passage(text=" ".join(f"zqx{word}" for word in rng.integers(300, size=12)))
        for _ in range(24)
    ]
    texts = CanaryTexts(
        kind="members", included=tuple(documents[:12]), held_out=tuple(documents[12:])
    )
    finding = oracles.run(EXTRACTION, context(texts, learned=12, end=False))
    assert finding.evidence["kinds"][0]["included"]["tuned"]["tokens"] == [6] * 12
    assert finding.value == 1.0
    assert finding.detected


def test_a_claim_is_consistent_with_nothing_found_only_under_a_control() -> None:
    around = context(canaries(), claim=oracles.client_claim(3.0, 5.0))
    caught = oracles.run(EXTRACTION, around, control=oracles.caught())
    missed = oracles.run(EXTRACTION, around, control=oracles.caught(detected=False))
    alone = oracles.run(EXTRACTION, around)
    assert [f.verdict for f in (caught, missed, alone)] == [
        "consistent",
        "inconclusive",
        "inconclusive",
    ]
    assert caught.value == 0
    assert caught.detected is False


def test_without_anything_kept_out_the_base_model_is_the_comparison() -> None:
    texts = replace(canaries(prompted=True), held_out=())
    finding = oracles.run(EXTRACTION, context(texts, learned=15, end=False))
    assert list(derived(finding)["p_values"]) == ["against_base:secret"]
    assert finding.detected
    assert finding.n_out == 0


def test_several_kinds_are_one_test_and_the_secrets_are_the_value() -> None:
    kinds = (canaries(8, 9, kind="rare-token", prompted=True, seed=1), canaries(prompted=True))
    finding = oracles.run(EXTRACTION, context(*kinds, learned=6, end=False))
    assert list(derived(finding)["p_values"]) == ["canaries"]
    assert finding.value == 6 / 20
    assert derived(finding)["kinds"]["rare-token"]["included"]["tuned"]["greedy"] == 6


def test_facts_alone_are_enough() -> None:
    known = test_pii.facts()
    model = test_pii.model(known, learned=9)
    around = AuditContext(claim=oracles.client_claim(3.0, 5.0), seed=0, artefacts=(model, known))
    finding = oracles.run(EXTRACTION, around)
    assert finding.value == 18 / 24
    assert (finding.n_in, finding.n_out) == (24, 24)
    assert finding.detected
    assert finding.verdict == "consistent"
    assert set(derived(finding)["p_values"]) == {"facts_extraction", "facts_inference"}
    assert oracles.leaked(finding, "trained1") == []


def test_facts_and_canaries_share_the_level() -> None:
    known, texts = test_pii.facts(count=4), canaries(10, 10, prompted=True)
    words = [full(p) for p in (*texts.included, *texts.held_out)]
    model = test_pii.model(known, learned=0)
    both = Babbler([*words, *model.words], end=True)
    around = AuditContext(
        claim=oracles.NO_CLAIM, seed=0, artefacts=(both, known, oracles.planted(texts))
    )
    finding = oracles.run(EXTRACTION, around)
    p_values = derived(finding)["p_values"]
    assert set(p_values) == {"facts_extraction", "facts_inference", "canaries"}
    assert derived(finding)["p_value"] == min(1.0, 3 * min(p_values.values()))
    assert "Personal facts" in finding.explanation
    assert EXTRACTION.cost(around) == f"{2 * 20 + 2 * 4 * 2 * 11 + 2 * 4 * 4} texts read, 0 written"


def test_what_is_missing_is_said() -> None:
    bare = AuditContext(claim=oracles.NO_CLAIM, seed=0)
    assert EXTRACTION.cost(bare).startswith("0 texts")
    with pytest.raises(MissingArtefact, match="Target"):
        EXTRACTION.measure(bare)
    with pytest.raises(MissingArtefact, match="neither"):
        EXTRACTION.measure(bare.plus(Babbler(["a b"])))
    with pytest.raises(MissingArtefact, match="neither"):
        EXTRACTION.measure(bare.plus(Babbler(["a b"]), PlantedCanaries(kinds=())))


def test_canaries_that_are_cut_off_are_an_error() -> None:
    around = context(canaries())
    around.need(Babbler).longest = 4
    with pytest.raises(AuditError, match="20 of 20"):
        EXTRACTION.measure(around)


@pytest.mark.parametrize(
    "damage",
    [
        {"kinds": []},
        {"kinds": [{}]},
        {"kinds": 1},
        {"facts": 3},
        {"facts": {"kinds": [], "generated": None}, "kinds": []},
    ],
)
def test_malformed_evidence_is_an_audit_error(damage: dict[str, Any]) -> None:
    evidence = oracles.through_json(EXTRACTION.measure(context(canaries(3, 3))))
    with pytest.raises(AuditError):
        EXTRACTION.conclude({**evidence, **damage}, oracles.terms())


def test_sides_and_models_must_match() -> None:
    evidence = oracles.through_json(EXTRACTION.measure(context(canaries(3, 3))))
    evidence["kinds"][0]["included"]["base"] = evidence["kinds"][0]["held_out"]["base"]
    for column in evidence["kinds"][0]["included"]["base"].values():
        column.pop()
    with pytest.raises(AuditError, match="other ones for the base"):
        EXTRACTION.conclude(evidence, oracles.terms())
