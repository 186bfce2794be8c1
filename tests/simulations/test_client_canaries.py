"""Canary clients as a dataset and as participants: what they own, and what they send."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.data import ClientData, Record
from client.model import load_base
from client.runtime import ClientRuntime
from server.audit.directions import ClientCanaries
from shared.configfile import resolve
from shared.errors import ConflictingSettings, InvalidValue, NoUsableText
from shared.lora import Vector
from shared.privacy.distributed import to_signed
from shared.scenarioplan import plan_of
from shared.wire import Instruction
from simulations.clientcanaries import WithClientCanaries, with_client_canaries
from tests.client.conftest import save_model

TABLES: dict[str, dict[str, object]] = {
    "run": {"name": "canaries", "rounds": 2, "seed": 5},
    "lora": {"r": 2},
    "data": {"path": "builtin:clinics"},
    "clients": {
        "population": 3,
        "cohort": 2.0,
        "local_steps": 1,
        "batch_size": 1,
        "learning_rate": 0.5,
    },
    "privacy": {
        "mode": "client-central",
        "neighboring_relation": "add-or-remove-one",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clipping_norm": 0.5,
        "max_grad_norm": 0.5,
        "sampling_probability": 0.5,
        "noise_source": "seeded-simulation",
    },
    "audit": {"client_canaries": 2},
}
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=3",
)


@dataclass(frozen=True)
class ThreeClients:
    """Clients with one text each."""

    population: int = 3

    def client(self, index: int) -> ClientData:
        return ClientData(name=str(index), train=[Record(text="w1 w2 w3")], holdout=[])

    def describe(self) -> dict[str, object]:
        return {"source": "three", "clients": 3}


def config_of(*overrides: str) -> Any:
    return resolve(TABLES, overrides, source="test").config


def dataset(**changes: Any) -> WithClientCanaries:
    fields = {"dataset": ThreeClients(), "count": 2, "seed": 5, "norm": 7.0, **changes}
    return WithClientCanaries(**fields)


def test_canaries_come_after_the_real_clients_and_own_nothing() -> None:
    data = dataset()
    assert data.population == 5
    assert data.client(2).name == "2"
    for index in (3, 4):
        canary = data.client(index)
        assert (canary.train, canary.holdout) == ([], [])
        assert canary.name == f"canary:{index - 3}"
    assert data.describe() == {"source": "three", "clients": 3, "client_canaries": 2}
    with pytest.raises(InvalidValue):
        data.client(5)


def test_a_canary_sends_its_direction_and_nobody_else_has_one() -> None:
    data, audited = dataset(), ClientCanaries(count=2, seed=5)
    for index in range(3):
        assert data.direction(index, 10) is None
    for canary in range(2):
        found = data.direction(3 + canary, 500)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 7.0 * audited.direction(canary, 500), rtol=1e-6)


@pytest.mark.parametrize("bad", [{"count": 0}, {"count": True}, {"norm": 0.0}, {"norm": np.nan}])
def test_refusals(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        dataset(**bad)


def test_a_scenario_decides_how_long_a_canary_is() -> None:
    """10,000 clips where there is a clip at work, one clip in the twin, 1 without any."""
    three = ThreeClients()
    assert with_client_canaries(three, config_of("audit.client_canaries=0")) is three
    for overrides, norm in (
        ((), 5000.0),
        (DISTRIBUTED, 5000.0),
        (("privacy.mode=none",), 0.5),
    ):
        found = with_client_canaries(three, config_of(*overrides))
        assert isinstance(found, WithClientCanaries)
        assert (found.norm, found.count, found.seed) == (norm, 2, 5)
    tables = {**TABLES, "privacy": {"mode": "none"}}
    found = with_client_canaries(three, resolve(tables, (), source="test").config)
    assert isinstance(found, WithClientCanaries)
    assert found.norm == 1.0


def test_mode_example_has_no_canary_clients() -> None:
    config = config_of("audit.client_canaries=0", "privacy.mode=example")
    audit = config.audit.model_copy(update={"client_canaries": 2})
    with pytest.raises(ConflictingSettings, match="mode example"):
        with_client_canaries(ThreeClients(), config.model_copy(update={"audit": audit}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "llama", "llama")


def runtime_of(folder: Path, *overrides: str) -> ClientRuntime:
    from client.adapter import adapt

    config = config_of(*overrides)
    data = with_client_canaries(ThreeClients(), config)
    return ClientRuntime(
        config=config,
        plan=plan_of(config, population=data.population),
        model=adapt(load_base(str(folder)), r=2, alpha=4, target_modules=["q_proj", "v_proj"]),
        source=data,
    )


def instruction_of(runtime: ClientRuntime, **changes: Any) -> Instruction:
    config_digest, plan_digest = runtime.digests
    vector = 0.1 * np.random.default_rng(0).standard_normal(runtime.dimension)
    fields: dict[str, Any] = {
        "run_id": "test",
        "server_round": 1,
        "config_digest": config_digest,
        "plan_digest": plan_digest,
        "vector": vector.astype(np.float32),
        **changes,
    }
    return Instruction(**fields)


def direction(runtime: ClientRuntime, canary: int) -> Vector:
    found = ClientCanaries(count=2, seed=5).direction(canary, runtime.dimension)
    return found.astype(np.float32)


def test_a_canary_is_clipped_like_everybody(folder: Path) -> None:
    runtime = runtime_of(folder)
    instruction = instruction_of(runtime)
    update = runtime.train(4, instruction)
    assert update.stage == "clipped"
    assert np.linalg.norm(update.vector) == pytest.approx(0.5, rel=1e-5)
    np.testing.assert_allclose(update.vector, 0.5 * direction(runtime, 1), atol=1e-5)
    again = runtime.train(4, instruction_of(runtime, server_round=2))
    np.testing.assert_array_equal(update.vector, again.vector)
    assert np.linalg.norm(runtime.train(0, instruction).vector) <= 0.5


def test_a_canary_follows_the_clip_that_moves(folder: Path) -> None:
    runtime = runtime_of(folder, "privacy.clipping_quantile=0.5", "privacy.count_noise_stddev=5.0")
    update = runtime.train(3, instruction_of(runtime, clipping_norm=2.0))
    assert np.linalg.norm(update.vector) == pytest.approx(2.0, rel=1e-5)


def test_a_canary_sends_a_noised_share_and_fills_up_with_nothing(folder: Path) -> None:
    """The mean of shares is the direction, within six standard errors of the noise."""
    runtime = runtime_of(folder, *DISTRIBUTED)
    mechanism = runtime.plan.distributed_mechanism
    unit = mechanism.clipping_norm / mechanism.grid
    towards = direction(runtime, 0).astype(np.float64)
    deviation = mechanism.noise_multiplier * mechanism.clipping_norm / np.sqrt(1000)
    share = runtime.train_share(3, instruction_of(runtime), cohort=1000)
    leaning = float(to_signed(share.words) * unit @ towards)
    assert leaning == pytest.approx(0.5, abs=6 * deviation)
    assert leaning > 6 * deviation
    padding = runtime.train_share(3, instruction_of(runtime, empty=True), cohort=1000)
    assert abs(float(to_signed(padding.words) * unit @ towards)) < 6 * deviation


def test_a_canary_of_the_twin_sends_one_clip(folder: Path) -> None:
    runtime = runtime_of(folder, "privacy.mode=none")
    assert runtime.config.trained_kinds == "AB"
    update = runtime.train(3, instruction_of(runtime))
    assert update.stage == "plain"
    np.testing.assert_allclose(update.vector, 0.5 * direction(runtime, 0), atol=1e-6)


def test_a_canary_is_never_measured(folder: Path) -> None:
    runtime = runtime_of(folder)
    assert runtime.measure(3, instruction_of(runtime)).tokens == 0


def test_a_client_without_text_is_no_canary(folder: Path) -> None:
    """Only the wrapper knows canaries: an empty client of another source still has no update."""

    class Empty(ThreeClients):
        def client(self, index: int) -> ClientData:
            return ClientData(name=str(index), train=[], holdout=[])

    known = runtime_of(folder)
    runtime = ClientRuntime(config=known.config, plan=known.plan, model=known.model, source=Empty())
    with pytest.raises(NoUsableText):
        runtime.train(0, instruction_of(runtime))
