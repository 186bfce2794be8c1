"""The server's side: takes answers as they come, closes one phase after the other, opens the sum.

::

    accept(Advertisement)*  -> key_list()        accept(Shares)*       -> deal()
    accept(MaskedInput)*    -> survivor_list()   accept(Confirmation)* -> confirmations()
    accept(Reveals)*        -> result()

The coordinator is trusted by nobody; its checks keep one bad client from spoiling the round for the
others and tell the operator what went wrong. A client that does not answer, or whose answer is
refused, is a dropout of that phase.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from shared.errors import QuorumNotReached, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg.codec import Row
from shared.privacy.secagg.cohort import (
    CONFIRM,
    SHARE,
    Cohort,
    require_distinct_keys,
    require_same_view,
    survivors_view,
    verify_advertisement,
)
from shared.privacy.secagg.downloads import Confirmations, KeyList, SharesForYou, SurvivorList
from shared.privacy.secagg.graph import GraphParameters, require_kept
from shared.privacy.secagg.keys import Roster
from shared.privacy.secagg.masks import MaskedSum
from shared.privacy.secagg.recovery import RevealedShares, open_sum
from shared.privacy.secagg.shamir import share_from_bytes
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Reveals,
    Shares,
)

Upload = Advertisement | Shares | MaskedInput | Confirmation | Reveals


class Stage(IntEnum):
    """Which answers the coordinator waits for."""

    ADVERTISE = 1
    SHARE = 2
    MASK = 3
    CONFIRM = 4
    REVEAL = 5
    DONE = 6


_STAGES: dict[type[Upload], Stage] = {
    Advertisement: Stage.ADVERTISE,
    Shares: Stage.SHARE,
    MaskedInput: Stage.MASK,
    Confirmation: Stage.CONFIRM,
    Reveals: Stage.REVEAL,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecureSum:
    """What the server learns of a round.

    Attributes:
        total: the sum of the survivors' vectors modulo ``2**32``, uint32, shape ``(dimension,)``.
        survivors: whose vectors are in it, ascending; their number is m.
        announced: n, the number of announced clients, to which noise shares and quorum refer.
    """

    total: npt.NDArray[np.uint32] = field(repr=False)
    survivors: tuple[int, ...]
    announced: int


class Coordinator:
    """Drives one session with whatever clients answer.

    Holds one vector however many clients send theirs, keys and signatures in proportion to the
    cohort, and ciphertexts (82 bytes each, until dealt) in proportion to cohort times degree.

    Args:
        terms: of the session.
        roster: the identity keys of the clients, to tell bad signatures early.
        invited: who may advertise; the whole roster if not given.

    Attributes:
        terms: of the session.
        stage: which answers it waits for.
    """

    def __init__(
        self, terms: SecAggTerms, roster: Roster, *, invited: Collection[int] | None = None
    ) -> None:
        self.terms = terms
        self.stage = Stage.ADVERTISE
        self._roster = roster
        self._view = terms.digest()
        self._expected = frozenset(roster if invited is None else invited)
        self._answered: set[int] = set()
        self._cohort: Cohort | None = None
        self._entries: dict[int, Advertisement] = {}
        self._owners: dict[bytes, int] = {}
        self._shares: dict[int, Shares] = {}
        self._sharers: tuple[int, ...] = ()
        self._total = MaskedSum(terms.dimension)
        self._survivors: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._revealed = RevealedShares()

    @property
    def expected(self) -> tuple[int, ...]:
        """Return whose answers are awaited, ascending."""
        return tuple(sorted(self._expected - self._answered))

    @property
    def bounds(self) -> GraphParameters:
        """Return what the announced cohort is held to.

        Raises:
            SecureAggregationError: before the announcement.
        """
        return self._known_cohort().bounds

    def accept(self, sender: int, message: Upload) -> None:
        """Take one client's answer of the current phase.

        Args:
            sender: the client that the transport authenticated.
            message: its answer.

        Raises:
            SecureAggregationError: for another phase; another session or view; a client that is
                not expected or has answered; a signature that does not fit; a key that another
                client has; shares that are not for its neighbours or no field elements.
            SchemaMismatch: for a vector of another length.
        """
        stage = _STAGES[type(message)]
        self._require_stage(stage)
        phase = stage.name.lower()
        if message.client != sender or sender not in self._expected or sender in self._answered:
            msg = f"phase={phase}: client={message.client} from sender={sender} is not expected."
            raise SecureAggregationError(msg, hint="Each expected client answers once, for itself.")
        require_same_view(message.context, self._view, phase=phase)
        if isinstance(message, Advertisement):
            self._take_advertisement(message)
        elif isinstance(message, Shares):
            self._take_shares(message)
        elif isinstance(message, MaskedInput):
            self._take_masked(message)
        elif isinstance(message, Confirmation):
            self._roster.verify(CONFIRM, self._view, sender, message.signature)
            self._signatures[sender] = message.signature
        else:
            self._take_reveals(message)
        self._answered.add(sender)

    def key_list(self) -> KeyList:
        """Close phase 1 and announce the cohort.

        Raises:
            SecureAggregationError: in another phase.
            QuorumNotReached: for fewer clients than the terms require.
            ConflictingSettings: if a cohort of this size cannot be both safe and live.
        """
        self._require_stage(Stage.ADVERTISE)
        entries = tuple(self._entries[client] for client in sorted(self._entries))
        message = KeyList(context=self._view, advertisements=entries)
        self._cohort = Cohort.announced(self.terms, message)
        self._advance(self._cohort.view)
        return message

    def deal(self) -> dict[int, SharesForYou]:
        """Close phase 2: sort the ciphertexts by receiver.

        Returns:
            For each client that shared, its message.

        Raises:
            SecureAggregationError: in another phase.
            QuorumNotReached: if too few shared, or too few neighbours of anybody.
        """
        self._require_stage(Stage.SHARE)
        cohort, sharers = self._known_cohort(), tuple(sorted(self._answered))
        require_kept(cohort.graph, cohort.bounds, sharers, phase=SHARE)
        inbox: dict[int, list[Row]] = {client: [] for client in sharers}
        for sender in sharers:
            for receiver, ciphertext in self._shares[sender].ciphertexts:
                if receiver in inbox:
                    inbox[receiver].append((sender, ciphertext))
        signed = tuple((client, self._shares[client].signature) for client in sharers)
        self._shares.clear()
        self._sharers = sharers
        self._advance(cohort.sharers_view(sharers))
        return {
            client: SharesForYou(
                context=cohort.view, receiver=client, sharers=signed, ciphertexts=tuple(rows)
            )
            for client, rows in inbox.items()
        }

    def survivor_list(self) -> SurvivorList:
        """Close phase 3: nothing more is added to the sum.

        Raises:
            SecureAggregationError: in another phase.
            QuorumNotReached: if too few vectors came, or too few of anybody's neighbours.
        """
        self._require_stage(Stage.MASK)
        cohort, survivors = self._known_cohort(), tuple(sorted(self._answered))
        require_kept(cohort.graph, cohort.bounds, survivors, phase="mask")
        message = SurvivorList(context=self._view, survivors=survivors)
        self._survivors = survivors
        self._advance(survivors_view(self._view, survivors))
        return message

    def confirmations(self) -> Confirmations:
        """Close phase 4: pass the signatures on.

        Raises:
            SecureAggregationError: in another phase.
            QuorumNotReached: for fewer confirmations than the quorum.
        """
        self._require_stage(Stage.CONFIRM)
        quorum, found = self.bounds.quorum, len(self._signatures)
        if not found >= quorum:
            msg = f"phase={CONFIRM}: {found} confirmations, expected at least {quorum}."
            raise QuorumNotReached(msg, hint="The round is void; nothing was revealed.")
        message = Confirmations(
            context=self._view, signatures=tuple(sorted(self._signatures.items()))
        )
        self._advance(self._view)
        return message

    def result(self) -> SecureSum:
        """Close phase 5: recover the secrets, take the masks off, return the sum.

        Raises:
            SecureAggregationError: in another phase, or if wrong shares were revealed.
            QuorumNotReached: if a secret has fewer shares than the threshold.
        """
        self._require_stage(Stage.REVEAL)
        cohort = self._known_cohort()
        self._advance(self._view)
        open_sum(cohort, self._sharers, self._survivors, self._revealed, self._total)
        return SecureSum(
            total=self._total.words, survivors=self._survivors, announced=cohort.bounds.clients
        )

    def __repr__(self) -> str:
        """Return the stage and how many answered."""
        return f"Coordinator(stage={self.stage.name.lower()!r}, answered={len(self._answered)})"

    def _known_cohort(self) -> Cohort:
        """Return the announced cohort."""
        if self._cohort is None:
            msg = "no cohort is announced yet."
            raise SecureAggregationError(msg)
        return self._cohort

    def _require_stage(self, stage: Stage) -> None:
        """Require that the coordinator is in one phase."""
        if self.stage is not stage:
            msg = f"stage={self.stage.name.lower()}, expected {stage.name.lower()}."
            raise SecureAggregationError(msg, hint="Phases are closed once, in order.")

    def _advance(self, view: bytes) -> None:
        """Go to the next stage; whoever has not answered is out, but for the last."""
        if self.stage is not Stage.CONFIRM:
            self._expected = frozenset(self._answered)
        self._answered = set()
        self._view = view
        self.stage = Stage(self.stage + 1)

    def _take_advertisement(self, message: Advertisement) -> None:
        """Keep an advertisement whose signature fits and whose keys are new."""
        verify_advertisement(message, self._roster)
        require_distinct_keys((message,), self._owners)
        self._entries[message.client] = message

    def _take_shares(self, message: Shares) -> None:
        """Keep shares that are signed and addressed to the client's neighbours."""
        cohort = self._known_cohort()
        receivers = tuple(client for client, _ in message.ciphertexts)
        if receivers != cohort.graph.neighbours(message.client):
            msg = f"phase={SHARE}: client={message.client} shares with others than its neighbours."
            raise SecureAggregationError(msg)
        self._roster.verify(SHARE, self._view, message.client, message.signature)
        self._shares[message.client] = message

    def _take_masked(self, message: MaskedInput) -> None:
        """Add a masked vector to the sum."""
        words = message.words
        if words.shape != (self.terms.dimension,):
            msg = (
                f"phase=mask: client={message.client} sent {words.size} words, expected "
                f"{self.terms.dimension}."
            )
            raise SchemaMismatch(msg)
        self._total.add(words)

    def _take_reveals(self, message: Reveals) -> None:
        """Keep the shares that a client must reveal, and no others."""
        graph, me = self._known_cohort().graph, message.client
        near = set(graph.neighbours(me)) & set(self._sharers)
        seeds = {client for client, _ in message.seeds}
        keys = {client for client, _ in message.keys}
        if seeds != near & set(self._survivors) or keys != near - set(self._survivors):
            msg = f"phase=reveal: client={me} reveals shares of others than its neighbours."
            raise SecureAggregationError(msg)
        shares = [(owner, share_from_bytes(raw)) for owner, raw in (*message.seeds, *message.keys)]
        for owner, share in shares:
            self._revealed.add(owner, graph.point(owner, me), share)
