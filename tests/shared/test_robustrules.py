"""Which scenarios may ask for robust aggregation, and why the others may not."""

from __future__ import annotations

import pytest

from shared.configfile import parse_json, resolve
from shared.errors import ConfigError
from tests.integration.scenario import TABLES

NONE = "privacy.mode=none"


@pytest.mark.parametrize(
    "sets",
    [
        ["aggregation.robust=median"],
        ["aggregation.robust=geometric-median", "aggregation.attackers=2"],
        ["aggregation.robust=krum", "aggregation.attackers=1"],
        ["aggregation.robust=trimmed-mean", "aggregation.attackers=0.25"],
        ["aggregation.norm_bound=0.5"],
    ],
)
@pytest.mark.parametrize("mode", [NONE, "privacy.mode=example"])
def test_what_the_server_may_do_with_updates_that_it_sees(sets: list[str], mode: str) -> None:
    private = ["privacy.clipping_norm=0.5"] if mode == NONE else []
    config = resolve(TABLES, [mode, *private, *sets], source="test").config
    assert parse_json(config.to_json()).aggregation == config.aggregation


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        (["aggregation.robust=median"], "for which the noise is calibrated"),
        (["aggregation.norm_bound=1.0"], "privacy.clipping_norm bounds every"),
        ([NONE, "aggregation.robust=krum"], "needs it; no default"),
        ([NONE, "aggregation.attackers=1"], "withstands no attacker"),
        ([NONE, "aggregation.robust=krum", "aggregation.attackers=2"], "needs 7 updates against 2"),
        ([NONE, "aggregation.robust=median", "aggregation.attackers=3"], "needs 7 updates"),
        ([NONE, "aggregation.robust=median", "aggregation.attackers=0.5"], "aggregation.attackers"),
        ([NONE, "aggregation.norm_bound=0.0"], "norm_bound"),
        ([NONE, "buffer.size=2", "aggregation.robust=median"], "no rule here knows weights"),
        ([NONE, "buffer.size=2", "aggregation.norm_bound=1.0"], "no rule here knows weights"),
        (
            [
                "privacy.mode=client-distributed",
                "privacy.honest_fraction=0.9",
                "privacy.survivor_fraction=0.8",
                "privacy.min_cohort=3",
                "aggregation.robust=median",
            ],
            "the server sees the sum of the updates and none of them",
        ),
    ],
)
def test_what_is_refused_with_its_reason(sets: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TABLES, sets, source="test")
    assert reason in str(caught.value)
