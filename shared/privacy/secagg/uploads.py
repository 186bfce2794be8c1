"""What a client sends to the server, and all that it sends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from shared.errors import SchemaMismatch
from shared.privacy.secagg.codec import (
    Reader,
    Row,
    require_client,
    require_table,
    require_width,
    write_blob,
    write_integer,
    write_table,
)
from shared.privacy.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from shared.privacy.secagg.message import Message
from shared.privacy.secagg.shamir import SHARE_BYTES

PAIR_BYTES = 2 * SHARE_BYTES
CIPHERTEXT_BYTES = PAIR_BYTES + TAG_BYTES
WORD_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement(Message):
    """Phase 1, client to server: a client's keys for this session, signed by its identity.

    The context is the digest of the terms.

    Attributes:
        client: index in the roster.
        share_key: X25519 public key under which shares are encrypted for it, 32 bytes.
        mask_key: X25519 public key from which its pairwise masks are agreed, 32 bytes.
        commitment: SHA-256 of its self-mask seed, 32 bytes; hides the seed's 256 bits.
        signature: Ed25519, 64 bytes, over context, client, both keys and the commitment.
    """

    KIND: ClassVar[int] = 2

    client: int
    share_key: bytes
    mask_key: bytes
    commitment: bytes
    signature: bytes

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.client)
        require_width("share_key", self.share_key, KEY_BYTES)
        require_width("mask_key", self.mask_key, KEY_BYTES)
        require_width("commitment", self.commitment, KEY_BYTES)
        require_width("signature", self.signature, SIGNATURE_BYTES)

    def signed_content(self) -> bytes:
        """Return what the signature covers beside context and client."""
        return self.share_key + self.mask_key + self.commitment

    def _body(self) -> bytes:
        return write_integer(self.client) + self.signed_content() + self.signature

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(
            context=context,
            client=reader.integer(),
            share_key=reader.take(KEY_BYTES),
            mask_key=reader.take(KEY_BYTES),
            commitment=reader.take(KEY_BYTES),
            signature=reader.take(SIGNATURE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares(Message):
    """Phase 2, client to server: encrypted shares of both secrets, one ciphertext per neighbour.

    The context is the digest of the announcement. The signature tells all others that this client
    is alive in this announcement, which holds their fresh keys, and in no other.

    Attributes:
        client: who shares.
        ciphertexts: (receiver, 82 bytes) for every neighbour.
        signature: Ed25519, 64 bytes, over context and client.
    """

    KIND: ClassVar[int] = 4

    client: int
    ciphertexts: tuple[Row, ...] = field(repr=False)
    signature: bytes

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.client)
        require_table("ciphertexts", self.ciphertexts, CIPHERTEXT_BYTES)
        require_width("signature", self.signature, SIGNATURE_BYTES)

    def _body(self) -> bytes:
        return write_integer(self.client) + write_table(self.ciphertexts) + self.signature

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(
            context=context,
            client=reader.integer(),
            ciphertexts=reader.table(CIPHERTEXT_BYTES),
            signature=reader.take(SIGNATURE_BYTES),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedInput(Message):
    """Phase 3, client to server: the masked vector.

    The context is the digest of announcement and sharers.

    Attributes:
        client: whose.
        vector: little-endian 32-bit words.
    """

    KIND: ClassVar[int] = 6

    client: int
    vector: bytes = field(repr=False)

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.client)
        if not (isinstance(self.vector, bytes) and len(self.vector) % WORD_BYTES == 0):
            msg = "the masked vector is not a whole number of 32-bit words."
            raise SchemaMismatch(msg)

    @property
    def words(self) -> npt.NDArray[np.uint32]:
        """Return the vector as uint32, shape ``(dimension,)``, read-only."""
        words: npt.NDArray[np.uint32] = np.frombuffer(self.vector, dtype="<u4")
        return words

    def _body(self) -> bytes:
        return write_integer(self.client) + write_blob(self.vector)

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(context=context, client=reader.integer(), vector=reader.blob())


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation(Message):
    """Phase 4, client to server: this client has seen these survivors, and will see no others.

    The context is the digest of announcement, sharers and survivors.

    Attributes:
        client: who confirms.
        signature: Ed25519, 64 bytes, over context and client.
    """

    KIND: ClassVar[int] = 8

    client: int
    signature: bytes

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.client)
        require_width("signature", self.signature, SIGNATURE_BYTES)

    def _body(self) -> bytes:
        return write_integer(self.client) + self.signature

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(context=context, client=reader.integer(), signature=reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveals(Message):
    """Phase 5, client to server: one share per neighbour that shared, of one of its two secrets.

    The context is the digest of announcement, sharers and survivors.

    Attributes:
        client: who reveals.
        seeds: (survivor, 33 bytes): shares of self-mask seeds.
        keys: (dropped client, 33 bytes): shares of private mask keys.
    """

    KIND: ClassVar[int] = 10

    client: int
    seeds: tuple[Row, ...] = field(repr=False)
    keys: tuple[Row, ...] = field(repr=False)

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        require_client(self.client)
        require_table("seeds", self.seeds, SHARE_BYTES)
        require_table("keys", self.keys, SHARE_BYTES)
        both = {client for client, _ in self.seeds} & {client for client, _ in self.keys}
        if both:
            msg = f"client={min(both)} has both secrets revealed, expected one of them."
            raise SchemaMismatch(msg)

    def _body(self) -> bytes:
        return write_integer(self.client) + write_table(self.seeds) + write_table(self.keys)

    @classmethod
    def _read(cls, context: bytes, reader: Reader) -> Self:
        return cls(
            context=context,
            client=reader.integer(),
            seeds=reader.table(SHARE_BYTES),
            keys=reader.table(SHARE_BYTES),
        )
