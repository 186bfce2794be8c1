"""The guide names settings that the rules let through, and refusals that the rules make."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from shared.errors import ConfigError
from simulations.catalog import open_scenario

PAGE = (Path(__file__).parents[2] / "docs/choosing-a-policy.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"\$ fedslm simulate ((?:.|\\\n)+?)\n", PAGE.replace("\\\n", " "))
REFUSED = re.findall(r"^\| `--set ([^`]+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)


def overrides(words: list[str]) -> list[str]:
    """Return what follows each ``--set``."""
    return [value for flag, value in pairwise(words) if flag == "--set"]


def test_every_leaf_of_the_chart_has_its_command() -> None:
    leaves = re.findall(r'\["(\d+)\. ', PAGE)
    assert sorted(map(int, leaves)) == list(range(1, len(COMMANDS) + 1))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_advised_is_allowed(command: str) -> None:
    scenario, *words = shlex.split(command)
    open_scenario(scenario, overrides(words))


@pytest.mark.parametrize(("setting", "scenario"), REFUSED)
def test_what_is_called_refused_is_refused(setting: str, scenario: str) -> None:
    open_scenario(scenario)
    with pytest.raises(ConfigError) as caught:
        open_scenario(scenario, [setting])
    assert setting.split("=")[0] in str(caught.value)


def test_refusals_are_found() -> None:
    assert len(REFUSED) == PAGE.count("| `--set ")
    assert REFUSED
