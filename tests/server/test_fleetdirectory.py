"""Who speaks for whom in a fleet, re-read before every message; replies that are taken once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from server.fleetdb import FleetDatabase
from server.fleetdirectory import FleetDirectory
from server.messenger import TRAIN, Messenger
from simulations.engine import InProcessGrid
from tests.server.fleetkit import stranger


@pytest.fixture
def database(tmp_path: Path) -> FleetDatabase:
    return FleetDatabase(tmp_path / "fleet.sqlite")


def enroll(database: FleetDatabase, name: str, number: int) -> None:
    identity = stranger(name)
    token = database.new_token(name, valid_seconds=60.0)
    database.redeem(token, identity.public)
    database.activated(identity.public, number)


def test_enrolment_says_which_client_a_node_speaks_for(database: FleetDatabase) -> None:
    enroll(database, "a", 101)
    enroll(database, "b", 102)
    directory = FleetDirectory(database)
    assert directory.clients_of([101, 102]) == {101: 0, 102: 1}
    assert directory.clients_of([102]) == {102: 1}
    assert directory.clients_of([]) == {}


def test_strangers_are_left_out(database: FleetDatabase) -> None:
    enroll(database, "a", 101)
    assert FleetDirectory(database).clients_of([7, 101, 9]) == {101: 0}


def test_the_revoked_are_left_out_at_once(database: FleetDatabase) -> None:
    enroll(database, "a", 101)
    directory = FleetDirectory(database)
    assert directory.clients_of([101]) == {101: 0}
    database.revoke("a", "lost")
    assert directory.clients_of([101]) == {}


def test_a_name_that_was_enrolled_again_has_one_node(database: FleetDatabase) -> None:
    enroll(database, "a", 101)
    database.revoke("a", "new phone")
    enroll(database, "a", 102)
    assert FleetDirectory(database).clients_of([101, 102]) == {102: 0}


def test_what_a_client_does_wrong_is_noted_with_its_enrolment(database: FleetDatabase) -> None:
    enroll(database, "a", 101)
    enroll(database, "b", 102)
    directory = FleetDirectory(database)
    directory.flag(1, "schema-mismatch")
    directory.flag(1, "schema-mismatch")
    directory.flag(5, "schema-mismatch")
    assert database.flags("a") == ()
    [flag] = database.flags("b")
    assert (flag.code, flag.count) == ("schema-mismatch", 2)


class TwiceGrid(InProcessGrid):
    """A grid on which every node answers twice, and says that it is another."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Walk through the messages twice, as Flower's own grid does."""
        taken = list(messages)
        assert list(messages) == taken
        return super().push_messages(taken)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return each reply twice."""
        replies = super().pull_messages(message_ids)
        for reply in replies:
            reply.metadata.__dict__["_src_node_id"] = 999
        return [*replies, *replies]


def echo() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        del context
        return Message(RecordDict(), reply_to=message)

    return app


def test_a_reply_counts_once_and_for_whom_it_was_asked() -> None:
    messenger = Messenger(TwiceGrid(echo(), 3), deadline_seconds=5.0)
    contents: Mapping[int, RecordDict] = {node: RecordDict() for node in (1, 2, 3)}
    replies = list(messenger.exchange(TRAIN, contents, group="1"))
    assert sorted(node for node, _ in replies) == [1, 2, 3]


def test_updates_that_are_not_finite_are_told(database: FleetDatabase) -> None:
    """The mechanism makes them zero; the fleet is told who sent them."""
    from server.aggregation import make_aggregator
    from server.collect import collect_updates
    from shared.privacy.noise import NoiseSource
    from shared.scenarioplan import plan_of
    from shared.wire import ClientUpdate, Instruction, encode_update
    from tests.client.device import scenario

    config = scenario("client-central")
    plan = plan_of(config, population=2)
    size = 4

    def answer(message: Message, context: object) -> Message:
        del context
        bad = message.metadata.dst_node_id == 1
        update = ClientUpdate(
            server_round=1,
            config_digest=config.digest(),
            stage="clipped",
            vector=np.full(size, np.nan if bad else 0.1, dtype=np.float32),
        )
        return Message(encode_update(update), reply_to=message)

    app = ClientApp()
    app.train()(answer)
    told: list[tuple[int, str]] = []
    instruction = Instruction(
        run_id="r",
        server_round=1,
        config_digest=config.digest(),
        plan_digest=plan.digest(),
        vector=np.zeros(size, dtype=np.float32),
    )
    aggregator = make_aggregator(
        size, plan=plan, source=NoiseSource.from_os(), server_round=1, clip=None, noise=None
    )
    nodes: Mapping[int, int] = {1: 10, 2: 11}

    def on_refused(client: int, code: str) -> None:
        told.append((client, code))

    answered, _ = collect_updates(
        Messenger(InProcessGrid(app, 2), deadline_seconds=5.0),
        nodes,
        instruction,
        aggregator=aggregator,
        plan=plan,
        on_answer=lambda answered: None,
        on_refused=on_refused,
    )
    assert answered == 2
    assert told == [(10, "update-not-finite")]
    aggregate = aggregator.release()
    assert aggregate is not None
    assert np.isfinite(aggregate.vector).all()
