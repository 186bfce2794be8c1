"""The Flower ClientApp: decode, work, encode; wiring only.

Every exception becomes a bare code before it can travel: Flower would send ``str(exception)``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from client.node import runtime_of_node
from client.refusals import refusals_logged
from client.secure import answer_phase
from shared.errors import FedSLMError, PolicyRefused, SchemaMismatch
from shared.redact import scrub_exception
from shared.wire import (
    Instruction,
    Introduction,
    decode_instruction,
    decode_phase_call,
    encode_failure,
    encode_introduction,
    encode_measurement,
    encode_phase_reply,
    encode_update,
)

if TYPE_CHECKING:
    from client.participant import Participant
    from shared.link import Downlink

RuntimeOf = Callable[[Context], "Participant"]

logger = logging.getLogger("fedslm.client")


class ForesightedApp(ClientApp):
    """A ClientApp that may be told in which order its clients will be called.

    Args:
        runtime_of: as in :func:`make_client_app`.
    """

    def __init__(self, runtime_of: RuntimeOf) -> None:
        super().__init__()
        self._runtime_of = runtime_of

    def expect(
        self, message: Message, context: Context, coming: Iterable[tuple[int, Message]]
    ) -> None:
        """Be told which message is about to come, and what is queued after it.

        Changes no answer but by rounding: what is computed ahead is thrown away where a message
        turns out to be another one. A failure here is none of the client's; it is then called as if
        nobody had foreseen it.

        Args:
            message: the one that is about to come.
            context: the one it will come with.
            coming: client and message, in the order of the queue.
        """
        kind = message.metadata.message_type
        read = _instructions(lambda client: self._runtime_of(context).downlink_of(client))

        def told() -> Iterator[tuple[int, Instruction]]:
            for client, queued in coming:
                if queued.metadata.message_type != kind:
                    return
                instruction = read(queued, client)
                if instruction is None:
                    return
                yield client, instruction

        try:
            client = client_index(context)
            instruction = read(message, client)
            if instruction is None:
                return
            runtime = self._runtime_of(context)
            if kind == MessageType.TRAIN:
                runtime.expect_training(client, instruction, told())
            elif kind == MessageType.EVALUATE:
                runtime.expect_measuring(client, instruction, told())
        except Exception as error:  # noqa: BLE001 - the client itself answers, with the same error
            logger.warning("clients are computed one by one: %s", type(error).__name__)


def _instructions(
    downlink_of: Callable[[int], Downlink],
) -> Callable[[Message, int], Instruction | None]:
    """Return a function that reads a client's instruction, once where many share it."""
    last: list[tuple[RecordDict, Instruction | None]] = []

    def read(message: Message, client: int) -> Instruction | None:
        if last and last[0][0] is message.content:
            return last[0][1]
        call = decode_phase_call(message.content)
        trains = call is None or call.phase == "mask"
        known = message.metadata.message_type in {MessageType.TRAIN, MessageType.EVALUATE}
        found = (
            decode_instruction(message.content, downlink_of(client)) if known and trains else None
        )
        last[:] = [(message.content, found)]
        return found

    return read


def make_client_app(runtime_of: RuntimeOf, *, simulated: bool = False) -> ForesightedApp:
    """Build the ClientApp around a way to reach the process's runtime.

    Guarantee:
        A reply holds an update, an index, or a code of :mod:`shared.errors`; never the text of an
        exception. A held-out loss, which no event pays for, is answered only by a simulated client.

    Args:
        runtime_of: returns the runtime for a context; called for each message, so it caches.
        simulated: whether the clients are a simulation's, whose operator holds their text anyway.
    """
    app = ForesightedApp(runtime_of)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            call = decode_phase_call(message.content)
            if call is not None:
                return encode_phase_reply(
                    answer_phase(
                        call,
                        message.content,
                        runtime=runtime_of(context),
                        client=client_index(context),
                        state=context.state,
                    )
                )
            runtime, client = runtime_of(context), client_index(context)
            instruction = decode_instruction(message.content, runtime.downlink_of(client))
            return encode_update(runtime.train(client, instruction))

        return _guarded(message, work)

    @app.evaluate()
    def measure(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            if not simulated:
                msg = "Held-out losses do not leave a device."
                raise PolicyRefused(msg)
            instruction = decode_instruction(message.content)
            return encode_measurement(
                runtime_of(context).measure(client_index(context), instruction)
            )

        return _guarded(message, work)

    @app.query()
    def introduce(message: Message, context: Context) -> Message:
        def work() -> RecordDict:
            return encode_introduction(Introduction(client=client_index(context)))

        return _guarded(message, work)

    return app


@refusals_logged()
def client_index(context: Context) -> int:
    """Return which client of the population this node speaks for.

    Raises:
        SchemaMismatch: if the node was not told.
    """
    index = context.node_config.get("partition-id")
    if type(index) is not int or index < 0:
        msg = "node_config has no partition-id >= 0."
        raise SchemaMismatch(msg, hint="Give the client index of the enrolment (node.toml).")
    return index


def _guarded(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Run the work and reply with its result or with the code of what went wrong."""
    try:
        content = work()
    except FedSLMError as error:
        code = scrub_exception(error)
        logger.warning("client message failed with code %s", code)
        content = encode_failure(code)
    except Exception as error:  # noqa: BLE001 - the process edge: nothing may travel but a code
        logger.warning("client message failed with %s", type(error).__name__)
        content = encode_failure(scrub_exception(error))
    return Message(content, reply_to=message)


app = make_client_app(lambda context: runtime_of_node(context.run_config, context.node_config))
