"""A device is configured by its owner; what is missing is named, and nothing is guessed."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from client.node import LocalSource, runtime_of_node
from shared.errors import ConfigError, PolicyRefused, SchemaMismatch
from tests.client.device import plan, scenario, write_policy

RUN = {"scenario": "{}", "plan": "{}"}


def node(folder: Path, **changes: str | int) -> dict[str, str | int]:
    paths = {
        "data-path": str(folder / "notes.jsonl"),
        "base-path": str(folder / "base"),
        "policy-path": str(folder / "policy.toml"),
        "state-path": str(folder / "state"),
    }
    return {**paths, **changes}


@pytest.mark.parametrize("missing", ["scenario", "plan"])
def test_a_run_without_a_setting_is_refused(tmp_path: Path, missing: str) -> None:
    run = {name: value for name, value in RUN.items() if name != missing}
    with pytest.raises(SchemaMismatch, match=f"no '{missing}'"):
        runtime_of_node(run, node(tmp_path))


@pytest.mark.parametrize("missing", ["data-path", "base-path", "policy-path", "state-path"])
@pytest.mark.parametrize("value", [None, "", 7])
def test_a_node_without_a_setting_is_refused(
    tmp_path: Path, missing: str, value: str | int | None
) -> None:
    settings: dict[str, object] = {**node(tmp_path), missing: value}
    with pytest.raises(SchemaMismatch, match=f"no '{missing}'.*policy-path, state-path"):
        runtime_of_node(RUN, settings)


def test_a_node_without_a_policy_file_takes_part_in_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, logger="fedslm.client"),
        pytest.raises(PolicyRefused, match="takes part in nothing"),
    ):
        runtime_of_node(RUN, node(tmp_path))
    assert "refused [policy-refused]" in caplog.text
    assert str(tmp_path) not in caplog.text
    assert not (tmp_path / "state").exists()


def test_the_old_inline_keys_are_no_policy(tmp_path: Path) -> None:
    old: dict[str, str | int] = {
        "policy-modes": "example",
        "policy-max-epsilon": 1000,
        "policy-min-noise-multiplier": 1,
    }
    with pytest.raises(PolicyRefused, match="cannot be read"):
        runtime_of_node(RUN, node(tmp_path, **old))


@pytest.mark.parametrize("plan_json", ["", "[]", '{"schema": 99}', "not json"])
def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path, plan_json: str) -> None:
    write_policy(tmp_path)
    run = {"scenario": scenario().to_json(), "plan": plan_json}
    with pytest.raises(SchemaMismatch):
        runtime_of_node(run, node(tmp_path))


def test_a_scenario_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    from shared.canonical import canonical_json

    write_policy(tmp_path)
    with pytest.raises(ConfigError):
        runtime_of_node(
            {"scenario": "{}", "plan": canonical_json(plan().to_json())}, node(tmp_path)
        )


def test_a_device_reads_its_own_file_and_no_clients_column(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text(
        "".join(f'{{"note": "word {n}", "owner": "x"}}\n' for n in range(10)), encoding="utf-8"
    )
    config = scenario()
    data = config.data.model_copy(update={"client": "owner", "max_records": 4, "holdout": 0.25})
    source = LocalSource(path=path, config=config.model_copy(update={"data": data}))
    records = source.client(3)
    assert records.name == "client-3"
    assert (len(records.train), len(records.holdout)) == (3, 1)
