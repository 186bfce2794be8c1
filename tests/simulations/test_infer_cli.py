"""``fedslm client infer`` and the registry's commands, as a person would run them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from client.home import DeviceHome, NodeConfig
from server.home import ServerConfig, ServerHome
from server.registry import server_registry
from shared.crypto import SigningKey
from shared.errors import (
    AdapterError,
    AdapterUntrusted,
    ConfigError,
    FleetError,
    ReleaseRefused,
    RunFolderExists,
    UsageError,
)
from shared.manifest import REPORT, WEIGHTS
from simulations import fetch_cli
from simulations.infer_cli import add_commands
from tests.adapterkit import STRANGER, add, report_about, write_folder

adapter_app, client_app = typer.Typer(), typer.Typer()
add_commands(adapter_app, client_app)
fetch_cli.add_commands(client_app)
client_app.callback()(lambda: None)


def command(app: typer.Typer, *arguments: object, stdin: str = "", code: int = 0) -> str:
    """Run a command and return its stdout; an error of ours is raised."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return str(done.stdout)


def adapter(*arguments: object, code: int = 0) -> str:
    return command(adapter_app, *arguments, code=code)


def as_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(adapter(*arguments, "--json"))
    return found


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A server's folder with three versions, the first of them in use."""
    home = ServerHome.create(tmp_path / "server", ServerConfig(name="test"))
    registry = server_registry(home)
    for seed in (1, 2, 3):
        add(registry, tmp_path / f"a{seed}", seed)
    registry.promote(registry.versions()[-1].digest)
    return home.path


def digests(server: Path) -> list[str]:
    """Return the digests, oldest first."""
    return [found["digest"] for found in as_json("list", server)["adapters"]][::-1]


def test_versions_are_listed_and_shown_with_every_number_an_epsilon_needs(server: Path) -> None:
    lines = adapter("list", server).splitlines()
    assert len(lines) == 3
    assert "current" in lines[2]
    assert lines[0].split()[1:4] == ["3", "registered", "consistent"]
    digest = digests(server)[0]
    shown = adapter("show", server, digest[:8])
    assert digest in shown
    assert "epsilon 3.0000 at delta 1e-05, per client, add-or-remove-one" in shown
    assert WEIGHTS in shown
    assert as_json("show", server, digest)["manifest"]["sequence"] == 1


def test_promote_and_rollback(server: Path) -> None:
    one, two, three = digests(server)
    assert "in use" in adapter("promote", server, two)
    assert as_json("promote", server, three)["state"] == "current"
    assert as_json("rollback", server)["digest"] == two
    assert as_json("rollback", server)["digest"] == one
    with pytest.raises(AdapterError, match="expected one before"):
        adapter("rollback", server)


def test_a_prefix_names_one_version_or_none(server: Path) -> None:
    with pytest.raises(UsageError, match="8 digits at least"):
        adapter("show", server, "abc")
    with pytest.raises(AdapterError, match="0 adapters begin"):
        adapter("promote", server, "0" * 64)


def test_a_run_is_added_and_a_violation_only_as_evidence(server: Path, tmp_path: Path) -> None:
    run = tmp_path / "run-7"
    weights = write_folder(run / "adapter", 9)
    (run / REPORT).write_text(json.dumps(report_about(weights, "violation")))
    with pytest.raises(ReleaseRefused, match="--withheld"):
        adapter("add", server, run)
    found = as_json("add", server, run, "--withheld", "--name", "bad")
    assert (found["state"], found["manifest"]["name"]) == ("withheld", "bad")
    with pytest.raises(ReleaseRefused, match="is withheld"):
        adapter("promote", server, found["digest"])


def test_verify_says_what_is_wrong_and_exits_1(server: Path) -> None:
    assert "3 versions, 1 orders" in adapter("verify", server)
    assert as_json("verify", server)["holds"] is True
    path = next((server / "adapters" / "versions").iterdir())
    path.write_text("{}")
    assert "problem: " in adapter("verify", server, code=1)


def test_an_auditor_verifies_with_the_public_key_alone(server: Path) -> None:
    key = SigningKey.load_or_create(server / "keys" / "adapter.key")
    registry = server / "adapters"
    assert "3 versions" in adapter("verify", registry, "--public-key", key.public_key)
    adapter("verify", registry, "--public-key", STRANGER.public_key, code=1)
    with pytest.raises(UsageError, match="is not here"):
        adapter("list", registry)
    assert len(as_json("list", registry, "--key", server / "keys" / "adapter.key")["adapters"]) == 3


def test_export_writes_a_folder_once(server: Path, tmp_path: Path) -> None:
    digest = digests(server)[0]
    adapter("export", server, digest, "--to", tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "a1" / WEIGHTS).read_bytes()
    with pytest.raises(RunFolderExists):
        adapter("export", server, digest, "--to", tmp_path / "out")


def test_clean_forgets_versions_and_frees_their_files(server: Path) -> None:
    assert as_json("clean", server) == {"blobs": 0, "strangers": 0, "bytes": 0}
    one, two, _ = digests(server)
    assert as_json("clean", server, "--remove", two)["blobs"] == 3
    with pytest.raises(AdapterError, match="is in use"):
        adapter("clean", server, "--remove", one)


