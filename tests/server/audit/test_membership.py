"""Membership inference: a planted leak, no leak, and sides that differ before training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.audit import stats
from server.audit.membership import Membership
from shared.errors import TooFewCanaries
from tests.server.audit import oracles

MEMBERSHIP = Membership()


def test_a_planted_leak_is_found() -> None:
    finding = MEMBERSHIP.run(oracles.context(oracles.canaries(), gain=3.0))
    details: dict[str, Any] = dict(finding.details)
    scores = np.array(details["scores_in"]), np.array(details["scores_out"])
    assert finding.value == pytest.approx(stats.auc(*scores))
    assert finding.value is not None
    assert finding.value > 0.95
    assert finding.detected
    # The plain loss sees less: the spread of the texts hides what the base model explains.
    assert details["auc_loss"] < finding.value


@pytest.mark.statistical
def test_shuffled_labels_stay_at_one_half() -> None:
    """One fixed seed; three standard errors of the null: false-alarm rate 0.27 %."""
    finding = MEMBERSHIP.run(oracles.context(oracles.canaries(200, 180), gain=0.0, seed=1))
    assert finding.value == pytest.approx(0.5, abs=3 * np.sqrt((1 / 200 + 1 / 180) / 12))


def test_rates_that_so_few_canaries_cannot_show_are_not_given() -> None:
    finding = MEMBERSHIP.run(oracles.context(oracles.canaries(100, 100), gain=1.0))
    rates: Any = finding.details["tpr_at_fpr"]
    assert [(rate["fpr"], rate["value"] is None) for rate in rates] == [(0.01, True), (0.1, False)]


def test_sides_that_differ_without_training_are_named() -> None:
    context = oracles.context(oracles.canaries(), gain=0.0, claim=oracles.client_claim(1.0, 1.0))
    for text in context.canaries.included:
        context.scorer.tables[False][text] -= 12  # type: ignore[attr-defined]
        context.scorer.tables[True][text] -= 12  # type: ignore[attr-defined]
    finding = MEMBERSHIP.run(context)
    assert finding.verdict == "inconclusive"
    assert "differ for another reason" in finding.explanation


def test_the_explanation_says_what_the_claim_allows() -> None:
    modest = oracles.context(oracles.canaries(), gain=0.0, claim=oracles.client_claim(0.5, 1.0))
    assert "up to 73.1 %" in MEMBERSHIP.run(modest).explanation
    large = oracles.context(oracles.canaries(), gain=0.0, claim=oracles.client_claim(8.0, 13.0))
    assert "more than 99.9 %" in MEMBERSHIP.run(large).explanation


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(TooFewCanaries):
        MEMBERSHIP.run(oracles.context(oracles.canaries(50, 7), gain=1.0))
