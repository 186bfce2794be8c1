"""What the server sends to clients, and all that it can ask of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

from shared.errors import SchemaMismatch
from shared.privacy.secagg.codec import (
    Reader,
    Row,
    require_client,
    require_clients,
    require_table,
    write_clients,
    write_integer,
    write_table,
)
from shared.privacy.secagg.keys import SIGNATURE_BYTES
from shared.privacy.secagg.message import Message
from shared.privacy.secagg.uploads import CIPHERTEXT_BYTES, Advertisement


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyList(Message):
    """Phase 2, server to all: everybody's advertisement, the announced cohort.

    The context is the digest of the terms.

    Attributes:
        advertisements: ascending by client, all of the same context.
    """

    KIND: ClassVar[int] = 3

    advertisements: tuple[Advertisement, ...]

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_clients("advertisements", (entry.client for entry in self.advertisements))
        for entry in self.advertisements:
            if entry.context != self.context:
                msg = f"client={entry.client} advertised under other terms than the list."
                raise SchemaMismatch(msg)

    @property
    def clients(self) -> tuple[int, ...]:
        """Return the announced clients, ascending."""
        return tuple(entry.client for entry in self.advertisements)

    def _body(self) -> bytes:
        entries = (entry._body() for entry in self.advertisements)
        return write_integer(len(self.advertisements)) + b"".join(entries)

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        count = reader.integer()
        entries = tuple(Advertisement._read(context, reader) for _ in range(count))
        return cls(context=context, advertisements=entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesForYou(Message):
    """Phase 3, server to one client: who shared, and what was encrypted for this client.

    The context is the digest of the announcement.

    Attributes:
        receiver: for whom.
        sharers: (client, signature) of everybody who shared, the receiver included.
        ciphertexts: (sender, 82 bytes) of the receiver's neighbours among them.
    """

    KIND: ClassVar[int] = 5

    receiver: int
    sharers: tuple[Row, ...] = field(repr=False)
    ciphertexts: tuple[Row, ...] = field(repr=False)

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.receiver)
        require_table("sharers", self.sharers, SIGNATURE_BYTES)
        require_table("ciphertexts", self.ciphertexts, CIPHERTEXT_BYTES)

    @property
    def clients(self) -> tuple[int, ...]:
        """Return who shared, ascending."""
        return tuple(client for client, _ in self.sharers)

    def _body(self) -> bytes:
        return (
            write_integer(self.receiver) + write_table(self.sharers) + write_table(self.ciphertexts)
        )

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(
            context=context,
            receiver=reader.integer(),
            sharers=reader.table(SIGNATURE_BYTES),
            ciphertexts=reader.table(CIPHERTEXT_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivorList(Message):
    """Phase 4, server to all: whose masked vectors are in the sum.

    The context is the digest of announcement and sharers. There is no list of the dropped: they are
    the sharers that are not here, so that nobody can be on both lists.

    Attributes:
        survivors: ascending.
    """

    KIND: ClassVar[int] = 7

    survivors: tuple[int, ...]

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_clients("survivors", self.survivors)

    def _body(self) -> bytes:
        return write_clients(self.survivors)

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(context=context, survivors=reader.clients())


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmations(Message):
    """Phase 5, server to all: who confirmed.

    The context is the digest of announcement, sharers and survivors.

    Attributes:
        signatures: (client, signature).
    """

    KIND: ClassVar[int] = 9

    signatures: tuple[Row, ...] = field(repr=False)

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_table("signatures", self.signatures, SIGNATURE_BYTES)

    def _body(self) -> bytes:
        return write_table(self.signatures)

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(context=context, signatures=reader.table(SIGNATURE_BYTES))
