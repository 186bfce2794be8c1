"""``fedslm plan``: tables and JSON that agree, and one clear error for what cannot be planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared import errors
from simulations.catalog import open_scenario
from simulations.cli import run
from simulations.planranks import mixed_lines
from simulations.planreport import changed
from tests.shared.deviceshapes import DEMO, spec_of
from tests.shared.test_devices import GOOD

FLEET = ["plan", "fleet"]


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_the_json_says_every_setting_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *FLEET, "--device", "phone-mid", "--max-seconds", "3")
    rows = {row["key"]: row for row in found["settings"]}
    assert set(rows) == {
        "lora.r",
        "data.max_length",
        "clients.local_steps",
        "model.quantization",
        "performance.cache_dequantized",
        "performance.clipper",
        "performance.physical_batch",
    }
    assert found["set"] == ["model.quantization=int4"]
    assert rows["model.quantization"]["privacy"].startswith("none")
    (proposed,) = found["proposed"]
    assert proposed == f"clients.local_steps={rows['clients.local_steps']['chosen']}"
    assert "noise multiplier 0.787 to" in rows["clients.local_steps"]["privacy"]
    estimate = found["estimate"]
    assert estimate["round_seconds"] <= 3
    assert estimate["memory_bytes"] == sum(estimate["memory_of"].values())
    levers = {tuple(row["set"]): row["privacy"] for row in found["levers"]}
    assert levers[("lora.r=2",)] == "the plan stays what it is"
    halved = ("clients.batch_size=8", "privacy.sampling_probability=0.065")
    assert "noise multiplier 0.787 to" in levers[halved]


def test_what_is_printed_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *FLEET, "--device", "phone-mid", "--max-seconds", "0.8")
    lines = [*found["set"], *found["proposed"]]
    arguments = [part for line in lines for part in ("--set", line)]
    again = as_json(capsys, *FLEET, "--device", "phone-mid", "--max-seconds", "0.8", *arguments)
    assert (again["set"], again["proposed"]) == ([], [])
    assert again["estimate"] == found["estimate"]


def test_the_tables_say_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FLEET, "--device", "jetson"]) == 0
    text = capsys.readouterr().out
    found = as_json(capsys, *FLEET, "--device", "jetson")
    assert f"{found['estimate']['bytes_up']:,} bytes" in text
    assert "the scenario fits as it is" in text
    assert "server.deadline_seconds" in text
    for row in found["settings"]:
        assert row["key"] in text


def test_a_profile_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(f'name = "box"\n{GOOD}', encoding="utf-8")
    found = as_json(capsys, *FLEET, "--device", "custom", "--profile", str(path))
    assert found["device"] == "box"
    assert found["macs_per_second"] == 1e10


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--device", "pi4"], errors.UsageError),
        ([], errors.UsageError),
        (["--device", "custom"], errors.UsageError),
        (["--device", "pi5", "--profile", "x.toml"], errors.UsageError),
        (["--device", "pi5", "--measure"], errors.UsageError),
        (["--device", "pi5", "--max-seconds", "nan"], errors.UsageError),
        (["--device", "pi5", "--rounds-per-day", "0"], errors.UsageError),
        (["--device", "custom", "--profile", "none.toml"], errors.InvalidValue),
        (["--device", "pi5", "--max-seconds", "1e-9"], errors.ConflictingSettings),
        (["--device", "pi5", "--set", "lora.r=0"], errors.InvalidValue),
    ],
)
def test_bad_input_is_one_error(
    arguments: list[str], error: type[errors.FedSLMError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*FLEET, *arguments, "--json"]) == error.exit_code
    out, _ = capsys.readouterr()
    assert json.loads(out)["error"] == error.code


def test_a_change_is_checked_like_any_scenario() -> None:
    config = open_scenario("fleet", []).config
    assert changed(config, []) == config
    with pytest.raises(errors.ConfigError):
        changed(config, ["lora.r=0"])


def test_a_population_that_comes_with_the_data_is_not_guessed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = as_json(capsys, "plan", "shakespeare", "--device", "laptop")
    assert all(row["privacy"] for row in found["levers"])


@pytest.mark.slow
def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, *FLEET, "--device", "laptop", "--measure")
    assert 1e8 < found["macs_per_second"] < 1e13
    assert found["profile"]["sources"]["macs_per_second"].startswith("measured here")
    assert found["profile"]["memory_mib"] > 467


MIX = ["plan", "fleet", "--mix", "--set", 'devices.mix={pi5 = 0.5, "phone-mid" = 0.5}']


def test_a_mix_says_what_all_share_and_who_is_waited_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = as_json(capsys, *MIX, "--max-seconds", "6")
    assert found["shared"] == ["clients.local_steps=3", "model.quantization=int4"]
    assert found["privacy"].startswith("noise multiplier 0.787 to")
    assert found["slowest"] == "phone-mid"
    assert found["round_seconds"] <= 6
    assert sum(row["clients"] for row in found["devices"]) == 5
    # The clock that it proposes is one that the scenario takes.
    clock = open_scenario("fleet", found["clock"]).config.clock
    assert clock.shares == (0.5, 0.5)
    assert clock.step_seconds[1] > clock.step_seconds[0]
    assert run([*MIX, "--max-seconds", "6"]) == 0
    text = capsys.readouterr().out
    assert "a round waits for phone-mid" in text
    assert "--set clients.local_steps=3" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([*MIX, "--device", "pi5"], errors.UsageError),
        ([*MIX, "--measure"], errors.UsageError),
        (["plan", "fleet", "--mix"], errors.ConflictingSettings),
        ([*MIX, "--max-seconds", "0.01"], errors.ConflictingSettings),
        (["plan", "fleet", "--mix", "--set", 'devices.mix=["pi6"]'], errors.InvalidValue),
    ],
)
def test_a_mix_that_cannot_be_planned_is_one_error(
    arguments: list[str], error: type[errors.FedSLMError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--json"]) == error.exit_code
    assert json.loads(capsys.readouterr().out)["error"] == error.code


def test_a_rank_of_its_own_is_printed_and_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """A limit between what the round costs at the scenario's rank and at half of it."""
    scenario = [*FLEET, "--set", "devices.mix={pi5 = 0.5, phone-mid = 0.5}"]
    alone = as_json(capsys, *scenario, "--device", "phone-mid")
    thin = next(row for row in alone["levers"] if row["set"] == ["lora.r=2"])
    limit = str(thin["round_seconds"] * 1.0001)
    found = as_json(capsys, *scenario, "--device", "phone-mid", "--max-seconds", limit)
    assert found["rank"] == {"rank": 2, "of": 4, "set": "devices.ranks={phone-mid = 2}"}
    fleet = as_json(capsys, *scenario, "--mix", "--max-seconds", limit)
    assert {row["device"]: row["rank"] for row in fleet["devices"]} == {"pi5": 4, "phone-mid": 2}
    assert fleet["privacy"] == "the plan stays what it is"
    assert "devices.ranks={phone-mid = 2}" in fleet["shared"]
    assert run([*scenario, "--mix", "--max-seconds", limit]) == 0
    assert "--set 'devices.ranks={phone-mid = 2}'" in capsys.readouterr().out
    assert run([*scenario, "--device", "phone-mid", "--max-seconds", limit]) == 0
    told = capsys.readouterr().out
    assert "rank 2 of 4; for this device alone: --set 'devices.ranks={phone-mid = 2}'" in told
    said = scenario[1], ["devices.mix={pi5 = 0.5, phone-mid = 0.5}", *fleet["shared"]]
    assert open_scenario(*said).config.devices.ranks == {"phone-mid": 2}


def test_a_largest_rank_that_nobody_bears_is_lowered_for_all() -> None:
    config = open_scenario("fleet", ["devices.mix={pi5 = 0.5, phone-mid = 0.5}"]).config
    spec = spec_of(DEMO.linears, config.lora.r)
    lines = mixed_lines(config, spec, {"pi5": 2, "phone-mid": 1})
    assert lines == [
        "lora.r=2",
        f"lora.alpha={spec.lora_alpha / 2}",
        "devices.ranks={phone-mid = 1}",
    ]
    assert mixed_lines(config, spec, {"pi5": 4, "phone-mid": 4}) == []
