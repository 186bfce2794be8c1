"""A real client app that is made to fail on a record with a marker, and everything it lets out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from client.app import make_client_app
from client.data import ClientData, Record
from client.runtime import ClientRuntime
from server.audit.scrubbing import FailedAnswer, FailureProbe
from server.collect import SecureRound
from server.messenger import MEASURE, TRAIN, Messenger
from server.rankedround import RankedRound
from shared.lora import initial_factors
from shared.ranklinks import first_links
from shared.wire import HEADER, Instruction, Records, encode_instruction
from simulations.engine import InProcessGrid
from simulations.keyring import SimulatedKeyring

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from shared.config import RunConfig
    from shared.privacy.plan import PrivacyPlan

READING, TOKENISING, TRAINING = "reading", "tokenising", "training"

App = Callable[[Any, Any], Any]
"""What a client is: a message and its context in, a message out."""

MakeApp = Callable[[ClientRuntime], App]

_SECONDS = 60.0
_BATCHES = 20
_MOST_RECORDS = 512


class ClientAppProbe(FailureProbe):
    """The app, the runtime and the records of the wire that a client has, with failing data.

    A client is asked for an update as in a round (in mode client-distributed through the phases of
    a secure aggregation) and for a held-out loss as in a simulation. What Flower would send for an
    exception that escapes the app counts as sent. What a device's guard refuses before it touches
    its data is not probed.

    Args:
        config: the scenario.
        plan: its plan.
        model: base and adapter; they are as they were after each answer.
        make_app: builds the app around a runtime; default the one that simulations run.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        plan: PrivacyPlan,
        model: AdaptedModel,
        make_app: MakeApp | None = None,
    ) -> None:
        self._config, self._plan, self._model = config, plan, model
        self._make_app = make_app or _real_app

    @property
    def places(self) -> tuple[str, ...]:
        """Return where the client fails: as it reads a record, tokenises it, or trains on it."""
        return (READING, TOKENISING, TRAINING)

    def answer(self, place: str, marker: str) -> FailedAnswer:
        """Ask a client whose data fail at a place."""
        model = self._model
        factors, kinds = model.factors(), model.kinds
        try:
            with _logged() as lines, _failing(model, place, marker):
                spy = self._ask(_Source(place, marker, records=self._records()))
            return FailedAnswer(sent=bytes(spy.sent), logged=tuple(lines), failed=spy.failed)
        finally:
            model.load(factors)
            model.set_trainable(kinds)

    def _ask(self, source: _Source) -> _Spy:
        """Send a client what a server sends, and keep what it answers."""
        plan, config = self._plan, self._config
        clients = 1 if plan.distributed is None else plan.distributed.min_cohort
        keyring = None if plan.distributed is None else SimulatedKeyring(config.run.seed, clients)
        runtime = ClientRuntime(
            config=config, plan=plan, model=self._model, source=source, keyring=keyring
        )
        spy = _Spy(self._make_app(runtime))
        told = self._instruction(runtime)
        ranked = self._ranked(runtime, told)
        nodes = {client + 1: client for client in range(clients)}
        messenger = Messenger(InProcessGrid(cast(Any, spy), clients), deadline_seconds=_SECONDS)
        # An escaped exception ends the exchange; its text is noted already.
        with suppress(_Escaped):
            if keyring is None:
                whole = dict.fromkeys(nodes, encode_instruction(told))
                content = whole if ranked is None else ranked.contents(nodes)
                list(messenger.exchange(TRAIN, content, group="1"))
            else:
                SecureRound(
                    messenger,
                    nodes,
                    plan=plan,
                    roster=keyring.roster,
                    instruction=told,
                    padding=frozenset(),
                    ranked=ranked,
                ).run(lambda answered: None)
        with suppress(_Escaped):
            list(messenger.exchange(MEASURE, {1: encode_instruction(told)}, group="m1"))
        return spy

    def _ranked(self, runtime: ClientRuntime, told: Instruction) -> RankedRound | None:
        """Return the round by rank; None where all clients have one."""
        if runtime.ranks is None:
            return None
        config, r = self._config, self._model.spec.r
        links = first_links(config, told.vector, runtime.ranks, r=r)
        return RankedRound(config, runtime.ranks, links, told)

    def _instruction(self, runtime: ClientRuntime) -> Instruction:
        """Return what a server says in the first round."""
        config, plan = self._config, self._plan
        factors = initial_factors(self._model.spec, config.adapter_seed)
        return Instruction(
            run_id="probe",
            server_round=1,
            config_digest=runtime.digests[0],
            plan_digest=runtime.digests[1],
            vector=self._model.spec.flatten(factors, config.trained_kinds),
            clipping_norm=None if plan.quantile is None else plan.quantile.initial,
        )

    def _records(self) -> int:
        """Return enough records that a Poisson batch of some step is not empty."""
        steps = self._plan if self._plan.mode == "example" else self._plan.example
        if steps is None:
            return 1
        return min(_MOST_RECORDS, math.ceil(_BATCHES / steps.sampling_probability))


