"""The extraction audit on a real model that was trained on facts without any privacy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from client.adapter import adapt
from client.model import load_base
from client.tokenization import make_examples
from client.training import TrainSettings, train_plain
from server.audit.extraction import Extraction
from server.audit.protocol import AuditContext
from shared.lora import initial_factors
from simulations.auditing.facts import personal_facts
from simulations.auditing.target import ModelTarget
from simulations.basepath import ASSETS
from simulations.dataset import ClinicsDataset
from tests.server.audit import oracles

CLIENTS = 12


@pytest.mark.slow
def test_facts_are_found_in_an_adapter_trained_on_them_and_not_in_an_untrained_one() -> None:
    """Twelve clinics' notes, twenty times through the demo model, at the effort of a release."""
    clinics = ClinicsDataset(population=CLIENTS, seed=7, records=6, holdout=0.01)
    facts = personal_facts(clinics, seed=1, per_kind=CLIENTS, candidates=7, holders=CLIENTS)
    base = load_base(str(ASSETS / "demo"), quantization="none")
    model = adapt(base, r=16, alpha=16, target_modules="all-linear")
    model.load(initial_factors(model.spec, 7))
    target = ModelTarget(model, max_length=96)
    around = AuditContext(
        claim=oracles.NO_CLAIM, seed=0, effort="release", artefacts=(target, facts)
    )
    before = oracles.run(Extraction(), around)
    assert before.value == 0
    assert before.detected is False

    records = [record for client in range(CLIENTS) for record in clinics.client(client).train]
    train_plain(
        model,
        make_examples(records, base.tokenizer, max_length=96),
        TrainSettings(local_epochs=20.0, batch_size=16, learning_rate=5e-3, optimizer="adamw"),
        rng=np.random.default_rng(0),
    )
    after = oracles.run(Extraction(), around)
    derived: Any = after.evidence["derived"]
    assert after.detected is True
    assert after.value is not None
    assert after.value > 0.5
    assert after.baseline == 0
    assert all(p_value < 1e-3 for p_value in derived["p_values"].values())
    assert set(derived["p_values"]) == {"facts_extraction", "facts_inference", "facts_generation"}
    everyone = {fact.text.strip() for fact in (*facts.trained, *facts.fresh)} if facts else set()
    assert everyone
    assert oracles.leaked(after, *everyone) == []
