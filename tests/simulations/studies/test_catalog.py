"""The studies themselves: every arm is a valid scenario, and arms differ in what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import simulations.studies as package
from shared.configfile import load_config
from shared.errors import InvalidValue
from shared.scenarioplan import plan_of
from simulations.basepath import ASSETS
from simulations.studies.catalog import MODULES, studies, study
from simulations.studies.leakage_utility import EPSILONS
from simulations.studies.protocol import Arm
from simulations.studies.running import resolve_arm
from simulations.studies.targets import RANKS
from simulations.study_cli import study_app

FOLDER = Path(package.__file__).parent


def test_every_scenario_file_has_a_study_and_the_other_way_round() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(MODULES)
    assert [item.name for item in studies()] == list(MODULES) == sorted(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_scenario_file_says_its_command_and_what_it_is(name: str) -> None:
    first, second = study(name).scenario.read_text(encoding="utf-8").splitlines()[:2]
    assert first == f"# fedslm simulate simulations/studies/{name}.toml"
    assert second.startswith("# ")
    assert second.endswith(".")
    assert load_config(study(name).scenario).config.run.name == name


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_every_arm_with_every_seed_is_a_scenario_of_its_own(name: str, quick: bool) -> None:
    item = study(name)
    arms = item.arms(quick)
    assert len({arm.name for arm in arms}) == len({arm.label for arm in arms}) == len(arms)
    digests = set()
    for arm in arms:
        base = None if arm.shape is None else f"bases/{arm.shape.name}"
        for number in (0, 1):
            config = resolve_arm(item, arm, quick=quick, number=number, base=base).config
            digests.add(config.digest())
            assert config.run.seed == 7 + number
            assert config.audit.profile == "none"
            # One canary a client at most: bounds need each canary to be a client of its own.
            population = config.clients.population or 0
            assert config.audit.canaries * len(config.audit.kinds) <= population
    assert len(digests) == 2 * len(arms)


def test_choices_of_targets_train_as_many_parameters_within_four_percent() -> None:
    shape = json.loads((ASSETS / "demo" / "config.json").read_text(encoding="utf-8"))
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    # Under ffa only B is trained: rank times the outputs of each target.
    outputs = {"attention": 2 * width + 2 * keys, "mlp": 2 * inner + width}
    outputs["both"] = outputs["attention"] + outputs["mlp"]
    counts = [RANKS[name] * outputs[name] for name in RANKS]
    assert max(counts) <= 1.04 * min(counts)
    for arm in study("targets").arms(False):
        config = resolve_arm(study("targets"), arm, quick=False, number=0, base=None).config
        assert config.policy == "ffa"
        assert config.lora.alpha / config.lora.r == 2.0


def test_an_epsilon_is_left_out_where_noise_is_given_and_the_rest_stays() -> None:
    item = study("leakage-utility")
    found = {
        arm.name: resolve_arm(item, arm, quick=False, number=0, base=None).config
        for arm in item.arms(False)
    }
    assert found["none"].privacy.mode == "none"
    assert found["clip"].privacy.epsilon is None
    assert found["clip"].privacy.noise_multiplier == 0.01
    assert [found[f"epsilon-{e:g}"].privacy.epsilon for e in EPSILONS] == list(EPSILONS)
    assert {config.policy for config in found.values()} == {"ffa"}
    assert plan_of(found["clip"], population=300).clipping_norm == 0.5


@pytest.mark.parametrize("name", ["Upper", "a b", "../x", "", "a--b", "x\n"])
def test_a_name_that_would_make_an_odd_folder_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="hyphens"):
        Arm(name=name, label="x")


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(InvalidValue, match="expected one of") as caught:
        study("model-sise")
    assert "model-size" in caught.value.hint


def test_list_names_each_with_its_question() -> None:
    told = CliRunner().invoke(study_app, ["list"]).stdout
    listed = json.loads(CliRunner().invoke(study_app, ["list", "--json"]).stdout)["studies"]
    assert [entry["name"] for entry in listed] == list(MODULES)
    assert all(entry["question"] in told for entry in listed)
