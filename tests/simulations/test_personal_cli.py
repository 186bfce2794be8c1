"""``fedslm client personalise`` and ``infer --personal``, as an owner runs them."""

from __future__ import annotations

import json

import pytest
import typer

from client.knownruns import remember_scenario
from shared.errors import AdapterUntrusted, InvalidValue, UsageError
from simulations import infer_cli, node_cli, personal_cli
from simulations.node_status import status_of
from tests.client.conftest import model_folder
from tests.client.test_personalise import Owner, owner
from tests.simulations.test_infer_cli import command

__all__ = ["model_folder", "owner"]

client_app = typer.Typer()
infer_cli.add_commands(typer.Typer(), client_app)
personal_cli.add_commands(client_app)
node_cli.add_commands(client_app)


def client(*words: object) -> str:
    return command(client_app, *words)


def test_an_owner_makes_uses_and_forgets_an_adapter_of_their_own(owner: Owner) -> None:
    home = ("--home", owner.home.path)
    with pytest.raises(AdapterUntrusted, match="No adapter was fetched"):
        client("personalise", *home)
    remember_scenario(owner.home.state, owner.config)
    version = owner.install(1)
    with pytest.raises(UsageError, match="no personal adapter"):
        client("infer", "w3 w4", *home, "--personal")
    with pytest.raises(InvalidValue, match="learning_rate"):
        client("personalise", *home, "--learning-rate", "-1")
    found = json.loads(client("personalise", *home, "--steps", "2", "--json"))
    assert (found["adapter"], found["steps"], found["kept"]) == (version.digest, 2, True)
    assert found["loss_after"] < found["loss_before"]
    words = client("personalise", *home)
    assert f"Held-out loss in nats: {found['loss_before']:.4f} before" in words
    assert "3 steps on 18 examples" in words
    assert "do not pass it on" in words
    asked = ("infer", "w3 w4", *home, "--max-tokens", "2", "--json")
    assert json.loads(client(*asked))["personal"] is None
    own = json.loads(client(*asked, "--personal"))
    assert own["personal"]["adapter"] == version.digest
    found = status_of(owner.home)["personal"]
    assert (found["adapter"], found["stale"]) == (version.digest, False)
    newer = owner.install(2)
    stale = json.loads(client(*asked, "--personal"))
    assert stale["personal"] is None
    assert newer.digest[:12] in stale["warnings"][0]
    said = "\n".join(node_cli.in_words(status_of(owner.home)))
    assert "stale: another adapter is in use" in said
    assert json.loads(client("personalise", *home, "--forget", "--json")) == {"removed": True}
    assert "There was no personal adapter" in client("personalise", *home, "--forget")
    assert status_of(owner.home)["personal"] is None
    assert "Not kept" in client("personalise", *home, "--learning-rate", "1e6")
    assert client("personalise", *home, "--learning-rate", "1e6", "--keep").count("Kept") == 1
