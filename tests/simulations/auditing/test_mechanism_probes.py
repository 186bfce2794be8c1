"""The real client code under rehearsal: noised steps, and clients that fail on a record."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client.training
from client.adapter import AdaptedModel
from client.runtime import ClientRuntime
from server.audit.scrubbing import check_scrubbing, measure_scrubbing
from server.audit.steps import check_steps, measure_steps
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import InvalidValue
from shared.lora import initial_factors
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from shared.wire import encode_failure
from simulations.assemble import load_model
from simulations.auditing.failureprobe import ClientAppProbe
from simulations.auditing.rehearsal import RehearsedSteps
from tests.integration.scenario import TABLES

MODES = {
    "none": ("privacy.mode=none",),
    "example": ("privacy.mode=example",),
    "client-central": (),
    "quantile": ("privacy.clipping_quantile=0.5",),
    "client-distributed": (
        "privacy.mode=client-distributed",
        "privacy.honest_fraction=0.9",
        "privacy.survivor_fraction=0.8",
        "privacy.min_cohort=4",
    ),
}


def scenario(*overrides: str) -> tuple[RunConfig, PrivacyPlan]:
    config = resolve(TABLES, list(overrides), source="test").config
    return config, plan_of(config, population=12)


@pytest.fixture(scope="module")
def loaded() -> AdaptedModel:
    config, _ = scenario("privacy.mode=none")
    return load_model(config, base_dir=Path.cwd())


@pytest.fixture
def model(loaded: AdaptedModel) -> Iterator[AdaptedModel]:
    """Return the demo model with an adapter that a run might have released."""
    factors = initial_factors(loaded.spec, 3)
    factors = {name: value + np.float32(0.01) for name, value in factors.items()}
    loaded.load(factors)
    loaded.set_trainable("B")
    tokenizer = loaded.base.tokenizer
    yield loaded
    assert loaded.kinds == "B"
    assert loaded.base.tokenizer is tokenizer
    for name, value in loaded.factors().items():
        np.testing.assert_array_equal(value, factors[name])


@pytest.mark.parametrize("mode", sorted(MODES))
def test_real_clients_say_nothing_of_a_record_that_fails(mode: str, model: AdaptedModel) -> None:
    config, plan = scenario(*MODES[mode])
    check = check_scrubbing(
        measure_scrubbing(ClientAppProbe(config=config, plan=plan, model=model))
    )
    assert check.failures == []
    assert check.doubts == ()
    assert len(check.tests) == 6


def app_that_lets_exceptions_out(runtime: ClientRuntime) -> Any:
    """A client app without the guard: Flower would send the text of the exception."""

    def app(message: Any, context: Any) -> Any:
        del context
        runtime.examples(0)
        return message.__class__(encode_failure("unexpected"), reply_to=message)

    return app


def app_that_logs(runtime: ClientRuntime) -> Any:
    """A client app that scrubs what it sends and logs what it knows."""

    def app(message: Any, context: Any) -> Any:
        del context
        try:
            runtime.examples(0)
        except ValueError:
            logging.getLogger("fedslm.client").debug("failed", exc_info=True)
        return message.__class__(encode_failure("unexpected"), reply_to=message)

    return app


def app_that_sends_its_errors(runtime: ClientRuntime) -> Any:
    """A client app whose failure code is the text of the exception."""

    def app(message: Any, context: Any) -> Any:
        del context
        try:
            runtime.examples(0)
        except ValueError as error:
            return message.__class__(encode_failure(str(error)), reply_to=message)
        return message.__class__(encode_failure("unexpected"), reply_to=message)

    return app


@pytest.mark.parametrize(
    ("make_app", "words"),
    [
        (app_that_lets_exceptions_out, "sends a part"),
        (app_that_sends_its_errors, "sends a part"),
        (app_that_logs, "logs a part"),
    ],
)
def test_clients_that_leak_are_caught(make_app: Any, words: str, model: AdaptedModel) -> None:
    config, plan = scenario("privacy.mode=none")
    probe = ClientAppProbe(config=config, plan=plan, model=model, make_app=make_app)
    check = check_scrubbing(measure_scrubbing(probe))
    found = {test.name: test.broken for test in check.failures}
    assert words in found[f"{'logged' if 'logs' in words else 'sent'} when tokenising fails"]
    assert any("reading" in name for name in found)


def test_loggers_are_as_they_were_after_a_probe(model: AdaptedModel) -> None:
    config, plan = scenario("privacy.mode=none")
    loggers = [logging.getLogger(name) for name in ("", "fedslm", "flwr")]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]
    ClientAppProbe(config=config, plan=plan, model=model).answer("reading", "x" * 48)
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


@pytest.mark.parametrize("policy", ["ffa", "fedavg"])
def test_real_steps_add_the_declared_noise(policy: str, model: AdaptedModel) -> None:
    config, plan = scenario("privacy.mode=example", f"aggregation.policy={policy}")
    model.set_trainable(config.trained_kinds)
    steps = RehearsedSteps(model, plan, clipper=config.performance.clipper, seed=1)
    check = check_steps(measure_steps(steps))
    model.set_trainable("B")
    assert check.failures == []
    assert check.doubts == ()


def test_steps_inside_a_client_mode_are_found(model: AdaptedModel) -> None:
    _, plan = scenario(
        'example.neighboring_relation="add-or-remove-one"',
        "example.noise_multiplier=1.0",
        "example.delta=1e-3",
        "example.max_grad_norm=0.5",
        "example.sampling_probability=0.5",
    )
    assert plan.example is not None
    assert check_steps(measure_steps(RehearsedSteps(model, plan, seed=1))).failures == []
    with pytest.raises(InvalidValue, match="no step"):
        RehearsedSteps(model, scenario("privacy.mode=none")[1], seed=1)


def test_sabotaged_steps_are_caught(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    _, plan = scenario("privacy.mode=example", "privacy.noise_source=os-entropy")
    steps = RehearsedSteps(model, plan, seed=1)
    normal = NoiseSource.normal
    with monkeypatch.context() as patch:
        patch.setattr(NoiseSource, "normal", lambda self, n: 0.5 * normal(self, n))
        assert {"size", "law"} <= {t.name for t in check_steps(measure_steps(steps)).failures}
    with monkeypatch.context() as patch:
        patch.setattr(NoiseSource, "from_os", lambda: NoiseSource.seeded(1))
        assert "rounds" in {t.name for t in check_steps(measure_steps(steps)).failures}
    with monkeypatch.context() as patch:
        unclipped = client.training._clipped_sum

        def loose(model: Any, engine: Any, examples: Any, settings: Any, norm: float) -> Any:
            return unclipped(model, engine, examples, settings, 3.0 * norm)

        patch.setattr(client.training, "_clipped_sum", loose)
        assert "clip" in {t.name for t in check_steps(measure_steps(steps)).failures}