class _Source:
    """A client's records, with the marker in them, or a file that fails as it is read."""

    def __init__(self, place: str, marker: str, *, records: int) -> None:
        self._place, self._marker, self._records = place, marker, records

    def client(self, index: int) -> ClientData:
        """Return the records, or fail as a parser does that quotes its line."""
        if self._place == READING:
            msg = f"line 1 is malformed: {self._marker!r}"
            raise ValueError(msg)
        record = Record(text=f"A visit by {self._marker} was noted.")
        return ClientData(
            name=f"client-{index}", train=(record,) * self._records, holdout=(record,)
        )


class _QuotingTokenizer:
    """A tokenizer that fails as one does that quotes the text it cannot encode."""

    bos_token_id = None
    eos_token_id = None
    pad_token_id = 0

    def __call__(self, text: str, **_: object) -> NoReturn:
        """Fail."""
        msg = f"cannot encode {text!r}"
        raise ValueError(msg)


class _Escaped(Exception):
    """An exception that left the app."""


class _Spy:
    """Calls a client's app and keeps every byte that it sends."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.sent = bytearray()
        self.failed = False

    def __call__(self, message: Any, context: Any) -> Any:  # noqa: ANN401 - Flower's messages
        """Pass a message on."""
        try:
            reply = self._app(message, context)
        except Exception as error:
            # Flower sends the text of an exception that escapes a client's app.
            self.sent += f"{type(error).__name__}: {error}".encode(errors="replace")
            self.failed = True
            raise _Escaped from error
        for piece in _pieces(reply.content):
            self.sent += piece
        if message.metadata.message_type == TRAIN:
            self.failed = self.failed or _is_failure(reply.content)
        return reply


def _is_failure(content: Records) -> bool:
    """Tell whether a client reports a failure."""
    header = cast(Any, content.get(HEADER))
    return header is not None and "failure" in header


def _pieces(record: Any) -> Iterator[bytes]:  # noqa: ANN401 - Flower's records
    """Return the bytes of a record and of everything in it, as Flower sends them."""
    yield record.deflate()
    for child in (record.children or {}).values():
        yield from _pieces(child)


@contextmanager
def _failing(model: AdaptedModel, place: str, marker: str) -> Iterator[None]:
    """Make the tokenizer or the forward pass of a model fail with the marker in its words."""
    if place == TOKENISING:
        base = model.base
        model.base = replace(base, tokenizer=cast(Any, _QuotingTokenizer()))
        try:
            yield
        finally:
            model.base = base
        return
    if place != TRAINING:
        yield
        return

    def fail(*_: object) -> NoReturn:
        msg = f"no kernel for the batch that begins with {marker!r}"
        raise RuntimeError(msg)

    hook = model.peft_model.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect every line that is logged, with its traceback, whatever the level.

    The failures are wanted, so nobody else is told of them.
    """
    lines: list[str] = []
    keep = _Keep(lines)
    # Flower's own logger does not pass its lines on.
    loggers = [logging.getLogger(name) for name in ("", "fedslm", "flwr")]
    before = [(logger, logger.level, logger.handlers) for logger in loggers]
    for logger in loggers:
        logger.handlers = [keep]
        logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        for logger, level, handlers in before:
            logger.handlers = handlers
            logger.setLevel(level)


class _Keep(logging.Handler):
    """Appends formatted lines to a list."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(self.format(record))


def _real_app(runtime: ClientRuntime) -> App:
    """Return the app that simulations run."""
    return make_client_app(lambda context: runtime, simulated=True)
