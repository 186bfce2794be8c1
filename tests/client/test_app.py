"""The ClientApp lets nothing out but an update, a measured loss, an index or a code."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as deployed
from client.app import client_index, make_client_app
from shared.errors import ClientFailed, NoUsableText, SchemaMismatch
from shared.link import Downlink
from shared.wire import (
    HEADER,
    ClientUpdate,
    Instruction,
    Measurement,
    decode_introduction,
    decode_measurement,
    decode_update,
    encode_instruction,
)
from simulations.engine import InProcessGrid

SECRET = "Ada Quill, phone 555-0142"


class Runtime:
    """Stands in for a device: answers, or fails with a record in its message."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def downlink_of(self, index: int) -> Downlink | None:
        return None

    def train(self, index: int, instruction: Instruction) -> ClientUpdate:
        if self.error is not None:
            raise self.error
        return ClientUpdate(
            server_round=instruction.server_round,
            config_digest=instruction.config_digest,
            stage="plain",
            vector=instruction.vector + index,
        )

    def measure(self, index: int, instruction: Instruction) -> Measurement:
        del instruction
        if self.error is not None:
            raise self.error
        return Measurement(loss=1.0 + index, tokens=3)


def send(app: ClientApp, kind: str, *, node: int = 3) -> RecordDict:
    grid = InProcessGrid(app, population=5)
    instruction = Instruction(
        run_id="r",
        server_round=2,
        config_digest="c",
        plan_digest="p",
        vector=np.zeros(4, dtype=np.float32),
    )
    message = Message(encode_instruction(instruction), node, kind, group_id="2")
    [reply] = grid.send_and_receive([message])
    return reply.content


def app_of(error: Exception | None = None, *, simulated: bool = True) -> ClientApp:
    return make_client_app(
        lambda _: Runtime(error),  # type: ignore[arg-type,return-value]
        simulated=simulated,
    )


def test_a_device_measures_nothing_for_a_server() -> None:
    """No event pays for a held-out loss; only a simulation's clients answer with one."""
    for app in (app_of(simulated=False), deployed):
        with pytest.raises(ClientFailed, match="policy-refused"):
            decode_measurement(send(app, "evaluate"))


def test_work_is_decoded_done_and_encoded() -> None:
    update = decode_update(
        send(app_of(), "train"), server_round=2, config_digest="c", stage="plain", size=4
    )
    assert np.array_equal(update.vector, np.full(4, 2.0))
    assert decode_measurement(send(app_of(), "evaluate")).loss == 3.0
    assert decode_introduction(send(app_of(), "query")).client == 2


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError(f"bad record {SECRET!r}"), "unexpected"),
        (KeyError(SECRET), "unexpected"),
        (RuntimeError(SECRET, np.ones(3)), "unexpected"),
        (NoUsableText(SECRET, hint=SECRET), "no-usable-text"),
    ],
)
def test_peers_bug_an_exception_message_carrying_a_record(
    kind: str, error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        reply = send(app_of(error), kind)
    assert dict(reply[HEADER]) == {"protocol": 1, "failure": code}
    assert list(reply) == [HEADER]
    assert "555" not in repr(reply)
    assert "555" not in caplog.text


@pytest.mark.parametrize("config", [{}, {"partition-id": "3"}, {"partition-id": -1}])
def test_a_node_must_know_which_client_it_is(config: dict[str, str | int]) -> None:
    context = Context(
        run_id=1,
        node_id=1,
        node_config=config,  # type: ignore[arg-type]
        state=RecordDict(),
        run_config={},
    )
    with pytest.raises(SchemaMismatch):
        client_index(context)
