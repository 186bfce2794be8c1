"""``fedslm client policy``: what it says is what the device does."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from client.charges import example_charge, unprotected_charge
from client.devicestore import Answer
from client.policy import ClientPolicy
from client.state import DeviceState
from shared.errors import (
    LedgerError,
    MissingDependency,
    ModelNotFound,
    PolicyRefused,
    UnknownKey,
    UsageError,
)
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.ledger_signing import LedgerSigner
from shared.privacy.ledger_store import Head
from simulations.cli import run
from tests.client.device import CLIENT, EXAMPLE, plan, write_policy
from tests.integration.device import demo_digest

SCENARIO = """
[run]
name = "notes"
rounds = 5
[data]
path = "notes.jsonl"
text = "note"
partitioner = "iid"
[clients]
population = 10
local_steps = 2
[privacy]
mode = "example"
neighboring_relation = "add-or-remove-one"
noise_multiplier = 1.0
delta = 1e-4
max_grad_norm = 0.5
clipping_norm = 0.5
sampling_probability = 0.2
"""


def policy(folder: Path, mode: str = "example", **changes: Any) -> str:
    return str(write_policy(folder, mode, **{"base_models": [demo_digest()], **changes}))


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    path = tmp_path / "notes.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    return str(path)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["client", "policy", *arguments, "--json"]) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_check_says_yes_with_what_the_run_would_cost(
    tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "check", policy(tmp_path), scenario)
    assert (found["takes_part"], found["reasons"]) == (True, [])
    assert found["base_digest"] == demo_digest()
    [cost] = found["costs"]
    event = GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=10)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    assert cost["epsilon"] == pytest.approx(epsilon_of(event, delta=1e-5, relation=relation))
    assert (cost["unit"], cost["delta"], cost["releases"]) == ("example", 1e-5, 10)
    assert run(["client", "policy", "check", policy(tmp_path), scenario]) == 0
    shown = capsys.readouterr().out
    assert "would take part" in shown
    assert f"{cost['epsilon']:.4f}" in shown


def test_check_says_no_with_every_reason_and_exit_24(
    tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = {**EXAMPLE, "min_noise_multiplier": 2.0}
    file = policy(tmp_path, example=strict, max_rounds=4, base_models=["0" * 64])
    found = as_json(capsys, "check", file, scenario, code=PolicyRefused.exit_code)
    assert found["takes_part"] is False
    assert found["costs"] == []
    limits = [reason["limit"] for reason in found["reasons"]]
    assert limits == ["base model", "rounds", "example.noise_multiplier"]
    assert run(["client", "policy", "check", file, scenario]) == PolicyRefused.exit_code
    shown = capsys.readouterr().out
    assert "example.noise_multiplier: 1; allowed: at least 2" in shown


def test_check_takes_overrides_and_a_population(
    tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seeded = ["--set", "privacy.noise_source=seeded-simulation"]
    found = as_json(capsys, "check", policy(tmp_path), scenario, *seeded, code=24)
    assert [reason["limit"] for reason in found["reasons"]] == ["noise_source"]
    natural = ["--set", "data.partitioner=natural", "--set", "data.client=owner"]
    text = Path(scenario).read_text(encoding="utf-8").replace("population = 10\n", "")
    Path(scenario).write_text(text, encoding="utf-8")
    arguments = ["client", "policy", "check", policy(tmp_path), scenario, *natural]
    assert run(arguments) == UsageError.exit_code
    assert "--population" in capsys.readouterr().err
    assert run([*arguments, "--population", "30"]) == 0


def test_check_says_that_a_base_model_is_not_here(
    tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["client", "policy", "check", policy(tmp_path), scenario]
    assert run([*arguments, "--set", "model.base=some/model"]) == 0
    assert "its digest was not compared" in capsys.readouterr().err


def test_check_of_mode_none_has_no_costs(
    tmp_path: Path, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = policy(tmp_path, "none", aggregation=["fedavg"])
    found = as_json(capsys, "check", file, scenario, "--set", "privacy.mode=none")
    assert (found["takes_part"], found["costs"]) == (True, [])
    assert as_json(capsys, "show", file)["budgets"] == []
    assert run(["client", "policy", "show", file]) == 0
    assert "NOT PROTECTED" in capsys.readouterr().out


def spend(folder: Path, file: str, *, rounds: int) -> None:
    """Answer some rounds of a run, and see a head of the server's ledger."""
    budget = ClientPolicy.load(Path(file)).example
    assert budget is not None
    with DeviceState(folder) as state:
        for number in range(1, rounds + 1):
            asked = Answer(run_id="run", server_round=number, plan_digest="p", request="r")
            charge = example_charge(plan(), budget)
            state.commit(state.admit(asked, [charge], repeatable=False))
        head = LedgerSigner(b"s" * 32).sign(Head(seq=41, hash="a" * 64))
        state.see_head(head, trusted=None)


