"""What changes over the rounds on a client: its learning rate and its noise."""

from __future__ import annotations

import numpy as np
import pytest

from client.localsteps import LocalSteps
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import InvalidValue
from shared.lora import Vector
from shared.scenarioplan import plan_of
from tests.client.conftest import MakeAdapted, make_examples
from tests.client.device import scenario
from tests.integration.scenario import TABLES

pytestmark = pytest.mark.slow


def changed(config: RunConfig, **clients: object) -> RunConfig:
    return config.model_copy(update={"clients": config.clients.model_copy(update=clients)})


def taken(config: RunConfig, adapted: MakeAdapted, server_round: int, size: int) -> Vector:
    """The change of one participation, alone and beside another one, which must be the same."""
    model = adapted(r=2)
    model.set_trainable("B")
    steps = LocalSteps(config, plan_of(config, population=10), model)
    start = np.zeros(model.spec.size("B"), dtype=np.float32)
    examples = make_examples(size, seed=1)
    alone = steps.take(start, 0, server_round, examples)
    beside, _ = steps.take_together(
        start, [0, 1], server_round, [examples, make_examples(size, seed=2)], tokens=4096
    )
    assert np.allclose(alone, beside, atol=1e-5 * max(1.0, float(np.linalg.norm(alone))))
    return alone


@pytest.mark.parametrize("server_round", [1, 2, 3])
def test_a_scheduled_round_is_that_of_a_client_with_this_rate(
    server_round: int, adapted: MakeAdapted
) -> None:
    """Oracle: the same round with the rate written down; warm-up of 1, then 1 and 1/2."""
    config = resolve(TABLES, ["privacy.mode=none", "aggregation.policy=ffa"], source="t").config
    plain = config.model_copy(
        update={
            "privacy": config.privacy.model_copy(
                update={"max_grad_norm": None, "sampling_probability": None}
            )
        }
    )
    scheduled = changed(plain, schedule="linear", warmup_rounds=1)
    rate = 0.5 * {1: 0.5, 2: 1.0, 3: 0.5}[server_round]
    found = taken(scheduled, adapted, server_round, 5)
    assert np.linalg.norm(found) > 0
    written = changed(plain, learning_rate=rate)
    assert np.array_equal(found, taken(written, adapted, server_round, 5))
    if rate != 0.5:
        assert not np.array_equal(found, taken(plain, adapted, server_round, 5))


def test_a_round_that_is_not_planned_has_no_rate(adapted: MakeAdapted) -> None:
    config = changed(scenario("example"), schedule="cosine")
    with pytest.raises(InvalidValue, match="planned round"):
        taken(config, adapted, 6, 3)


@pytest.mark.parametrize(("server_round", "factor"), [(1, 1.0), (3, 0.6), (5, 0.2)])
def test_steps_add_the_noise_of_their_round(
    server_round: int, factor: float, adapted: MakeAdapted
) -> None:
    """An empty client sends noise alone; its standard deviation is known.

    5 standard errors of a standard deviation of d normal values, seeded.
    """
    config = scenario(
        "example", noise_schedule="linear", noise_final=0.2, noise_source="seeded-simulation"
    )
    found = taken(config, adapted, server_round, 0).astype(np.float64)
    # rate * z * clip / batch, over two steps.
    expected = 0.5 * factor * 0.5 / 2 * np.sqrt(2.0)
    allowed = 5.0 / np.sqrt(2.0 * found.size)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(expected, rel=allowed)
