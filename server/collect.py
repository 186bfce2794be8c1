"""One round over the wire: what was asked of whom, and what came back."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from server.aggregation import Aggregator
from server.messenger import TRAIN, Messenger
from server.rankedround import RankedRound
from server.reading import UpdateReader
from shared.errors import ConflictingSettings, ProtocolError
from shared.link import Link
from shared.privacy.plan import PrivacyPlan
from shared.privacy.secagg.coordinator import Coordinator, SecureSum, Upload
from shared.privacy.secagg.keys import Roster
from shared.privacy.secagg.terms import SESSION_BYTES
from shared.privacy.secagg.uploads import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Reveals,
    Shares,
)
from shared.secureterms import round_terms
from shared.wire import (
    Instruction,
    Phase,
    PhaseCall,
    Records,
    decode_phase_reply,
    encode_phase_call,
    payload_bytes,
)

logger = logging.getLogger("fedslm.server")

_READ: dict[Phase, Callable[[bytes], Upload]] = {
    "advertise": Advertisement.from_bytes,
    "share": Shares.from_bytes,
    "mask": MaskedInput.from_bytes,
    "confirm": Confirmation.from_bytes,
    "reveal": Reveals.from_bytes,
}


class OnRefused(Protocol):
    """Is told that what a client sent was refused."""

    def __call__(self, client: int, code: str) -> None:
        """Take note; ``code`` is that of the error."""


def tell_nobody(client: int, code: str) -> None:
    """Take no note of what was refused."""
    del client, code


class OnAnswer(Protocol):
    """Is told that one more client finished its part of the round."""

    def __call__(self, answered: int) -> None:
        """Take note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of a round.

    Attributes:
        up: most that one client sent.
        down: most that one client was sent.
        by_rank: the same two of the clients of each rank, where ranks differ.
    """

    up: int = 0
    down: int = 0
    by_rank: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum over two exchanges."""
        return self._with(other, lambda one, two: one + two)

    def most(self, other: Traffic) -> Traffic:
        """Return the larger numbers of two exchanges."""
        return self._with(other, max)

    def notes(self) -> dict[str, dict[str, dict[str, int]]]:
        """Return what a metrics line says of each rank; nothing where all have one."""
        if not self.by_rank:
            return {}
        said = {str(r): {"up": up, "down": down} for r, (up, down) in self.by_rank.items()}
        return {"bytes_by_rank": said}

    def _with(self, other: Traffic, both: Callable[[int, int], int]) -> Traffic:
        """Join two exchanges number by number."""
        by_rank = {}
        for rank in sorted({*self.by_rank, *other.by_rank}):
            mine, theirs = (one.by_rank.get(rank, (0, 0)) for one in (self, other))
            by_rank[rank] = (both(mine[0], theirs[0]), both(mine[1], theirs[1]))
        return Traffic(
            up=both(self.up, other.up), down=both(self.down, other.down), by_rank=by_rank
        )


def ask_nobody(client: int) -> None:
    """Take no note of whose update comes next."""
    del client


def collect_updates(
    messenger: Messenger,
    nodes: Mapping[int, int],
    instruction: Instruction,
    *,
    aggregator: Aggregator,
    plan: PrivacyPlan,
    on_answer: OnAnswer,
    on_refused: OnRefused = tell_nobody,
    size: int | None = None,
    link: Link | None = None,
    enough: int | None = None,
    on_next: Callable[[int], None] = ask_nobody,
    ranked: RankedRound | None = None,
    on_vote: Callable[[int], None] | None = None,
) -> tuple[int, Traffic]:
    """Send a round and hand each update to the aggregator as it comes.

    With ``enough``, who answers first decides who else is counted. That is sound only where every
    update is protected before it is sent, or nothing is promised; under a guarantee of the server
    (client-central) nobody's answer may cut off another's.

    Args:
        messenger: the way to the nodes.
        nodes: client by node.
        instruction: what every client of the cohort is told.
        aggregator: takes the updates.
        plan: says what stage an update must have.
        on_answer: is told after each.
        on_refused: is told of an update that breaks the protocol.
        size: parameters of an update; default as many as clients are sent.
        link: the code of updates that the scenario says; None for float32.
        enough: updates after which nobody is waited for; None waits for everybody.
        on_next: is told whose update the aggregator is handed next.
        ranked: the round by rank, where ranks differ: the aggregator is handed widened updates.
        on_vote: takes the votes of a round that has one.

    Returns:
        How many answered, and the traffic.

    Raises:
        ConflictingSettings: for ``enough`` in mode client-central.
    """
    if enough is not None and plan.mode not in {"none", "example"}:
        msg = f"mode={plan.mode!r}: one client's answer must not decide whose is counted."
        raise ConflictingSettings(msg)
    reader = UpdateReader(
        instruction=instruction,
        plan=plan,
        size=instruction.vector.size if size is None else size,
        link=link,
        ranked=ranked,
        on_refused=on_refused,
        on_vote=on_vote,
    )
    contents = reader.contents(nodes)
    traffic = Traffic(down=max((payload_bytes(c) for c in contents.values()), default=0))
    answered = 0
    group = str(instruction.server_round)
    for node, reply in messenger.exchange(TRAIN, contents, group=group):
        if reply is None or not reader.take(nodes[node], reply, aggregator, on_next):
            continue
        answered += 1
        up = payload_bytes(reply)
        by_rank = {} if ranked is None else ranked.bytes_with(nodes[node], up)
        traffic = traffic.most(Traffic(up=up, by_rank=by_rank))
        on_answer(answered)
        if enough is not None and answered >= enough:
            break
    return answered, traffic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureOutcome:
    """How a secure aggregation ended.

    Attributes:
        result: the sum; None if the round was aborted.
        failure: why it was aborted, or None.
        opened: whether any client was asked for what opens the sum. Before that, nothing that
            depends on a client's data was readable to anybody, and the round costs nothing.
        traffic: bytes of all phases.
    """

    result: SecureSum | None
    failure: str | None
    opened: bool
    traffic: Traffic


