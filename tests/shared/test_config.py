"""Scenarios: precedence, origins, digests, and one clear error for every kind of bad input."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from shared.config import RunConfig, sections
from shared.configfile import load_config, parse_json, parse_override, resolve
from shared.errors import (
    ConfigError,
    ConflictingSettings,
    EmptyPopulation,
    InvalidValue,
    UnknownKey,
)
from simulations.catalog import scenarios

MINIMAL = """
[run]
name = "t"
rounds = 3
[data]
path = "builtin:clinics"
[clients]
population = 10
local_steps = 1
[privacy]
mode = "client-central"
neighboring_relation = "add-or-remove-one"
epsilon = 4.0
delta = 1e-3
clipping_norm = 1.0
"""


def write(tmp_path: Path, text: str = MINIMAL) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_set_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    resolved = load_config(write(tmp_path), ["run.rounds=5", "lora.r=2"])
    assert resolved.config.run.rounds == 5
    assert resolved.origins["run.rounds"] == "--set"
    assert resolved.origins["run.name"] == "file"
    assert "run.seed" not in resolved.origins
    text = resolved.to_toml()
    assert "rounds = 5  # --set" in text
    assert "seed = 0  # default" in text


def test_the_written_config_reads_back_to_the_same_scenario(tmp_path: Path) -> None:
    resolved = load_config(write(tmp_path), ['data.template="a {prompt} \\"b\\" {response}"'])
    again = load_config(write(tmp_path, resolved.to_toml()))
    assert again.config == resolved.config
    assert again.config.digest() == resolved.config.digest()


def test_json_form_reads_back(tmp_path: Path) -> None:
    config = load_config(write(tmp_path)).config
    assert parse_json(config.to_json()) == config
    for bad in ("[]", "{", '{"run": 3}'):
        with pytest.raises(ConfigError):
            parse_json(bad)


def test_only_performance_is_outside_the_digest(tmp_path: Path) -> None:
    path = write(tmp_path)
    base = load_config(path).config
    assert load_config(path, ["performance.physical_batch=1"]).config.digest() == base.digest()
    on_gpus = load_config(path, ["performance.device=cuda", "performance.client_gpus=0.5"])
    assert on_gpus.config.digest() == base.digest()
    for change in ("run.seed=1", "privacy.delta=1e-4", "lora.r=5", "evaluation.every=2"):
        assert load_config(path, [change]).config.digest() != base.digest()


@pytest.mark.parametrize(
    ("override", "error", "needle"),
    [
        ("lora.rr=4", UnknownKey, "Did you mean 'r'?"),
        ("privacy.quantization=nf4", UnknownKey, "Did you mean 'model.quantization'?"),
        ("privcy.mode=none", UnknownKey, "Did you mean 'privacy'?"),
        ("privacy.epsilon=nan", InvalidValue, "privacy.epsilon"),
        ("privacy.epsilon=inf", InvalidValue, "privacy.epsilon"),
        ("privacy.epsilon=-1.0", InvalidValue, "privacy.epsilon"),
        ("privacy.epsilon=true", InvalidValue, "privacy.epsilon"),
        ('privacy.epsilon="4"', InvalidValue, "privacy.epsilon"),
        ("privacy.delta=0.0", InvalidValue, "privacy.delta"),
        ("privacy.delta=1.0", InvalidValue, "privacy.delta"),
        ("run.rounds=0", InvalidValue, "run.rounds"),
        ("clients.population=0", EmptyPopulation, "at least 1"),
        ("clients.cohort=11.0", InvalidValue, "at most population"),
        ("privacy.noise_multiplier=1.0", ConflictingSettings, "exactly one"),
        ("clients.local_epochs=1.0", ConflictingSettings, "exactly one"),
        ("clients.max_participations=2", ConflictingSettings, "independent sampling"),
        ("performance.client_gpus=0.5", ConflictingSettings, "nothing computes on"),
        ("performance.client_gpus=1.5", ConflictingSettings, "a whole number"),
        ("performance.client_gpus=-0.5", InvalidValue, "performance.client_gpus"),
    ],
)
def test_bad_values_are_one_clear_error(
    tmp_path: Path, override: str, error: type[ConfigError], needle: str
) -> None:
    with pytest.raises(error) as caught:
        load_config(write(tmp_path), [override])
    assert type(caught.value) is error
    assert needle in str(caught.value)
    assert caught.value.problems


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnknownKey) as caught:
        load_config(write(tmp_path), ["lora.rr=4", "privacy.delta=2.0", "run.rounds=0"])
    assert {p.key for p in caught.value.problems} == {"lora.rr", "privacy.delta", "run.rounds"}
    assert len(caught.value.to_dict()["problems"]) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["epsilon", "delta", "neighboring_relation", "clipping_norm"])
def test_privacy_has_no_defaults(key: str) -> None:
    tables = tomllib.loads(MINIMAL)
    del tables["privacy"][key]
    with pytest.raises(ConflictingSettings, match=rf"privacy\.{key}"):
        resolve(tables, source="test")


def test_mode_has_no_default() -> None:
    tables = tomllib.loads(MINIMAL)
    del tables["privacy"]["mode"]
    with pytest.raises(InvalidValue, match=r"privacy\.mode: is missing"):
        resolve(tables, source="test")


def test_mode_example_wants_its_own_settings() -> None:
    with pytest.raises(ConflictingSettings, match="max_grad_norm"):
        resolve(tomllib.loads(MINIMAL), ["privacy.mode=example"], source="test")


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda s: s.name)
def test_one_override_makes_the_non_private_twin(scenario: object) -> None:
    path = scenario.path  # type: ignore[attr-defined]
    private = load_config(path).config
    twin = load_config(path, ["privacy.mode=none"]).config
    assert twin.privacy.mode == "none"
    different = {name for name in sections() if getattr(private, name) != getattr(twin, name)}
    assert different <= {"privacy"}
    assert private.policy == twin.policy
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith(f"# fedslm simulate {path.stem}")
    assert second.startswith("# ")


@pytest.mark.parametrize("text", ["", "x", "x=1", "a.b.c=1", ".b=1", "a.=1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(InvalidValue, match=r"section\.key=value"):
        parse_override(text)


def test_overrides_are_toml_or_bare_words() -> None:
    assert parse_override("a.b=[1, 2]") == ("a.b", [1, 2])
    assert parse_override("a.b=none") == ("a.b", "none")
    assert parse_override("a.b=1e-5") == ("a.b", 1e-5)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "missing.toml")
    with pytest.raises(InvalidValue, match="not valid TOML"):
        load_config(write(tmp_path, "run = ["))
    with pytest.raises(ConfigError, match=r"expected a \[section\]"):
        load_config(write(tmp_path, "run = 3\n" + MINIMAL.replace("[run]", "[other]")))


def test_models_refuse_what_is_not_declared() -> None:
    for model in sections().values():
        assert model.model_config["extra"] == "forbid"
        assert model.model_config["frozen"] is True
        assert model.model_config["allow_inf_nan"] is False
    json.dumps(RunConfig.model_json_schema())


DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.8",
    "privacy.min_cohort=4",
)
STEPS = (
    "example.neighboring_relation=add-or-remove-one",
    "example.epsilon=2.0",
    "example.delta=1e-4",
    "example.max_grad_norm=0.5",
    "example.sampling_probability=0.2",
)


@pytest.mark.parametrize("key", ["honest_fraction", "survivor_fraction", "min_cohort"])
def test_the_terms_of_distributed_noise_have_no_defaults(key: str) -> None:
    said = [setting for setting in DISTRIBUTED if key not in setting]
    with pytest.raises(ConflictingSettings, match=rf"privacy\.{key}"):
        resolve(tomllib.loads(MINIMAL), said, source="test")
    config = resolve(tomllib.loads(MINIMAL), DISTRIBUTED, source="test").config
    assert config.privacy.mode == "client-distributed"


def test_a_sum_over_two_clients_is_not_a_setting() -> None:
    with pytest.raises(InvalidValue, match=r"privacy\.min_cohort"):
        resolve(tomllib.loads(MINIMAL), [*DISTRIBUTED, "privacy.min_cohort=2"], source="test")


@pytest.mark.parametrize("mode", [(), DISTRIBUTED])
def test_dp_sgd_goes_beside_either_client_mode(mode: tuple[str, ...]) -> None:
    config = resolve(tomllib.loads(MINIMAL), [*mode, *STEPS], source="test").config
    assert config.steps_are_private
    assert not resolve(tomllib.loads(MINIMAL), mode, source="test").config.steps_are_private


@pytest.mark.parametrize("key", [setting.split("=")[0] for setting in STEPS])
def test_dp_sgd_beside_a_client_mode_has_no_defaults(key: str) -> None:
    said = [setting for setting in STEPS if not setting.startswith(f"{key}=")]
    with pytest.raises(ConflictingSettings, match=key.replace(".", r"\.")):
        resolve(tomllib.loads(MINIMAL), said, source="test")


def test_dp_sgd_is_said_once() -> None:
    tables = tomllib.loads(MINIMAL)
    settings = ["privacy.mode=example", "privacy.max_grad_norm=1.0", *STEPS]
    with pytest.raises(ConflictingSettings, match=r"\[privacy\], not in \[example\]"):
        resolve(tables, [*settings, "privacy.sampling_probability=0.1"], source="test")


def test_mode_none_ignores_the_other_guarantee_too() -> None:
    config = resolve(tomllib.loads(MINIMAL), ["privacy.mode=none", *STEPS], source="test").config
    assert not config.steps_are_private


@pytest.mark.parametrize("extra", ["privacy.mechanism=correlated", "privacy.clipping_quantile=0.5"])
def test_what_the_server_does_on_updates_needs_a_server_that_sees_them(extra: str) -> None:
    with pytest.raises(
        ConflictingSettings, match="cannot be used together with client-distributed"
    ):
        resolve(tomllib.loads(MINIMAL), [*DISTRIBUTED, extra], source="test")
    assert resolve(tomllib.loads(MINIMAL), [extra], source="test").config.privacy.epsilon == 4.0


def test_only_an_untrusted_server_has_a_figure() -> None:
    with pytest.raises(ConflictingSettings, match="trusted"):
        resolve(tomllib.loads(MINIMAL), ["privacy.server_epsilon=9.0"], source="test")
    both = [*DISTRIBUTED, "privacy.server_epsilon=9.0"]
    assert resolve(tomllib.loads(MINIMAL), both, source="test").config.privacy.server_epsilon == 9.0


def test_one_clip_holds_for_a_run_of_correlated_noise() -> None:
    both = ["privacy.mechanism=correlated", "privacy.clipping_quantile=0.5"]
    with pytest.raises(ConflictingSettings, match="one clip holds"):
        resolve(tomllib.loads(MINIMAL), both, source="test")
