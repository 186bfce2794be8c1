"""The announced cohort as one party sees it, and the digests that say which view that is.

A view is what has been agreed on so far, as one digest: the terms, then the announcement (U1), then
the sharers (U2), then the survivors (U3). Each is hashed over the one before, so that equal digests
mean equal histories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from shared.errors import QuorumNotReached, SecureAggregationError
from shared.privacy.secagg.codec import write_clients
from shared.privacy.secagg.downloads import KeyList
from shared.privacy.secagg.graph import GraphParameters, NeighbourGraph, parameters
from shared.privacy.secagg.keys import Roster, digest
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import Advertisement

ADVERTISE = "advertise"
SHARE = "share"
CONFIRM = "confirm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Everything that follows from the terms and the announcement.

    Attributes:
        terms: of the session.
        key_list: the announcement.
        entries: each client's advertisement, ascending by client.
        bounds: what a cohort of this size is held to.
        graph: who is whose neighbour.
        view: digest of terms and announcement, 32 bytes.
    """

    terms: SecAggTerms
    key_list: KeyList
    entries: dict[int, Advertisement] = field(repr=False)
    bounds: GraphParameters
    graph: NeighbourGraph = field(repr=False)
    view: bytes

    @classmethod
    def announced(cls, terms: SecAggTerms, key_list: KeyList) -> Self:
        """Work out what an announcement means; signatures are :meth:`verify`'s.

        Raises:
            SecureAggregationError: if the list is for other terms, or a key is there twice.
            QuorumNotReached: if there are fewer clients than the terms require.
            ConflictingSettings: if a cohort of this size cannot be both safe and live.
        """
        if key_list.context != terms.digest():
            msg = "the announcement is for other terms: another run, round, session or plan."
            raise SecureAggregationError(msg)
        clients = key_list.clients
        if not len(clients) >= terms.min_cohort:
            msg = (
                f"phase={ADVERTISE}: {len(clients)} clients, expected at least {terms.min_cohort}."
            )
            raise QuorumNotReached(msg, hint="The round is void; nothing was revealed.")
        require_distinct_keys(key_list.advertisements, {})
        view = digest("announcement", key_list.to_bytes())
        bounds = parameters(len(clients), terms.honest_fraction, terms.survivor_fraction)
        return cls(
            terms=terms,
            key_list=key_list,
            entries={entry.client: entry for entry in key_list.advertisements},
            bounds=bounds,
            graph=NeighbourGraph.drawn(clients, bounds.degree, digest("ring", view)),
            view=view,
        )

    def verify(self, roster: Roster) -> None:
        """Require that every advertisement was signed by its client.

        Raises:
            SecureAggregationError: naming the first client whose signature does not fit, or who is
                not in the roster.
        """
        for entry in self.key_list.advertisements:
            verify_advertisement(entry, roster)

    def entry(self, client: int) -> Advertisement:
        """Return a client's advertisement.

        Raises:
            SecureAggregationError: if the client was not announced.
        """
        if client not in self.entries:
            msg = f"client={client} is not among the {len(self.entries)} announced clients."
            raise SecureAggregationError(msg)
        return self.entries[client]

    def sharers_view(self, sharers: Sequence[int]) -> bytes:
        """Return the digest of terms, announcement and sharers, 32 bytes."""
        return digest("sharers", self.view, write_clients(sharers))


def survivors_view(sharers_view: bytes, survivors: Sequence[int]) -> bytes:
    """Return the digest of terms, announcement, sharers and survivors, 32 bytes."""
    return digest("survivors", sharers_view, write_clients(survivors))


def verify_advertisement(entry: Advertisement, roster: Roster) -> None:
    """Require that an advertisement was signed by its client.

    Raises:
        SecureAggregationError: if not, or if the client is not in the roster.
    """
    content = entry.signed_content()
    roster.verify(ADVERTISE, entry.context, entry.client, entry.signature, content)


def require_same_view(found: bytes, expected: bytes, *, phase: str) -> None:
    """Require that a message belongs to what its receiver agreed to.

    Raises:
        SecureAggregationError: if it does not.
    """
    if found != expected:
        msg = f"phase={phase}: view={found.hex()[:16]}, expected {expected.hex()[:16]}."
        hint = "The sender was told another story, or the message is from another session."
        raise SecureAggregationError(msg, hint=hint)


def require_subset(clients: Iterable[int], of: Iterable[int], *, phase: str) -> None:
    """Require that all clients belong to an earlier set.

    Raises:
        SecureAggregationError: naming the first that does not.
    """
    strangers = set(clients) - set(of)
    if strangers:
        msg = f"phase={phase}: client={min(strangers)} was not in the phase before."
        raise SecureAggregationError(msg)


def require_distinct_keys(entries: Sequence[Advertisement], owners: dict[bytes, int]) -> None:
    """Require that no key is announced twice, by one client or by two.

    Args:
        entries: advertisements that are new.
        owners: the keys known so far and whose they are; the new ones are added.

    Raises:
        SecureAggregationError: naming the clients; of that entry nothing is added.
    """
    for entry in entries:
        keys = (entry.share_key, entry.mask_key, entry.commitment)
        if len(set(keys)) < len(keys) or any(key in owners for key in keys):
            other = next((owners[key] for key in keys if key in owners), entry.client)
            msg = f"client={entry.client} and client={other} announce the same key."
            raise SecureAggregationError(msg)
        owners.update(dict.fromkeys(keys, entry.client))
