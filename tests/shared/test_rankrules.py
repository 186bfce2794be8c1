"""Which settings go with mixed ranks, and that nothing else is refused."""

from __future__ import annotations

import itertools

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from tests.integration.scenario import TABLES

MIX = ("lora.r=4", "devices.mix={pi5 = 0.5, laptop = 0.5}", "server.optimizer=mean")
RANKS = (*MIX, "devices.ranks={pi5 = 2}")
MODES = ("none", "example", "client-central", "client-distributed")
DISTRIBUTED = (
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
)


def refused(*settings: str) -> list[str]:
    try:
        resolve(TABLES, settings, source="test")
    except ConfigError as error:
        return [problem.key for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("policy", "mode"), list(itertools.product(("ffa", "rolora", "flexlora", "fedavg"), MODES))
)
def test_ranks_go_with_exact_policies_in_every_mode_that_these_have(policy: str, mode: str) -> None:
    said = [f"aggregation.policy={policy}", f"privacy.mode={mode}"]
    said += DISTRIBUTED if mode == "client-distributed" else ()
    without = refused(*MIX, *said)
    assert refused(*RANKS, *said) == without + ["devices.ranks"] * (policy == "fedavg")


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ((*RANKS,), []),
        ((*RANKS, "aggregation.columns=holders"), []),
        ((*RANKS, "aggregation.norm_bound=1.0", "privacy.mode=none"), []),
        ((*RANKS, "link.up=int8", "link.down=delta", "lora.variant=rslora"), []),
        ((*MIX, "aggregation.columns=holders"), ["aggregation.columns"]),
        ((*MIX, "devices.ranks={jetson = 2}"), ["devices.ranks"]),
        ((*MIX, "devices.ranks={pi5 = 5}"), ["devices.ranks"]),
        ((*MIX, "devices.ranks={pi5 = 2, laptop = 3}"), ["devices.ranks"]),
        ((*MIX, "devices.ranks={pi5 = 0}"), ["devices.ranks"]),
        (("devices.ranks={pi5 = 1}",), ["devices.ranks"]),
        ((*RANKS, "aggregation.robust=median", "privacy.mode=none"), ["aggregation.robust"]),
        (
            (
                *RANKS,
                "aggregation.columns=holders",
                "aggregation.policy=flexlora",
                "privacy.mode=none",
            ),
            ["aggregation.columns"],
        ),
    ],
)
def test_what_is_refused(settings: tuple[str, ...], keys: list[str]) -> None:
    assert refused(*settings) == keys


def test_the_population_must_be_said() -> None:
    natural = ("data.path=notes.jsonl", "data.text=text", "data.client=who")
    tables = {
        **TABLES,
        "clients": {k: v for k, v in TABLES["clients"].items() if k != "population"},
    }
    resolve(tables, [*MIX, *natural], source="test")
    with pytest.raises(ConfigError, match="population"):
        resolve(tables, [*RANKS, *natural], source="test")