def test_show_says_what_is_allowed_spent_and_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = policy(tmp_path, server_key="ab" * 32), tmp_path / "state"
    spend(folder, file, rounds=3)
    found = as_json(capsys, "show", file, "--state", str(folder))
    [budget] = found["budgets"]
    event = GaussianEvent(noise_multiplier=1.0, sampling_probability=0.2, count=6)
    spent = epsilon_of(event, delta=1e-5, relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    assert budget["spent"]["epsilon"] == pytest.approx(spent, rel=0.02)
    assert budget["remaining"] == pytest.approx(8.0 - budget["spent"]["epsilon"])
    assert (budget["releases"], budget["cap"]) == (6, 8.0)
    assert found["state"]["server_heads"] == [
        {"public_key": LedgerSigner(b"s" * 32).public_key, "seq": 41, "hash": "a" * 64}
    ]
    assert (found["state"]["open_reservations"], found["state"]["unprotected"]) == (0, False)
    assert run(["client", "policy", "show", file, "--state", str(folder)]) == 0
    shown = capsys.readouterr().out
    for words in ("One record: epsilon at most 8 at delta 1e-05", "6 releases", "entry 41"):
        assert words in shown


def test_show_without_a_state_says_nothing_about_spending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = as_json(capsys, "show", policy(tmp_path))
    assert found["state"] is None
    assert found["budgets"][0]["spent"] is None
    assert run(["client", "policy", "show", policy(tmp_path)]) == 0
    assert "spent" not in capsys.readouterr().out


def test_show_of_both_units_and_secure_aggregation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = policy(tmp_path, "client-distributed", example=EXAMPLE, seeded_noise=True)
    DeviceState(tmp_path / "state").close()
    assert run(["client", "policy", "show", file, "--state", str(tmp_path / "state")]) == 0
    shown = capsys.readouterr().out
    for words in (
        "One record",
        "All records",
        "at least 4 clients of roster.json",
        "60%",
        "NOBODY",
    ):
        assert words in shown
    found = as_json(capsys, "show", file)
    assert [budget["unit"] for budget in found["budgets"]] == ["example", "client"]
    assert found["secure_aggregation"]["min_cohort"] == 4


def test_show_says_that_records_left_without_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DeviceState(tmp_path / "state") as state:
        asked = Answer(run_id="run", server_round=1, plan_digest="p", request="r")
        state.admit(asked, [unprotected_charge(plan("none"))], repeatable=False)
    file = policy(tmp_path, "client-central", client=CLIENT)
    assert run(["client", "policy", "show", file, "--state", str(tmp_path / "state")]) == 0
    assert "WITHOUT NOISE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["show", "missing.toml"], PolicyRefused),
        (["check", "missing.toml", "quickstart"], PolicyRefused),
        (["base", "./nowhere"], ModelNotFound),
        (["base", "org/model"], ModelNotFound),
    ],
)
def test_what_is_missing_is_one_clear_error(
    arguments: list[str],
    error: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["client", "policy", *arguments]) == error.exit_code  # type: ignore[attr-defined]
    assert capsys.readouterr().err.startswith("error [")


