"""Clients, a coordinator, and a play of the protocol that any test can stop or bend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from shared.privacy.secagg import (
    Advertisement,
    ClientSession,
    Confirmation,
    Confirmations,
    Coordinator,
    Identity,
    KeyList,
    MaskedInput,
    Reveals,
    Roster,
    SecAggTerms,
    SecureSum,
    Shares,
    SharesForYou,
    SurvivorList,
)

Words = npt.NDArray[np.uint32]

TERMS = SecAggTerms(
    run_id="run",
    server_round=3,
    session=bytes(range(32)),
    config_digest="c" * 64,
    plan_digest="d" * 64,
    honest_fraction=0.8,
    survivor_fraction=0.8,
    min_cohort=3,
    dimension=6,
)


def vector_of(client: int, dimension: int) -> Words:
    return np.random.default_rng(client).integers(0, 2**32, dimension, dtype=np.uint32)


def plain_sum(clients: Iterable[int], dimension: int) -> Words:
    """The oracle: Python integers, reduced at the end."""
    columns = zip(*(vector_of(client, dimension).tolist() for client in clients), strict=True)
    return np.array([sum(column) % 2**32 for column in columns], dtype=np.uint32)


@dataclass
class Play:
    """One session; every message travels as bytes."""

    terms: SecAggTerms
    identities: dict[int, Identity]
    roster: Roster
    coordinator: Coordinator
    sessions: dict[int, ClientSession] = field(default_factory=dict)
    keys: KeyList | None = None
    dealt: dict[int, SharesForYou] = field(default_factory=dict)
    survivors: SurvivorList | None = None
    confirmed: Confirmations | None = None

    @classmethod
    def of(cls, clients: int | Iterable[int], **changes: object) -> Play:
        who = range(clients) if isinstance(clients, int) else clients
        identities = {client: Identity.generate() for client in who}
        return cls.among(identities, **changes)

    @classmethod
    def among(cls, identities: dict[int, Identity], **changes: object) -> Play:
        terms = replace(TERMS, **changes)  # type: ignore[arg-type]
        roster = Roster({client: who.public_key for client, who in identities.items()})
        return cls(terms, identities, roster, Coordinator(terms, roster))

    def start(self, client: int) -> Advertisement:
        self.sessions[client], message = ClientSession.start(
            self.terms, client, self.identities[client], self.roster
        )
        return Advertisement.from_bytes(message.to_bytes())

    def advertise(self, clients: Iterable[int] | None = None) -> KeyList:
        for client in self.identities if clients is None else clients:
            self.coordinator.accept(client, self.start(client))
        self.keys = KeyList.from_bytes(self.coordinator.key_list().to_bytes())
        return self.keys

    def share_of(self, client: int) -> Shares:
        assert self.keys is not None
        return Shares.from_bytes(self.sessions[client].share(self.keys).to_bytes())

    def share(self, clients: Iterable[int] | None = None) -> dict[int, SharesForYou]:
        for client in self.sessions if clients is None else clients:
            self.coordinator.accept(client, self.share_of(client))
        dealt = self.coordinator.deal()
        self.dealt = {c: SharesForYou.from_bytes(m.to_bytes()) for c, m in dealt.items()}
        return self.dealt

    def masked_of(self, client: int) -> MaskedInput:
        vector = vector_of(client, self.terms.dimension)
        message = self.sessions[client].mask(self.dealt[client], vector)
        return MaskedInput.from_bytes(message.to_bytes())

    def mask(self, clients: Iterable[int] | None = None) -> SurvivorList:
        for client in self.dealt if clients is None else clients:
            self.coordinator.accept(client, self.masked_of(client))
        self.survivors = SurvivorList.from_bytes(self.coordinator.survivor_list().to_bytes())
        return self.survivors

    def confirmation_of(self, client: int) -> Confirmation:
        assert self.survivors is not None
        message = self.sessions[client].confirm(self.survivors)
        return Confirmation.from_bytes(message.to_bytes())

    def confirm(self, clients: Iterable[int] | None = None) -> Confirmations:
        assert self.survivors is not None
        for client in self.survivors.survivors if clients is None else clients:
            self.coordinator.accept(client, self.confirmation_of(client))
        self.confirmed = Confirmations.from_bytes(self.coordinator.confirmations().to_bytes())
        return self.confirmed

    def reveals_of(self, client: int) -> Reveals:
        assert self.confirmed is not None
        return Reveals.from_bytes(self.sessions[client].reveal(self.confirmed).to_bytes())

    def reveal(self, clients: Iterable[int] | None = None) -> SecureSum:
        assert self.confirmed is not None
        who = [client for client, _ in self.confirmed.signatures] if clients is None else clients
        for client in who:
            self.coordinator.accept(client, self.reveals_of(client))
        return self.coordinator.result()

    def until_shared(self) -> Play:
        self.advertise()
        self.share()
        return self

    def until_masked(self) -> Play:
        self.until_shared()
        self.mask()
        return self

    def until_confirmed(self) -> Play:
        self.until_masked()
        self.confirm()
        return self

    def fork(self, client: int) -> ClientSession:
        """The same session in another process."""
        raw = self.sessions[client].to_bytes()
        return ClientSession.from_bytes(raw, identity=self.identities[client], roster=self.roster)