def test_reseal_encrypts_everything_and_rotates(server: Path) -> None:
    with pytest.raises(UsageError, match="no key to encrypt with"):
        adapter("reseal", server)
    before = as_json("verify", server)
    assert as_json("reseal", server, "--rotate")["resealed"] == before["files"]
    files = [path for path in (server / "adapters" / "blobs").rglob("*") if path.is_file()]
    assert all(path.read_bytes().startswith(b"FSLMSEAL") for path in files)
    assert as_json("reseal", server)["resealed"] == 0
    assert as_json("reseal", server, "--rotate")["resealed"] == before["files"]
    assert as_json("verify", server) == before


def test_a_folder_that_is_no_registry_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no adapter registry"):
        adapter("list", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that was enrolled and has no adapter yet; its base is the demo model."""
    config = NodeConfig(
        name="clinic-7",
        fleet="127.0.0.1:9092",
        control="127.0.0.1:9093",
        adapter_key=STRANGER.public_key,
    )
    return DeviceHome.create(tmp_path / "device", config).path


def infer(*arguments: object, stdin: str = "") -> str:
    return command(client_app, "infer", *arguments, stdin=stdin)


@pytest.mark.slow
def test_a_question_is_answered_on_the_device(device: Path) -> None:
    answer = infer("The cat", "--home", device, "--base-only", "--max-tokens", "8")
    found = json.loads(
        infer("-", "--home", device, "--base-only", "--max-tokens", 8, "--json", stdin="The cat")
    )
    assert answer == found["text"] + "\n"
    said = found["latency"]
    assert 0 < said["first_token_seconds"] < said["seconds"]
    assert said["tokens_per_second"] > 7 / said["seconds"]  # seven tokens after the first
    assert said["peak_rss_bytes"] > 1 << 26  # torch alone is more
    assert (found["tokens"], found["ended"], found["adapter"]) == (8, "length", None)
    assert set(found) == {
        "adapter",
        "audit_verdict",
        "base_digest",
        "ended",
        "kv_cache",
        "latency",
        "personal",
        "privacy",
        "prompt_tokens",
        "redacted",
        "runtime",
        "text",
        "tokens",
        "warnings",
    }


@pytest.mark.slow
def test_pieces_are_lines_of_json_and_a_stop_text_ends_the_answer(device: Path) -> None:
    asked = ("The cat", "--home", device, "--base-only", "--max-tokens", "8", "--json")
    *pieces, last = map(json.loads, infer(*asked, "--stream").splitlines())
    assert len(pieces) > 1
    assert "".join(found["piece"] for found in pieces) == last["text"]
    assert (last["runtime"], last["kv_cache"], last["redacted"]) == ("torch", "none", None)
    word = last["text"].split()[1]
    cut = json.loads(infer(*asked, "--stop", "no such text", "--stop", word))
    assert cut["ended"] == "stop"
    assert cut["text"] == last["text"][: last["text"].index(word)]
    with pytest.raises(UsageError, match="not for onnx"):
        infer(*asked, "--runtime", "onnx")


def test_without_an_adapter_nothing_is_answered_by_accident(device: Path) -> None:
    with pytest.raises(AdapterUntrusted, match="No adapter is installed"):
        infer("The cat", "--home", device)


def test_fetching_reads_the_owners_policy_before_it_calls_anybody(device: Path) -> None:
    policy = DeviceHome.open(device).policy
    policy.write_text("[adapters", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        command(client_app, "fetch", "--home", device)
    policy.write_text("[adapters]\nunaudited = true\n", encoding="utf-8")
    with pytest.raises(FleetError, match=r"ca\.crt"):
        command(client_app, "fetch", "--home", device)


def test_what_is_no_text_or_too_long_is_refused(device: Path) -> None:
    with pytest.raises(UsageError, match="more than"):
        infer("-", "--home", device, stdin="x" * ((1 << 20) + 1))


@pytest.mark.slow
def test_personal_data_is_taken_out_and_put_back(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("presidio_analyzer")
    from client.generation import Answer
    from client.inference import LocalModel

    asked: list[str] = []

    def echo(self: LocalModel, prompt: str, **options: Any) -> Answer:
        asked.append(prompt)
        text = f"You said: {prompt}"
        for letter in text:
            options["on_text"](letter)
        return Answer(text=text, prompt_tokens=1, tokens=1, ended="end")

    monkeypatch.setattr(LocalModel, "generate", echo)
    question = "Write to jane.roe@example.org today."
    answer = infer(question, "--home", device, "--base-only", "--redact")
    assert "jane.roe" not in asked[0]
    assert answer == f"You said: {question}\n"
    found = json.loads(infer(question, "--home", device, "--base-only", "--redact", "--json"))
    assert found["redacted"] == {"EMAIL_ADDRESS": 1}
    assert found["text"] == f"You said: {question}"
    whole = infer(question, "--home", device, "--base-only", "--redact", "--no-stream")
    assert whole == answer
