"""A client's secrets between two phases, as a value and as bytes.

The bytes are secret. They belong where only the client can read them and where nobody can put
back an older copy: a session restored from an old copy would answer a phase twice. So a transport
stores the state after a phase *before* it sends the answer, over the state before it.

What is no longer needed is not kept: a client's own keys and seed are gone once its vector is
masked, its neighbours' shares once it has revealed. (Python cannot overwrite memory; what is
dropped is out of reach of the program, not of whoever reads the process.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from shared.errors import SchemaMismatch, SecureAggregationError
from shared.privacy.secagg.codec import (
    Reader,
    Row,
    require_client,
    require_clients,
    require_table,
    require_width,
    seal,
    unseal,
    write_blob,
    write_clients,
    write_integer,
    write_table,
)
from shared.privacy.secagg.cohort import Cohort
from shared.privacy.secagg.downloads import KeyList
from shared.privacy.secagg.keys import KEY_BYTES
from shared.privacy.secagg.masks import SEED_BYTES
from shared.privacy.secagg.terms import SecAggTerms
from shared.privacy.secagg.uploads import PAIR_BYTES

_KIND = 11
_SECRET_BYTES = 2 * KEY_BYTES + SEED_BYTES
_DIGEST_BYTES = 32


class Phase(IntEnum):
    """What a client did last."""

    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    CONFIRMED = 4
    CLOSED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """What one client draws for one session.

    Attributes:
        share_key: X25519 private key, 32 bytes.
        mask_key: X25519 private key, 32 bytes.
        seed: of the self-mask, 32 bytes.
    """

    share_key: bytes = field(repr=False)
    mask_key: bytes = field(repr=False)
    seed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """Everything that a client carries from one phase to the next.

    Attributes:
        phase: what was done last; says which of the fields below are there.
        terms: of the session.
        client: whose state.
        roster_digest: of the roster under which signatures were verified, 64 hexadecimal digits.
        secrets: until the vector is masked.
        cohort: from sharing until the end; written as the announcement that it follows from.
        sharers: from masking until the end, ascending.
        held: from masking until the end: (neighbour, its two shares, 66 bytes).
        survivors: from the confirmation until the end, ascending.
    """

    phase: Phase
    terms: SecAggTerms
    client: int
    roster_digest: str
    secrets: Secrets | None = field(default=None, repr=False)
    cohort: Cohort | None = field(default=None, repr=False)
    sharers: tuple[int, ...] = field(default=(), repr=False)
    held: tuple[Row, ...] = field(default=(), repr=False)
    survivors: tuple[int, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        require_client(self.client)
        require_clients("sharers", self.sharers)
        require_table("held", self.held, PAIR_BYTES)
        require_clients("survivors", self.survivors)
        found = (
            self.secrets is not None,
            self.cohort is not None,
            bool(self.sharers),
            bool(self.held),
            bool(self.survivors),
        )
        if found != _FIELDS[self.phase]:
            msg = f"phase={self.phase.name.lower()}: the state has other fields than it should."
            raise SchemaMismatch(msg)

    def own_secrets(self) -> Secrets:
        """Return the secrets.

        Raises:
            SecureAggregationError: if they are gone.
        """
        if self.secrets is None:
            msg = f"phase={self.phase.name.lower()}: this client's secrets are gone."
            raise SecureAggregationError(msg)
        return self.secrets

    def known_cohort(self) -> Cohort:
        """Return the announced cohort.

        Raises:
            SecureAggregationError: if none is announced yet, or the session is over.
        """
        if self.cohort is None:
            msg = f"phase={self.phase.name.lower()}: no cohort is announced."
            raise SecureAggregationError(msg)
        return self.cohort

    def closed(self) -> Self:
        """Return the state after the end: public fields alone."""
        return type(self)(
            phase=Phase.CLOSED,
            terms=self.terms,
            client=self.client,
            roster_digest=self.roster_digest,
        )

    def to_bytes(self) -> bytes:
        """Return the canonical bytes; secret."""
        secrets = self.secrets
        own = b"" if secrets is None else secrets.share_key + secrets.mask_key + secrets.seed
        announced = b"" if self.cohort is None else self.cohort.key_list.to_bytes()
        return seal(
            _KIND,
            b"".join(
                (
                    write_integer(self.phase, 1),
                    write_blob(self.terms.to_bytes()),
                    write_integer(self.client),
                    bytes.fromhex(self.roster_digest),
                    write_blob(own),
                    write_blob(announced),
                    write_clients(self.sharers),
                    write_table(self.held),
                    write_clients(self.survivors),
                )
            ),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a state.

        Raises:
            SchemaMismatch: if the bytes are damaged, of another kind or version, or not canonical.
        """
        reader = unseal(_KIND, data)
        phase = _read_phase(reader)
        terms = SecAggTerms.from_bytes(reader.blob())
        state = cls(
            phase=phase,
            terms=terms,
            client=reader.integer(),
            roster_digest=reader.take(_DIGEST_BYTES).hex(),
            secrets=_read_secrets(reader.blob()),
            cohort=_read_cohort(terms, reader.blob()),
            sharers=reader.clients(),
            held=reader.table(PAIR_BYTES),
            survivors=reader.clients(),
        )
        reader.end()
        return state


# Which of secrets, announcement, sharers, shares and survivors a phase has.
_FIELDS = {
    Phase.ADVERTISED: (True, False, False, False, False),
    Phase.SHARED: (True, True, False, False, False),
    Phase.MASKED: (False, True, True, True, False),
    Phase.CONFIRMED: (False, True, True, True, True),
    Phase.CLOSED: (False, False, False, False, False),
}


def _read_phase(reader: Reader) -> Phase:
    """Read a phase."""
    value = reader.integer(1)
    try:
        return Phase(value)
    except ValueError as error:
        msg = f"phase={value}, expected {min(Phase):d} to {max(Phase):d}."
        raise SchemaMismatch(msg) from error


def _read_secrets(raw: bytes) -> Secrets | None:
    """Read secrets from their bytes, which may be none."""
    if not raw:
        return None
    require_width("secrets", raw, _SECRET_BYTES)
    return Secrets(
        share_key=raw[:KEY_BYTES],
        mask_key=raw[KEY_BYTES : 2 * KEY_BYTES],
        seed=raw[2 * KEY_BYTES :],
    )


def _read_cohort(terms: SecAggTerms, raw: bytes) -> Cohort | None:
    """Read a cohort from the bytes of its announcement, which may be none."""
    return Cohort.announced(terms, KeyList.from_bytes(raw)) if raw else None
