"""What we rely on in the pinned Flower beyond its documented surface."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.simulation import run_simulation
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from simulations.engine import InProcessGrid


def test_the_version_is_the_pinned_minor() -> None:
    assert version("flwr").startswith("1.41.")


def test_a_grid_has_the_members_that_ours_implements() -> None:
    assert Grid.__abstractmethods__ == {
        "set_run",
        "run",
        "create_message",
        "get_node_ids",
        "push_messages",
        "pull_messages",
        "send_and_receive",
    }
    assert not inspect.isabstract(InProcessGrid)


def test_messages_take_their_identity_from_the_process() -> None:
    InProcessGrid(ClientApp(), population=1)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (1, 1, 1)
    message = Message(RecordDict(), 7, "train", group_id="g")
    assert message.metadata.dst_node_id == 7
    assert Message(RecordDict(), reply_to=message).metadata.src_node_id == 7


def test_an_empty_run_can_be_made() -> None:
    assert Run.create_empty(run_id=1).run_id == 1


def test_the_simulation_takes_both_apps_as_objects() -> None:
    names = set(inspect.signature(run_simulation).parameters)
    assert {"server_app", "client_app", "num_supernodes", "backend_config"} <= names


def test_a_context_is_made_of_what_we_give() -> None:
    names = set(inspect.signature(Context).parameters)
    assert names >= {"run_id", "node_id", "node_config", "state", "run_config"}
