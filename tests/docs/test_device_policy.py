"""The page about policies: its file loads, its commands run, its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from client.policy import ClientPolicy
from client.policyfile import (
    AdaptersSection,
    BudgetSection,
    ConditionsSection,
    ExampleSection,
    PolicyFile,
    SecureAggregationSection,
)
from shared.errors import all_errors
from simulations.cli import run
from tests.client.device import scenario
from tests.integration.device import demo_digest

PAGE = Path(__file__).parents[2] / "docs" / "device-policy.md"


def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(), re.MULTILINE | re.DOTALL)


def first_column(heading: str) -> list[str]:
    """Return the code words in the first column of the table after a line of text."""
    _, _, rest = page().partition(heading)
    table = rest.split("\n|---|---|", 1)[1].split("\n\n", 1)[0]
    return [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in table.strip().splitlines()]


def test_the_example_is_a_policy_and_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    [example] = blocks("toml")
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 4
    config = scenario(sampling_probability=0.05)
    values = config.model_dump(mode="json", exclude_none=True)
    lines = []
    for section, table in values.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(table[key])}" for key in table)]
    Path("notes.toml").write_text("\n".join(lines), encoding="utf-8")
    for command in commands:
        assert command.startswith("$ fedslm ")
        assert run(shlex.split(command.removeprefix("$ fedslm "))) == 0, capsys.readouterr().err
        # The owner fills in what `init` wrote.
        Path("mine.toml").write_text(example.replace("DIGEST", demo_digest()), encoding="utf-8")
    assert ClientPolicy.load(Path("mine.toml")).modes == {"example"}


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("No key that could allow something has a default.", PolicyFile),
        ("has these keys:", ExampleSection),
        ("And `[secure_aggregation]`:", SecureAggregationSection),
        ("And `[conditions]`", ConditionsSection),
        ("And `[adapters]`", AdaptersSection),
    ],
)
def test_every_key_is_explained(heading: str, model: type) -> None:
    named = {word.strip("[]") for word in first_column(heading)}
    fields = {field.alias or name for name, field in model.model_fields.items()}  # type: ignore[attr-defined]
    assert named == fields - {"schema"}
    assert set(BudgetSection.model_fields) < set(ExampleSection.model_fields)


def test_every_code_exists() -> None:
    _, _, rest = page().partition("only a code goes to the server:")
    table = rest.split("\n|---|---|", 1)[1].split("\n\n", 1)[0]
    codes = {
        code
        for row in table.strip().splitlines()
        for code in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    assert codes <= {error.code for error in all_errors()}
    assert len(codes) == 8
