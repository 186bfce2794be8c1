"""The node's child: the installed client, with its base model kept warm between messages.

Started by :mod:`client.fleet.child` when there is work. It reads frames from its standard input and
writes them to what was its standard output; whatever prints goes to standard error. It opens no
connection to the server, and it ends at once when its parent does.

Run configuration and content come from the server and are checked while they are read; the node's
own configuration comes from the parent, that is, from the device.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

from client.fleet.frames import Frame, read_frame, write_frame
from client.fleet.limits import DEFAULT_LIMITS, Limits
from client.fleet.messages import Question
from client.fleet.objects import Tree
from shared.errors import FedSLMError
from shared.redact import scrub_exception

if TYPE_CHECKING:
    from flwr.app import Context, RecordDict
    from flwr.clientapp import ClientApp

    from client.fleet.records import Record

KEPT_RUNS: Final = 4
_PR_SET_PDEATHSIG: Final = 1
_ORPHANED: Final = 70

logger = logging.getLogger("fedslm.worker")


class Desk:
    """Answers one question after the other; keeps one context for each of the last runs.

    Args:
        app: the client.
    """

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._contexts: OrderedDict[int, Context] = OrderedDict()

    def answer(self, frame: Frame) -> Frame:
        """Return the answer to a question, or the code of what went wrong and nothing else."""
        from client.fleet.records import encode
        from shared.wire import failure_code

        started = time.monotonic()
        try:
            content = self._work(frame)
            code = failure_code(content)
            if code is not None:
                # The parent writes the same failure again, and knows that it is one.
                return Frame(header={"kind": "failed", "code": code})
            tree = encode(from_flower(content))
        except FedSLMError as error:
            logger.warning("message refused with code %s", error.code)
            return Frame(header={"kind": "failed", "code": scrub_exception(error)})
        except Exception as error:  # noqa: BLE001 - the process edge: nothing may pass but a code
            logger.warning("message failed with %s", type(error).__name__)
            return Frame(header={"kind": "failed", "code": scrub_exception(error)})
        header = {
            "kind": "answer",
            "root": tree.root,
            "names": list(tree.contents),
            "seconds": time.monotonic() - started,
        }
        return Frame(header=header, parts=list(tree.contents.values()))

    def _work(self, frame: Frame) -> RecordDict:
        """Build Flower's message and context, call the app, and read its reply."""
        from flwr.app import Message
        from flwr.app.metadata import Metadata
        from flwr.supercore.task_identity import TaskIdentity

        from client.fleet.records import decode

        header = frame.header
        question = Question(**header["question"])
        tree = Tree(
            root=header["root"], contents=dict(zip(header["names"], frame.parts, strict=True))
        )
        context = self._context(header, question.run_id)
        TaskIdentity.run_id, TaskIdentity.node_id = question.run_id, context.node_id
        TaskIdentity.task_id = question.task or 0
        metadata = Metadata(
            run_id=question.run_id,
            message_id=question.message_id,
            src_node_id=question.source,
            dst_node_id=context.node_id,
            reply_to_message_id="",
            group_id=question.group,
            created_at=question.created_at,
            ttl=question.ttl,
            message_type=question.kind,
            src_task_id=question.source_task,
            dst_task_id=question.task,
        )
        content = to_flower(decode(tree))
        # The form that Flower keeps for itself; tests/contract pins it.
        message: Any = Message(content, metadata=metadata)  # type: ignore[call-overload]
        reply: RecordDict = self._app(message, context).content
        return reply

    def _context(self, header: Mapping[str, Any], run_id: int) -> Context:
        """Return the context of a run; the oldest of too many is forgotten."""
        from flwr.app import Context, RecordDict

        context = self._contexts.pop(run_id, None)
        if context is None:
            context = Context(
                run_id=run_id,
                node_id=header["node_id"],
                node_config=dict(header["node_config"]),
                state=RecordDict(),
                run_config=settings_of(header["run_config"]),
                series_id=header["series_id"],
            )
        self._contexts[run_id] = context
        while len(self._contexts) > KEPT_RUNS:
            self._contexts.popitem(last=False)
        return context


def to_flower(record: Record) -> RecordDict:
    """Return a content in Flower's classes."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    found: dict[str, Any] = {}
    for name in record.order:
        if name in record.arrays:
            members = record.arrays[name].items()
            found[name] = ArrayRecord({key: Array(value) for key, value in members})
        elif name in record.configs:
            found[name] = ConfigRecord(dict(record.configs[name]))
        else:
            found[name] = MetricRecord(dict(record.metrics[name]))
    return RecordDict(found)


def from_flower(content: RecordDict) -> Record:
    """Return a content of Flower's classes in ours."""
    from flwr.app import ArrayRecord, ConfigRecord

    from client.fleet.records import Record

    arrays: dict[str, Any] = {}
    configs: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            arrays[name] = {key: array.numpy() for key, array in record.items()}
        elif isinstance(record, ConfigRecord):
            configs[name] = dict(record)
        else:
            metrics[name] = dict(record)
    return Record(arrays=arrays, configs=configs, metrics=metrics, order=tuple(content))


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read a run's configuration from JSON, where bytes stand as ``{"base64": TEXT}``."""
    return {
        key: b64decode(value["base64"]) if isinstance(value, dict) else value
        for key, value in config.items()
    }


def serve(app: ClientApp, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Answer frames from standard input until it ends.

    Args:
        app: the client.
        limits: bounds on one message.
    """
    die_with_parent()
    reader, writer = take_pipes()
    frames: queue.SimpleQueue[Frame] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(reader, frames, limits), daemon=True).start()
    desk = Desk(app)
    while True:
        try:
            write_frame(writer, desk.answer(frames.get()))
        except BrokenPipeError:
            return
        tidy_memory()


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends; Linux only."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent or parent == 1:
            os._exit(_ORPHANED)


def take_pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Take standard input and output for frames; what prints goes to standard error."""
    reader, writer = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return os.fdopen(reader, "rb"), os.fdopen(writer, "wb")


def tidy_memory() -> None:
    """Give freed memory back to the system, where the C library can."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _listen(reader: IO[bytes], frames: queue.SimpleQueue[Frame], limits: Limits) -> None:
    """Pass frames on; end the process when the pipe ends, in the middle of work too."""
    with suppress(FedSLMError, OSError):
        while (frame := read_frame(reader, limits=limits)) is not None:
            frames.put(frame)
    os._exit(_ORPHANED)


def main() -> None:
    """Give way to the device's owner, load the installed client, and serve."""
    from client.priority import limit_threads, lower_priority, spare_threads

    lower_priority()
    if "OMP_NUM_THREADS" not in os.environ:
        limit_threads(spare_threads())
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")

    from client.app import app

    serve(app)


if __name__ == "__main__":
    main()
