"""The generated references are those of the code."""

from __future__ import annotations

import pytest

from simulations.clidoc import DOCS, cli_reference, scenario_reference


@pytest.mark.parametrize(
    ("name", "expected"), [("cli.md", cli_reference()), ("scenario.md", scenario_reference())]
)
def test_references_are_up_to_date(name: str, expected: str) -> None:
    found = (DOCS / name).read_text(encoding="utf-8")
    assert found == expected, "run: python -m simulations.clidoc"
