"""The Flower ClientApp: decode, work, encode; wiring only.

Every exception becomes a bare code before it can travel: Flower would send ``str(exception)``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.node import runtime_of_node
from client.refusals import refusals_logged
from client.secure import answer_phase
from shared.errors import FedSLMError, PolicyRefused, SchemaMismatch
from shared.redact import scrub_exception
from shared.wire import (
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
    from client.runtime import ClientRuntime

RuntimeOf = Callable[[Context], "ClientRuntime"]

logger = logging.getLogger("fedslm.client")


def make_client_app(runtime_of: RuntimeOf, *, simulated: bool = False) -> ClientApp:
    """Build the ClientApp around a way to reach the process's runtime.

    Guarantee:
        A reply holds an update, an index, or a code of :mod:`shared.errors`; never the text of an
        exception. A held-out loss, which no event pays for, is answered only by a simulated client.

    Args:
        runtime_of: returns the runtime for a context; called for each message, so it caches.
        simulated: whether the clients are a simulation's, whose operator holds their text anyway.
    """
    app = ClientApp()

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
            instruction = decode_instruction(message.content)
            return encode_update(runtime_of(context).train(client_index(context), instruction))

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