def test_a_state_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["show", policy(tmp_path), "--state", str(tmp_path / "none")]
    assert run(["client", "policy", *arguments]) == LedgerError.exit_code
    assert not (tmp_path / "none").exists()
    assert "no device state" in capsys.readouterr().err


def test_a_wrong_policy_names_all_problems_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = policy(tmp_path, max_round=3, modes=[])
    found = as_json(capsys, "show", file, code=UnknownKey.exit_code)
    assert {problem["key"] for problem in found["problems"]} == {"max_round", "modes"}


def test_init_writes_a_policy_that_allows_nothing_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "mine.toml")
    assert run(["client", "policy", "init", path]) == 0
    assert run(["client", "policy", "show", path]) == 12
    assert run(["client", "policy", "init", path]) == UsageError.exit_code
    assert "exists already" in capsys.readouterr().err


def test_base_prints_the_digest_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["client", "policy", "base", "demo"]) == 0
    assert capsys.readouterr().out.strip() == demo_digest()
    assert as_json(capsys, "base", "demo") == {"base": "demo", "digest": demo_digest()}


def _stdin(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stream)


def test_redact_and_restore_by_a_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the extra `query`")
    path = str(tmp_path / "map.json")
    query = "Hello, my name is Ingeborg Lund, write to i.lund@example.org.\n"
    _stdin(monkeypatch, query)
    assert run(["client", "redact", "--map", path]) == 0
    sent, said = capsys.readouterr()
    assert sent == "Hello, my name is <PERSON_1>, write to <EMAIL_ADDRESS_1>.\n"
    assert said == "Taken out: EMAIL_ADDRESS 1, PERSON 1.\n"
    _stdin(monkeypatch, "Dear <person_1>, <PERSON_7> is unknown.\n")
    assert run(["client", "redact", "--restore", path]) == 0
    answer, said = capsys.readouterr()
    assert answer == "Dear Ingeborg Lund, <PERSON_7> is unknown.\n"
    assert "<EMAIL_ADDRESS_1>" in said
    assert "<PERSON_7>" in said
    _stdin(monkeypatch, sent)
    assert run(["client", "redact", "--restore", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["missing"], found["unknown"]) == (query, [], [])


def test_a_redacted_conversation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the extra `query`")
    for text, expected in (("I am Ingeborg Lund.", "<PERSON_1>"), ("I am Jan Maas.", "<PERSON_2>")):
        _stdin(monkeypatch, text)
        assert run(["client", "redact", "--map", str(tmp_path / "map.json"), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"text": f"I am {expected}.", "found": {"PERSON": 1}}


def test_redact_says_that_nothing_can_be_put_back_without_a_map(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("presidio_analyzer", reason="needs the extra `query`")
    _stdin(monkeypatch, "Ann Lee: ann@example.org")
    assert run(["client", "redact", "--kind", "EMAIL_ADDRESS"]) == 0
    sent, said = capsys.readouterr()
    assert sent == "Ann Lee: <EMAIL_ADDRESS_1>"
    assert "nothing of it can be put back" in said


def test_redact_either_redacts_or_restores(tmp_path: Path) -> None:
    path = str(tmp_path / "map.json")
    assert run(["client", "redact", "--restore", path, "--map", path]) == UsageError.exit_code


def test_redact_reads_utf8_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"I am \xff")))
    assert run(["client", "redact"]) == UsageError.exit_code
    assert "not UTF-8" in capsys.readouterr().err


def test_redact_without_its_extra_gives_the_install_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from client.redaction import default_redactor

    default_redactor.cache_clear()
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    _stdin(monkeypatch, "I am Ann.")
    assert run(["client", "redact"]) == MissingDependency.exit_code
    assert "pip install 'fedslm[query]'" in capsys.readouterr().err
