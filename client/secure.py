"""A client's part in the phases of a secure aggregation, between the transport and the protocol.

The session's secrets live in the node's own state between two phases, because a transport may run
each phase in another process. They are gone after the last phase, and after any refusal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from shared.errors import SchemaMismatch, SecureAggregationError
from shared.nodestate import keep_state, take_state
from shared.privacy.distributed import wire_words
from shared.privacy.secagg.downloads import Confirmations, KeyList, SharesForYou, SurvivorList
from shared.privacy.secagg.session import ClientSession
from shared.secureterms import round_terms
from shared.wire import (
    PhaseCall,
    PhaseReply,
    Records,
    decode_instruction,
)

if TYPE_CHECKING:
    from client.runtime import Keyring
    from shared.link import Downlink
    from shared.privacy.distributed import NoisedShare
    from shared.privacy.plan import PrivacyPlan
    from shared.privacy.secagg.message import Message
    from shared.wire import Instruction

STATE = "secure-aggregation"


class SharingRuntime(Protocol):
    """What a client must have to take part: its plan, its keys, and a way to train."""

    @property
    def plan(self) -> PrivacyPlan:
        """Return the plan that the client has accepted."""

    @property
    def digests(self) -> tuple[str, str]:
        """Return the digests of scenario and plan."""

    @property
    def keyring(self) -> Keyring | None:
        """Return identity and roster."""

    def update_size(self, server_round: int) -> int:
        """Return the number of parameters that are trained and sent in a round."""

    def downlink_of(self, index: int) -> Downlink | None:
        """Return what reads a client's coded adapter, if any is read."""

    def train_share(self, index: int, instruction: Instruction, *, cohort: int) -> NoisedShare:
        """Train one client and return its noised share."""


def answer_phase(
    call: PhaseCall,
    content: Records,
    *,
    runtime: SharingRuntime,
    client: int,
    state: Records,
) -> PhaseReply:
    """Answer one phase.

    Guarantee:
        Nothing but the protocol's bytes is returned. Whatever is refused ends the session, so a
        server that is caught once learns nothing more in this round.

    Args:
        call: what the server sent.
        content: the whole message; in phase ``mask`` it holds the instruction to train.
        runtime: trains, clips, encodes and noises.
        client: which client of the population.
        state: the node's own state, which the transport keeps between messages.

    Returns:
        The answer.

    Raises:
        SecureAggregationError: if no session is open, or the message is not what an honest server
            would have sent.
        SchemaMismatch: for another scenario or plan, or a message that cannot be read.
        QuorumNotReached: if too few clients are in.
        ConflictingSettings: in another mode, or for a cohort of a size that cannot be safe.
    """
    if (call.config_digest, call.plan_digest) != runtime.digests:
        msg = "The phase belongs to another scenario or privacy plan."
        raise SchemaMismatch(msg)
    keyring = runtime.keyring
    if keyring is None:
        msg = "This client has no identity and roster for secure aggregation."
        raise SecureAggregationError(msg, hint="Give the node its identity and roster.")
    if call.phase == "advertise":
        session, message = _open(call, runtime, keyring, client)
    else:
        session = _resume(call, keyring, client, state)
        message = _next(call, content, session, runtime)
    if call.phase != "reveal":
        keep_state(state, STATE, session.to_bytes())
    return PhaseReply(phase=call.phase, payload=message.to_bytes())


def _open(
    call: PhaseCall, runtime: SharingRuntime, keyring: Keyring, client: int
) -> tuple[ClientSession, Message]:
    """Begin a session on the client's own terms; only its nonce comes from the server."""
    size = runtime.update_size(call.server_round)
    terms = round_terms(runtime.plan, call, session=call.payload, dimension=size)
    return ClientSession.start(terms, client, keyring.identity(client), keyring.roster)


def _resume(call: PhaseCall, keyring: Keyring, client: int, state: Records) -> ClientSession:
    """Take the open session out of the node's state; a failure from here on leaves none."""
    data = take_state(state, STATE)
    if data is None:
        msg = f"phase={call.phase!r}: no session is open."
        raise SecureAggregationError(msg, hint="A refused message ends a session for good.")
    session = ClientSession.from_bytes(
        data, identity=keyring.identity(client), roster=keyring.roster
    )
    if (session.terms.run_id, session.terms.server_round) != (call.run_id, call.server_round):
        msg = f"phase={call.phase!r}: the open session belongs to another round."
        raise SecureAggregationError(msg)
    return session


def _next(
    call: PhaseCall, content: Records, session: ClientSession, runtime: SharingRuntime
) -> Message:
    """Take one step of the protocol after the first."""
    if call.phase == "share":
        return session.share(KeyList.from_bytes(call.payload))
    if call.phase == "mask":
        shares = SharesForYou.from_bytes(call.payload)
        instruction = decode_instruction(content, runtime.downlink_of(session.client))
        if (instruction.run_id, instruction.server_round) != (call.run_id, call.server_round):
            msg = "The instruction belongs to another round than its phase."
            raise SchemaMismatch(msg)
        share = runtime.train_share(session.client, instruction, cohort=session.announced)
        return session.mask(shares, wire_words(share))
    if call.phase == "confirm":
        return session.confirm(SurvivorList.from_bytes(call.payload))
    return session.reveal(Confirmations.from_bytes(call.payload))