class SecureRound:
    """Drives one attempt at a round of mode ``client-distributed`` over the wire.

    Guarantee:
        The server side holds one running masked sum; it reads a sum only if the protocol opens it,
        over at least the plan's survivors, and then once. Clients may vanish between any two
        phases; below quorum the round is aborted and says whether anything could be read.

    Args:
        messenger: the way to the nodes.
        nodes: client by node, of everybody who is invited.
        plan: the privacy plan.
        roster: identity keys, to tell bad signatures early.
        instruction: what clients are told to train from.
        padding: clients that only fill the cohort up and take part with an empty update.
        on_refused: is told of a message that breaks the protocol.
        size: parameters of an update; default as many as clients are sent.
        ranked: the round by rank, where ranks differ. What is masked has one length all the same.
    """

    def __init__(
        self,
        messenger: Messenger,
        nodes: Mapping[int, int],
        *,
        plan: PrivacyPlan,
        roster: Roster,
        instruction: Instruction,
        padding: frozenset[int],
        on_refused: OnRefused = tell_nobody,
        size: int | None = None,
        ranked: RankedRound | None = None,
    ) -> None:
        self._ranked = ranked
        self._messenger = messenger
        self._on_refused = on_refused
        self._clients = dict(nodes)
        self._nodes = {client: node for node, client in nodes.items()}
        self._instruction = instruction
        self._padding = padding
        self._session = secrets.token_bytes(SESSION_BYTES)
        terms = round_terms(
            plan,
            self._call("advertise", self._session),
            session=self._session,
            dimension=instruction.vector.size if size is None else size,
        )
        self._coordinator = Coordinator(terms, roster, invited=tuple(self._nodes))
        self._traffic = Traffic()
        self._opened = False

    def run(self, on_answer: OnAnswer) -> SecureOutcome:
        """Run all phases.

        Args:
            on_answer: is told after each masked update.
        """
        result, failure = None, None
        try:
            result = self._phases(on_answer)
        except (ProtocolError, ConflictingSettings) as error:
            failure = error.message
        return SecureOutcome(
            result=result, failure=failure, opened=self._opened, traffic=self._traffic
        )

    def _phases(self, on_answer: OnAnswer) -> SecureSum:
        """Run the phases one after the other with whoever is left."""
        coordinator = self._coordinator
        self._exchange("advertise", dict.fromkeys(self._nodes, self._session))
        keys = coordinator.key_list()
        self._exchange("share", dict.fromkeys(keys.clients, keys.to_bytes()))
        dealt = {client: message.to_bytes() for client, message in coordinator.deal().items()}
        self._exchange("mask", dealt, on_answer=on_answer)
        survivors = coordinator.survivor_list()
        self._exchange("confirm", dict.fromkeys(survivors.survivors, survivors.to_bytes()))
        signed = coordinator.confirmations()
        self._opened = True
        self._exchange("reveal", dict.fromkeys(survivors.survivors, signed.to_bytes()))
        return coordinator.result()

    def _exchange(
        self, phase: Phase, payloads: Mapping[int, bytes], on_answer: OnAnswer | None = None
    ) -> None:
        """Send a phase to some clients and take their answers as they come."""
        contents = {self._nodes[c]: self._content(phase, c, data) for c, data in payloads.items()}
        traffic = Traffic(down=max((payload_bytes(c) for c in contents.values()), default=0))
        answered = 0
        group = f"{self._instruction.server_round}-{phase}"
        for node, reply in self._messenger.exchange(TRAIN, contents, group=group):
            if reply is None:
                continue
            try:
                payload = decode_phase_reply(reply, phase=phase).payload
                self._coordinator.accept(self._clients[node], _READ[phase](payload))
            except ProtocolError as error:
                logger.warning("round %s, node %d: %s", group, node, error.message)
                self._on_refused(self._clients[node], error.code)
                continue
            answered += 1
            up, by_rank = payload_bytes(reply), {}
            if self._ranked is not None:
                down = payload_bytes(contents[node])
                by_rank = {self._ranked.rank(self._clients[node]): (up, down)}
            traffic = traffic.most(Traffic(up=up, by_rank=by_rank))
            if on_answer is not None:
                on_answer(answered)
        self._traffic = self._traffic.plus(traffic)

    def _content(self, phase: Phase, client: int, payload: bytes) -> Records:
        """Return what one client is sent in a phase."""
        call = self._call(phase, payload)
        if phase != "mask":
            return encode_phase_call(call)
        told = self._instruction
        if self._ranked is not None:
            told = self._ranked.instruction(client)
        if client in self._padding:
            told = replace(told, empty=True)
        return encode_phase_call(call, told)

    def _call(self, phase: Phase, payload: bytes) -> PhaseCall:
        """Address a payload to this round."""
        told = self._instruction
        return PhaseCall(
            phase=phase,
            payload=payload,
            run_id=told.run_id,
            server_round=told.server_round,
            config_digest=told.config_digest,
            plan_digest=told.plan_digest,
        )
