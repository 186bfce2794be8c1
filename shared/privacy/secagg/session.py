"""One client's part in one secure aggregation, as a state machine that answers each phase once.

::

    start -> Advertisement          share(KeyList) -> Shares
    mask(SharesForYou, vector) -> MaskedInput
    confirm(SurvivorList) -> Confirmation          reveal(Confirmations) -> Reveals

Every method first takes the session's state away and puts the next one in place only when its
answer is complete: a message that is refused, for whatever reason, closes the session and its
secrets are gone. A method that is not the next one is refused without any effect, so that a
message delivered twice does no harm.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import NoReturn, Self

import numpy as np
import numpy.typing as npt

from shared.errors import PrivacyError, QuorumNotReached, SecureAggregationError
from shared.privacy.secagg.cohort import (
    CONFIRM,
    SHARE,
    Cohort,
    require_same_view,
    require_subset,
    survivors_view,
)
from shared.privacy.secagg.downloads import Confirmations, KeyList, SharesForYou, SurvivorList
from shared.privacy.secagg.graph import GraphParameters, require_kept
from shared.privacy.secagg.keys import Identity, Roster, new_private_key
from shared.privacy.secagg.masks import SEED_BYTES
from shared.privacy.secagg.shamir import SHARE_BYTES
from shared.privacy.secagg.state import Phase, Secrets, SessionState
from shared.privacy.secagg.steps import (
    advertise,
    decrypt_shares,
    encrypt_shares,
    mask_vector,
    require_vector,
)
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Reveals,
    Shares,
)


class ClientSession:
    """One client's side of one session; build it with :meth:`start` or :meth:`from_bytes`.

    A session serves one attempt at one round. It cannot be copied or pickled, and its text shows no
    secret. To carry it to another process use :meth:`to_bytes`, and read
    :mod:`shared.privacy.secagg.state` about where such bytes may lie.
    """

    __slots__ = ("_identity", "_roster", "_state")

    def __init__(self, state: SessionState, identity: Identity, roster: Roster) -> None:
        if roster.public_key(state.client) != identity.public_key:
            msg = f"client={state.client}: the roster has another identity key for this client."
            raise SecureAggregationError(msg)
        if roster.digest() != state.roster_digest:
            msg = f"client={state.client}: the session was begun under another roster."
            raise SecureAggregationError(msg)
        self._state = state
        self._identity = identity
        self._roster = roster

    @classmethod
    def start(
        cls, terms: SecAggTerms, client: int, identity: Identity, roster: Roster
    ) -> tuple[Self, Advertisement]:
        """Phase 1: draw keys and a self-mask seed, and advertise them.

        Args:
            terms: from the client's own plan and policy, see :class:`SecAggTerms`.
            client: this client's index in the roster.
            identity: this client's signing key.
            roster: what this client knows of the others, never from the server.

        Returns:
            The session and the message for the server.

        Raises:
            SecureAggregationError: if the roster does not have this client with this identity.
        """
        own = Secrets(
            share_key=new_private_key(),
            mask_key=new_private_key(),
            seed=secrets.token_bytes(SEED_BYTES),
        )
        state = SessionState(
            phase=Phase.ADVERTISED,
            terms=terms,
            client=client,
            roster_digest=roster.digest(),
            secrets=own,
        )
        return cls(state, identity, roster), advertise(state, identity)

    @property
    def phase(self) -> Phase:
        """Return what this client did last."""
        return self._state.phase

    @property
    def client(self) -> int:
        """Return this client's index."""
        return self._state.client

    @property
    def terms(self) -> SecAggTerms:
        """Return the terms of the session."""
        return self._state.terms

    @property
    def bounds(self) -> GraphParameters:
        """Return what the announced cohort is held to, between sharing and the end.

        Raises:
            SecureAggregationError: before and after.
        """
        return self._state.known_cohort().bounds

    @property
    def announced(self) -> int:
        """Return n, the number of announced clients.

        This is the n of the noise share V / n that the client adds before it masks, and the n of
        ``ceil(s * n)`` survivors, below which it reveals nothing.
        """
        return self.bounds.clients

    def share(self, message: KeyList) -> Shares:
        """Phase 2: accept the announcement and share both secrets among the neighbours.

        Args:
            message: everybody's keys.

        Returns:
            The message for the server.

        Raises:
            SecureAggregationError: for another phase; another session's list; a signature that does
                not fit the roster; a client that is not in it; a key that is there twice; this
                client's entry missing or changed.
            QuorumNotReached: for fewer clients than the terms require.
            ConflictingSettings: if the cohort's size allows no safe parameters.
        """
        state = self._take(Phase.ADVERTISED)
        cohort = Cohort.announced(state.terms, message)
        if cohort.entry(state.client) != advertise(state, self._identity):
            msg = f"client={state.client}: its own entry was changed in the announcement."
            raise SecureAggregationError(msg)
        cohort.verify(self._roster)
        answer = Shares(
            context=cohort.view,
            client=state.client,
            ciphertexts=encrypt_shares(state, cohort),
            signature=self._identity.sign(SHARE, cohort.view, state.client),
        )
        self._state = replace(state, phase=Phase.SHARED, cohort=cohort)
        return answer

    def mask(self, message: SharesForYou, vector: npt.NDArray[np.uint32]) -> MaskedInput:
        """Phase 3: take the neighbours' shares and mask the vector.

        Args:
            message: who shared, and the shares for this client.
            vector: the noised integers modulo ``2**32``, uint32, shape ``(dimension,)``.

        Returns:
            The message for the server. Under the assumptions of the package its words are
            independent of the vector for everybody but this client, until the sum is opened.

        Raises:
            SecureAggregationError: for another phase; another announcement; a sharer who did not
                sign this announcement; a ciphertext that is missing, too many, altered or not for
                this client; a share that is no field element.
            QuorumNotReached: if too few shared, or too few neighbours of anybody.
            SchemaMismatch: for a vector of another type or shape.
        """
        state = self._take(Phase.SHARED)
        cohort = state.known_cohort()
        require_same_view(message.context, cohort.view, phase=SHARE)
        sharers = message.clients
        if message.receiver != state.client or state.client not in sharers:
            msg = (
                f"client={state.client}: found shares for client={message.receiver} and sharers "
                f"{'with' if state.client in sharers else 'without'} this client."
            )
            raise SecureAggregationError(msg)
        require_subset(sharers, cohort.entries, phase=SHARE)
        require_kept(cohort.graph, cohort.bounds, sharers, phase=SHARE)
        for client, signature in message.sharers:
            self._roster.verify(SHARE, cohort.view, client, signature)
        require_vector(vector, state.terms.dimension)
        held = decrypt_shares(state, cohort, message.ciphertexts, sharers)
        view = cohort.sharers_view(sharers)
        masked = mask_vector(state, cohort, sharers, vector)
        self._state = replace(state, phase=Phase.MASKED, secrets=None, sharers=sharers, held=held)
        return MaskedInput(context=view, client=state.client, vector=masked)

    def confirm(self, message: SurvivorList) -> Confirmation:
        """Phase 4: accept the list of survivors, this one and no other.

        Args:
            message: whose vectors are in the sum.

        Returns:
            The message for the server.

        Raises:
            SecureAggregationError: for another phase; other sharers; a survivor who did not share;
                a list without this client.
            QuorumNotReached: if too few survived, or too few neighbours of anybody.
        """
        state = self._take(Phase.MASKED)
        cohort = state.known_cohort()
        before = cohort.sharers_view(state.sharers)
        require_same_view(message.context, before, phase=CONFIRM)
        survivors = message.survivors
        require_subset(survivors, state.sharers, phase=CONFIRM)
        if state.client not in survivors:
            msg = (
                f"client={state.client} is not among the survivors, expected its vector in the sum."
            )
            raise SecureAggregationError(msg)
        require_kept(cohort.graph, cohort.bounds, survivors, phase=CONFIRM)
        view = survivors_view(before, survivors)
        answer = Confirmation(
            context=view,
            client=state.client,
            signature=self._identity.sign(CONFIRM, view, state.client),
        )
        self._state = replace(state, phase=Phase.CONFIRMED, survivors=survivors)
        return answer

    def reveal(self, message: Confirmations) -> Reveals:
        """Phase 5: reveal one share per neighbour, and end the session.

        Of a surviving neighbour its seed's share is revealed, of a dropped one its mask key's.

        Args:
            message: who confirmed the same survivors.

        Returns:
            The message for the server.

        Raises:
            SecureAggregationError: for another phase; other survivors; a confirmation that does not
                fit its client's identity, or is of somebody who did not survive.
            QuorumNotReached: for fewer confirmations than the quorum.
        """
        state = self._take(Phase.CONFIRMED)
        cohort = state.known_cohort()
        view = survivors_view(cohort.sharers_view(state.sharers), state.survivors)
        require_same_view(message.context, view, phase=CONFIRM)
        signers = [client for client, _ in message.signatures]
        require_subset(signers, state.survivors, phase=CONFIRM)
        if not len(signers) >= cohort.bounds.quorum:
            msg = f"phase={CONFIRM}: {len(signers)} confirmations, expected {cohort.bounds.quorum}."
            raise QuorumNotReached(msg, hint="The round is void; nothing was revealed.")
        for client, signature in message.signatures:
            self._roster.verify(CONFIRM, view, client, signature)
        alive = set(state.survivors)
        return Reveals(
            context=view,
            client=state.client,
            seeds=tuple((c, pair[:SHARE_BYTES]) for c, pair in state.held if c in alive),
            keys=tuple((c, pair[SHARE_BYTES:]) for c, pair in state.held if c not in alive),
        )

    def to_bytes(self) -> bytes:
        """Return the session as bytes; secret, see :mod:`shared.privacy.secagg.state`."""
        return self._state.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, identity: Identity, roster: Roster) -> Self:
        """Restore a session; identity and roster are the client's own and not in the bytes.

        Raises:
            SchemaMismatch: if the bytes are damaged, of another kind or version.
            SecureAggregationError: if identity or roster are not those it was begun with.
        """
        return cls(SessionState.from_bytes(data), identity, roster)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse copy and pickle: a second copy would answer a phase twice."""
        msg = "a ClientSession cannot be copied or pickled."
        raise PrivacyError(msg, hint="Use to_bytes(), knowingly.")

    def __repr__(self) -> str:
        """Return client and phase alone."""
        return f"ClientSession(client={self.client}, phase={self._name!r})"

    @property
    def _name(self) -> str:
        """Return the phase as text."""
        return self.phase.name.lower()

    def _take(self, phase: Phase) -> SessionState:
        """Return the state and leave the session closed, if it is in this phase."""
        state = self._state
        if state.phase is not phase:
            msg = f"client={state.client}: phase={self._name}, expected {phase.name.lower()}."
            hint = "Each phase is answered once, in order; a refused message ends the session."
            raise SecureAggregationError(msg, hint=hint)
        self._state = state.closed()
        return state
