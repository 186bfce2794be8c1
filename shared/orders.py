"""Which version of an adapter to use: orders, numbered, chained and signed by the server.

A promotion names a new version, a rollback one that is older than the version in use. An order
carries a number that only grows and the hash of the order before it, and every manifest carries
the number of the last order before it: neither an old adapter nor an old order can be passed off
as new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.canonical import canonical_json, sha256_hex
from shared.crypto import Signature, SigningKey
from shared.documents import (
    SCHEMA,
    check_signed,
    digest_field,
    load_object,
    number_field,
    record,
    refuse_field,
    time_field,
)
from shared.errors import AdapterCorrupt, InvalidValue

ORDER_DOMAIN = "fedslm-adapter-order-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Which version to use from now on, as the server signs it.

    Attributes:
        number: from 1, without gaps; the newest counts.
        kind: "promote", or "rollback" to a version that is older than the one in use.
        digest: of the version to use.
        sequence: of that version.
        replaces: digest of the version in use before; None for the first order.
        previous: SHA-256 of the canonical JSON of the order before; None for the first.
        created: UTC, ``YYYY-MM-DDTHH:MM:SSZ``.
    """

    number: int
    kind: str
    digest: str
    sequence: int
    replaces: str | None
    previous: str | None
    created: str

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidValue: for the first one that is not as described.
        """
        number_field("number", self.number, 1)
        number_field("sequence", self.sequence, 1)
        digest_field("digest", self.digest)
        time_field("created", self.created)
        if self.kind not in {"promote", "rollback"}:
            refuse_field("kind", "promote or rollback")
        for key in ("replaces", "previous"):
            value = getattr(self, key)
            if (value is None) != (self.number == 1):
                refuse_field(key, "null for the first order alone")
            if value is not None:
                digest_field(key, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_bytes(self) -> bytes:
        """Return the canonical JSON, whose SHA-256 is signed and named by the next order."""
        return canonical_json(self.to_dict()).encode()

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_hex(self.to_bytes())

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Order:
        """Read the JSON form.

        Raises:
            InvalidValue: if a key is missing, unknown, or not as described.
        """
        return cls(**record(data, cls, "an order"))


def sign_order(order: Order, key: SigningKey) -> Signature:
    """Sign an order."""
    return key.sign(ORDER_DOMAIN, order.hash)


def read_order(data: bytes, signature: Signature, *, trusted: str) -> Order:
    """Read an order that a trusted key signed; the signature is checked before the text.

    Args:
        data: canonical JSON.
        signature: detached, for :data:`ORDER_DOMAIN`.
        trusted: the only public key that counts.

    Raises:
        AdapterUntrusted: if the signature is of another key, purpose or text.
        AdapterCorrupt: if the text is no order.
    """
    check_signed(data, signature, domain=ORDER_DOMAIN, trusted=trusted)
    try:
        order = Order.from_dict(load_object(data))
        canonical = order.to_bytes() == data
    except (InvalidValue, ValueError, TypeError, RecursionError) as error:
        msg = "An order about adapters is signed and is no order of schema 1."
        raise AdapterCorrupt(msg, hint="Is the server newer than this program?") from error
    if not canonical:
        msg = "An order about adapters is not in canonical form."
        raise AdapterCorrupt(msg)
    return order
