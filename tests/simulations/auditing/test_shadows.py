"""Shadow adapters on a tiny model: they learn what they are given, and leave no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.adapter import AdaptedModel, adapt
from client.model import load_base
from server.audit.membership import TextSplit
from server.audit.protocol import AuditContext
from server.audit.shadow import ShadowMembership
from server.audit.target import Passage
from shared.config import RunConfig
from shared.configfile import resolve
from shared.lora import initial_factors
from simulations.auditing.shadows import TrainedShadows
from simulations.auditing.target import ModelTarget
from tests.client.conftest import VOCABULARY, save_model
from tests.server.audit.oracles import NO_CLAIM, leaked, run
from tests.simulations.auditing.test_inverter import TABLES


def texts(count: int, seed: int) -> tuple[Passage, ...]:
    rng = np.random.default_rng(seed)
    rows = [" ".join(f"w{word}" for word in rng.choice(VOCABULARY - 3, 6)) for _ in range(count)]
    return tuple(Passage(text=row) for row in dict.fromkeys(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("shadows") / "llama", "llama")


def opened(folder: Path, *overrides: str) -> tuple[AdaptedModel, RunConfig]:
    config = resolve(TABLES, overrides, source="test").config
    model = adapt(load_base(str(folder)), r=4, alpha=8, target_modules="all-linear")
    model.load(initial_factors(model.spec, config.run.seed))
    model.set_trainable(config.trained_kinds)
    return model, config


def means(shadows: TrainedShadows, chosen: tuple[Passage, ...], read: tuple[Passage, ...]) -> float:
    return float(np.mean([one.loss for one in shadows.read(chosen, read, number=0)]))


@pytest.mark.parametrize("policy", ["fedavg", "ffa"])
def test_what_a_shadow_was_trained_on_it_finds_likelier(folder: Path, policy: str) -> None:
    model, config = opened(folder, f"aggregation.policy={policy}")
    shadows = TrainedShadows(model, config, passes=10, learning_rate=4e-2)
    one, other = texts(8, 0), texts(8, 1)
    assert means(shadows, one, one) < means(shadows, other, one) - 1
    assert means(shadows, other, other) < means(shadows, one, other) - 1


def test_the_model_is_left_as_it_was_and_training_is_repeatable(folder: Path) -> None:
    model, config = opened(folder, "aggregation.policy=ffa")
    model.load_vector(np.full(model.spec.size("B"), 0.1, dtype=np.float32), "B")
    before = model.factors()
    shadows = TrainedShadows(model, config, passes=2)
    chosen = texts(8, 0)
    first, second = (shadows.read(chosen, chosen, number=3) for _ in range(2))
    assert [one.loss for one in first] == [one.loss for one in second]
    after = model.factors()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.kinds == "B"


def test_the_recipe_is_told(folder: Path) -> None:
    model, config = opened(folder)
    recipe = TrainedShadows(model, config).recipe
    assert "4 passes" in recipe
    assert "factors AB" in recipe


@pytest.mark.slow
def test_an_adapter_that_was_trained_without_privacy_is_found_out(folder: Path) -> None:
    """Trained like a shadow, so the attack must work as well as on its control."""
    model, config = opened(folder)
    members, others = texts(30, 2), texts(30, 3)
    shadows = TrainedShadows(model, config, passes=20, learning_rate=2e-2)
    from client.tokenization import make_examples
    from client.training import TrainSettings, train_plain
    from shared.seeding import data_rng
    from simulations.auditing.shadows import BATCH, _record

    train_plain(
        model,
        make_examples([_record(text) for text in members], model.base.tokenizer, max_length=48),
        TrainSettings(local_epochs=20, batch_size=BATCH, learning_rate=2e-2, optimizer="adamw"),
        rng=data_rng(1, "target"),
    )
    split = TextSplit(members=members, nonmembers=others, source="made up", by_chance=True)
    target = ModelTarget(model, max_length=48)
    finding = run(
        ShadowMembership(),
        AuditContext(claim=NO_CLAIM, seed=0, artefacts=(target, shadows, split)),
    )
    assert finding.detected
    assert finding.positive_control
    assert finding.value is not None
    assert finding.value > 0.9
    assert leaked(finding, members[0].text) == []
