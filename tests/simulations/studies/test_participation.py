from __future__ import annotations

from typing import Any

import pytest

from server.cohort import cohort_source, sample_cohort
from shared.config import RunConfig
from shared.configfile import load_config
from shared.errors import AuditError
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from simulations.studies.catalog import study
from simulations.studies.participation import rounds_by_client

POPULATION = 20


def scenario(*overrides: str) -> tuple[RunConfig, PrivacyPlan]:
    path = study("late-or-early").scenario
    config = load_config(path, [f"clients.population={POPULATION}", *overrides]).config
    return config, plan_of(config, population=POPULATION)


def sizes(config: RunConfig, rounds: int) -> list[dict[str, Any]]:
    """Cohort sizes as a run with this seed records them."""
    probability = (config.clients.cohort or POPULATION) / POPULATION
    found = []
    for number in range(1, rounds + 1):
        source = cohort_source(seed=config.run.seed, server_round=number, kind="seeded-simulation")
        found.append(
            {"round": number, "cohort": len(sample_cohort(POPULATION, probability, source))}
        )
    return found


def test_everybody_takes_part_in_every_round_without_a_cohort() -> None:
    config, plan = scenario("clients.cohort=20.0")
    found = rounds_by_client(config, plan, population=POPULATION, metrics=sizes(config, 3))
    assert found == dict.fromkeys(range(POPULATION), (1, 2, 3))


def test_rounds_ascend_and_those_that_were_aborted_do_not_count() -> None:
    config, plan = scenario("clients.cohort=6.0")
    metrics = sizes(config, 5)
    whole = rounds_by_client(config, plan, population=POPULATION, metrics=metrics)
    assert all(list(rounds) == sorted(set(rounds)) for rounds in whole.values())
    assert sum(map(len, whole.values())) == sum(entry["cohort"] for entry in metrics)
    metrics[1]["aborted"] = "too few answers"
    part = rounds_by_client(config, plan, population=POPULATION, metrics=metrics)
    assert part == {
        client: kept for client, rounds in whole.items() if (kept := tuple(set(rounds) - {2}))
    }


def test_cohorts_of_another_run_are_refused() -> None:
    config, plan = scenario("clients.cohort=6.0")
    metrics = sizes(config, 2)
    metrics[1]["cohort"] += 1
    with pytest.raises(AuditError, match="round=2"):
        rounds_by_client(config, plan, population=POPULATION, metrics=metrics)


@pytest.mark.parametrize(
    "overrides",
    [
        ['privacy.noise_source="os-entropy"'],
        ['privacy.noise_source="seeded-simulation"', 'privacy.mechanism="correlated"'],
    ],
)
def test_secret_and_dealt_cohorts_are_refused(overrides: list[str]) -> None:
    config, plan = scenario(
        'privacy.mode="client-central"',
        'privacy.neighboring_relation="add-or-remove-one"',
        "privacy.noise_multiplier=2.0",
        "privacy.delta=0.001",
        "privacy.clipping_norm=0.5",
        *overrides,
    )
    with pytest.raises(AuditError, match="cannot be worked out"):
        rounds_by_client(config, plan, population=POPULATION, metrics=[])
