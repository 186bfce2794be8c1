"""Learning rates over rounds, against a plain loop and torch's schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.configfile import resolve
from shared.errors import ConfigError, InvalidValue
from shared.schedules import ScheduleName, rate_factor
from tests.integration.scenario import TABLES

NAMES: tuple[ScheduleName, ...] = ("constant", "linear", "cosine")


def torchs(name: str, rounds: int) -> list[float]:
    """The same fall by torch's own schedulers."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = torch.optim.lr_scheduler
    falls: dict[str, Callable[[], Any]] = {
        "constant": lambda: schedulers.ConstantLR(optimizer, factor=1.0),
        "linear": lambda: schedulers.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=rounds
        ),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=rounds),
    }
    scheduler = falls[name]()
    found = []
    for _ in range(rounds):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_without_warm_up_the_rates_are_torchs(name: ScheduleName) -> None:
    ours = [rate_factor(name, server_round=t, rounds=11) for t in range(1, 12)]
    assert ours == pytest.approx(torchs(name, 11))


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_up_rises_in_equal_steps_and_then_the_schedule_begins(name: ScheduleName) -> None:
    ours = [rate_factor(name, server_round=t, rounds=10, warmup_rounds=3) for t in range(1, 11)]
    assert ours == pytest.approx([0.25, 0.5, 0.75, *torchs(name, 7)])


@given(st.sampled_from(NAMES), st.integers(1, 50), st.data())
def test_no_round_stands_still_or_is_faster_than_said(
    name: ScheduleName, rounds: int, data: st.DataObject
) -> None:
    warmup = data.draw(st.integers(0, rounds - 1))
    for server_round in range(1, rounds + 1):
        factor = rate_factor(name, server_round=server_round, rounds=rounds, warmup_rounds=warmup)
        assert 0.0 < factor <= 1.0


@pytest.mark.parametrize(("server_round", "warmup"), [(0, 0), (6, 0), (1, 5), (1, -1)])
def test_rounds_that_are_not_planned_are_refused(server_round: int, warmup: int) -> None:
    with pytest.raises(InvalidValue, match="planned round"):
        rate_factor("linear", server_round=server_round, rounds=5, warmup_rounds=warmup)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (["clients.warmup_rounds=3"], "never be reached"),
        (["privacy.noise_final=0.5"], "not constant"),
        (["privacy.noise_schedule=linear"], "not constant"),
        (["privacy.noise_schedule=linear", "privacy.noise_final=0.01"], "expected 0.1 to 10"),
        (
            [
                "privacy.noise_schedule=linear",
                "privacy.noise_final=0.5",
                "privacy.mechanism=correlated",
            ],
            "correlated noise: its rows",
        ),
        (
            [
                "privacy.noise_schedule=linear",
                "privacy.noise_final=0.5",
                "privacy.clipping_quantile=0.5",
            ],
            "clipping_quantile: the noise",
        ),
        (
            [
                "privacy.noise_schedule=linear",
                "privacy.noise_final=0.5",
                "audit.client_canaries=4",
            ],
            "client_canaries: their statistic",
        ),
        (
            [
                "privacy.noise_schedule=linear",
                "privacy.noise_final=0.5",
                "privacy.mode=client-distributed",
                "privacy.honest_fraction=0.8",
                "privacy.survivor_fraction=0.9",
                "privacy.min_cohort=3",
            ],
            "client-distributed: one grid",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(said: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        resolve(TABLES, said, source="test")


def test_the_twin_without_privacy_ignores_the_noise() -> None:
    said = ["privacy.mode=none", "privacy.noise_schedule=linear"]
    assert resolve(TABLES, said, source="test").config.privacy.mode == "none"
