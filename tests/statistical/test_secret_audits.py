"""False alarms of the audits that look for secrets and facts, on models that learned nothing."""

from __future__ import annotations

import pytest

from server.audit.exposure import Exposure
from server.audit.extraction import Extraction
from server.audit.protocol import AuditContext
from tests.server.audit import oracles, test_extraction, test_pii
from tests.server.audit.babbler import Babbler


@pytest.mark.slow
@pytest.mark.statistical
def test_exposure_detects_nothing_where_nothing_was_learned() -> None:
    """100 seeds of two kinds at alpha 0.05, corrected; 13 or more alarms have p < 0.0015."""
    kinds = tuple(oracles.canaries(30, 30, kind=kind, references=64) for kind in ("secret", "rare"))
    alarms = sum(
        Exposure()
        .conclude(
            Exposure().measure(oracles.context(*kinds, gain=0.0, seed=seed)),
            oracles.terms(seed=seed),
        )
        .detected
        is True
        for seed in range(100)
    )
    assert alarms <= 12


@pytest.mark.slow
@pytest.mark.statistical
def test_extraction_detects_nothing_where_nothing_was_learned() -> None:
    """100 seeds at alpha 0.05 over facts and canaries; 13 or more alarms have p < 0.0015."""
    alarms = 0
    for seed in range(100):
        known, texts = (
            test_pii.facts(seed, count=6),
            test_extraction.canaries(16, 16, prompted=True, seed=seed),
        )
        words = [test_extraction.full(p) for p in (*texts.included, *texts.held_out)]
        model = Babbler([*words, *test_pii.model(known, learned=0).words], seed=seed)
        around = AuditContext(
            claim=oracles.NO_CLAIM, seed=seed, artefacts=(model, known, oracles.planted(texts))
        )
        alarms += oracles.run(Extraction(), around).detected is True
    assert alarms <= 12


@pytest.mark.slow
@pytest.mark.statistical
def test_no_attack_on_facts_finds_what_was_not_learned() -> None:
    """100 seeds at level 0.05 each: 13 or more alarms of one attack have p < 0.0015."""
    alarms = {"facts_extraction": 0, "facts_inference": 0}
    for seed in range(100):
        known = test_pii.facts(seed, count=8)
        found, _ = test_pii.attack(known, test_pii.model(known, learned=0))
        for name, p_value in found.p_values().items():
            alarms[name] += p_value < 0.05
    assert max(alarms.values()) <= 12
