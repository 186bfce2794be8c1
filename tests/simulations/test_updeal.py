"""What ``fedslm up`` deals: scenarios for real nodes, records, and policies that fit, just."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.policy import ClientPolicy
from shared.errors import ConflictingSettings, UsageError
from shared.privacy.plan import PrivacyPlan
from shared.scenarioplan import plan_of
from simulations.assemble import open_clients
from simulations.updeal import RECORDS, DealtDataset, deal, fleet_scenario, policy_for

BASE = "ab" * 32


def test_the_fleet_scenario_needs_no_change_but_its_size() -> None:
    made = fleet_scenario("fleet", [], nodes=3, rounds=None)
    assert made.notes == ()
    assert made.resolved.config.clients.population == 3
    assert made.resolved.config.run.rounds == 5


def test_what_only_a_simulation_can_do_is_taken_out_and_said() -> None:
    made = fleet_scenario("quickstart", [], nodes=4, rounds=2)
    config = made.resolved.config
    assert (config.clients.population, config.clients.cohort, config.run.rounds) == (4, 4.0, 2)
    assert (config.audit.canaries, config.privacy.noise_source) == (0, "os-entropy")
    assert config.data.text == "text"
    assert len(made.notes) == 3


def test_the_distributed_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="identity keys"):
        fleet_scenario("quickstart-distributed", [], nodes=5, rounds=None)


CLOCK = (
    "clock.shares=[1.0]",
    "clock.step_seconds=[1.0]",
    "clock.upload=[1e5]",
    "clock.download=[1e5]",
)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (CLOCK, "time is simulated"),
        (("attack.kind=sign-flip", "attack.share=0.2"), "attackers are simulated"),
    ],
)
def test_what_cannot_be_taken_out_is_refused_before_anything_is_made(
    said: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ConflictingSettings, match=why):
        fleet_scenario("fleet", said, nodes=3, rounds=1)


@pytest.mark.parametrize(
    "said",
    [
        ("link.up=topk", "link.down=delta", "link.entropy=true"),
        ("clients.cohort=2.0", "server.over_selection=1.5"),
        ("clients.schedule=cosine", "privacy.noise_schedule=linear", "privacy.noise_final=0.9"),
        ("aggregation.policy=rolora",),
        ("devices.mix=['pi5']",),
    ],
)
def test_what_a_simulation_takes_a_fleet_takes_too(said: tuple[str, ...]) -> None:
    assert fleet_scenario("fleet", said, nodes=3, rounds=2).notes == ()


def test_personal_steps_are_the_owners_to_take() -> None:
    (note,) = fleet_scenario("fleet", ["personal.steps=4"], nodes=3, rounds=1).notes
    assert "fedslm client personalise" in note


def test_classes_are_dealt_with_their_texts(tmp_path: Path) -> None:
    rows = [{"said": f"text {n}", "kind": ("card", "loan")[n % 2]} for n in range(8)]
    source = tmp_path / "intents.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scenario = tmp_path / "intents.toml"
    scenario.write_text(
        '[run]\nname = "intents"\nrounds = 1\n[model]\nbase = "encoder"\n[task]\n'
        'kind = "classification"\nlabels = ["card", "loan"]\n[data]\npath = "intents.jsonl"\n'
        'text = "said"\nlabel = "kind"\npartitioner = "iid"\nholdout = 0.25\n[clients]\n'
        'local_steps = 1\n[privacy]\nmode = "none"\n[audit]\nprofile = "none"\n',
        encoding="utf-8",
    )
    config = fleet_scenario(str(scenario), [], nodes=2, rounds=None).resolved.config
    dataset, _ = open_clients(config, base_dir=tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir(mode=0o700)
    deal(dataset, config, folders)
    found = [
        json.loads(line)
        for folder in folders
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(found, key=lambda row: str(row["said"])) == rows
    dealt = DealtDataset(
        files=tuple(folder / RECORDS for folder in folders), config=config, facts={}
    )
    assert {record.label for record in dealt.client(0).train} <= {"card", "loan"}


def test_every_record_of_a_client_lies_on_its_device_once(tmp_path: Path) -> None:
    config = fleet_scenario("fleet", ["data.records=9"], nodes=2, rounds=1).resolved.config
    dataset, _ = open_clients(config, base_dir=tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir(mode=0o700)
    deal(dataset, config, folders)
    dealt = DealtDataset(
        files=tuple(folder / RECORDS for folder in folders), config=config, facts={"source": "x"}
    )
    assert dealt.population == 2
    assert dealt.describe() == {"source": "x"}
    for index, folder in enumerate(folders):
        lines = (folder / RECORDS).read_text(encoding="utf-8").splitlines()
        given, read = dataset.client(index), dealt.client(index)
        expected = sorted(str(record.text) for record in (*given.train, *given.holdout))
        assert sorted(json.loads(line)["text"] for line in lines) == expected
        assert sorted(str(r.text) for r in (*read.train, *read.holdout)) == expected
        assert not {r.text for r in read.train} & {r.text for r in read.holdout}
        assert (folder / RECORDS).stat().st_mode & 0o777 == 0o600


def test_prompts_and_responses_keep_their_columns(tmp_path: Path) -> None:
    rows = [{"q": f"question {n}", "a": f"answer {n}"} for n in range(6)]
    source = tmp_path / "qa.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scenario = tmp_path / "qa.toml"
    scenario.write_text(
        '[run]\nname = "qa"\nrounds = 1\n[data]\npath = "qa.jsonl"\nprompt = "q"\n'
        'response = "a"\npartitioner = "iid"\n[clients]\nlocal_steps = 1\n'
        '[privacy]\nmode = "none"\n',
        encoding="utf-8",
    )
    config = fleet_scenario(str(scenario), [], nodes=2, rounds=None).resolved.config
    dataset, _ = open_clients(config, base_dir=tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir(mode=0o700)
    deal(dataset, config, folders)
    found = [
        json.loads(line)
        for folder in folders
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(found, key=lambda row: str(row["q"])) == rows


@pytest.mark.parametrize(
    ("scenario", "overrides"),
    [
        ("fleet", []),
        ("quickstart", []),
        ("quickstart", ["privacy.mode='none'"]),
        ("quickstart", ["privacy.neighboring_relation='replace-one'"]),
        ("fleet", ["buffer.size=2", "buffer.concurrency=3"]),
    ],
)
def test_a_policy_allows_its_own_plan_and_not_one_round_or_bit_of_noise_less(
    tmp_path: Path, scenario: str, overrides: list[str]
) -> None:
    said = [text.replace("'", '"') for text in overrides]
    config = fleet_scenario(scenario, said, nodes=3, rounds=2).resolved.config
    plan = plan_of(config, population=3)
    path = tmp_path / "policy.toml"
    path.write_text(policy_for(plan, config, base_digest=BASE, server_key="cd" * 32))
    policy = ClientPolicy.load(path)
    policy.check(plan, config, base_digest=BASE)
    assert policy.server_key == (None if plan.mode == "none" else "cd" * 32)
    assert policy.refusals(_longer(plan), config, base_digest=BASE)
    if plan.noise_multiplier is not None:
        quieter = replace(plan, noise_multiplier=plan.noise_multiplier * 0.99)
        assert policy.refusals(quieter, config, base_digest=BASE)


def _longer(plan: PrivacyPlan) -> PrivacyPlan:
    """Return the plan with one round more."""
    return replace(plan, rounds=plan.rounds + 1)
