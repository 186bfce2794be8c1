"""Which scenarios about stragglers are refused, and with which reason."""

from __future__ import annotations

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from shared.scenarioplan import plan_of
from tests.integration.scenario import TABLES

CLOCK = (
    "clock.shares=[0.75, 0.25]",
    "clock.step_seconds=[1.0, 8.0]",
    "clock.upload=[1e5, 1e4]",
    "clock.download=[1e6, 1e5]",
)
BUFFER = (*CLOCK, "buffer.size=3", "buffer.concurrency=5")
MODES = {
    "none": ("privacy.mode=none",),
    "example": ("privacy.mode=example",),
    "client-central": ("privacy.mode=client-central",),
    "correlated": ("privacy.mechanism=correlated",),
    "client-distributed": (
        "privacy.mode=client-distributed",
        "privacy.honest_fraction=0.9",
        "privacy.survivor_fraction=0.8",
        "privacy.min_cohort=4",
    ),
}
OVER = ("server.over_selection=1.5",)
ACCEPTED = {
    "over": {"none", "example", "client-central"},
    "clock": {"none", "example", "client-central", "correlated"},
    "buffer": {"none", "example"},
}
SETTINGS = {"over": OVER, "clock": CLOCK, "buffer": BUFFER}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("feature", SETTINGS)
def test_the_matrix_of_features_and_guarantees(feature: str, mode: str) -> None:
    said = [*MODES[mode], *SETTINGS[feature]]
    if mode in ACCEPTED[feature]:
        resolve(TABLES, said, source="test")
        return
    with pytest.raises(ConfigError, match="cannot be used together"):
        resolve(TABLES, said, source="test")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((*CLOCK, "clock.upload=[1e5]"), "has 1 values, expected one for each of 2"),
        ((*CLOCK, "clock.shares=[0.5, 0.25]"), "sums to 0.75, expected 1"),
        ((*CLOCK, "clock.dropout=0.1"), "would wait for ever"),
        ((*CLOCK, "clock.available_share=0.5"), "would wait for ever"),
        ((*CLOCK, "clock.step_seconds=[1.0, 0.0]"), "greater than 0"),
        ((*CLOCK, "buffer.size=2"), "at least buffer.size"),
        ((*CLOCK, "buffer.size=4", "buffer.concurrency=3"), "at least buffer.size"),
        ((*CLOCK, "buffer.size=4", "buffer.concurrency=13"), "at most population"),
        ((*BUFFER, *OVER), "nobody waits for stragglers"),
        ((*BUFFER, "aggregation.policy=rolora"), "changes of the same factors"),
        (("server.over_selection=0.9",), "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_together_is_said(said: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        resolve(TABLES, ["privacy.mode=none", *said], source="test")


def test_time_does_not_depend_on_how_much_text_a_client_has() -> None:
    tables = {name: dict(table) for name, table in TABLES.items()}
    del tables["clients"]["local_steps"]
    tables["clients"]["local_epochs"] = 1.0
    with pytest.raises(ConfigError, match="which nobody else may know"):
        resolve(tables, ["privacy.mode=none", *CLOCK], source="test")


def test_who_is_asked_is_what_is_accounted() -> None:
    """Half as many again of 6 in 12 are asked: 0.75, and that epsilon, not that of 0.5."""
    over = resolve(TABLES, ["server.over_selection=1.5"], source="test").config
    larger = resolve(TABLES, ["clients.cohort=9.0"], source="test").config
    plan, expected = plan_of(over, population=12), plan_of(larger, population=12)
    assert plan.sampling_probability == 0.75
    assert plan == expected
    everybody = resolve(TABLES, ["server.over_selection=4.0"], source="test").config
    assert plan_of(everybody, population=12).sampling_probability == 1.0
