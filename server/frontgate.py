"""Who may pass the front: enrolled keys with a fresh signature, each at a bounded rate."""

from __future__ import annotations

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from server.superlinkdoor import (
    CLOCK_AHEAD_SECONDS,
    CLOCK_BEHIND_SECONDS,
    PUBLIC_KEY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
)
from shared import validate
from shared.errors import AccessDenied

LONGEST_KEY: Final = 2048
LONGEST_SIGNATURE: Final = 512
LONGEST_TIMESTAMP: Final = 64
CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})

_REMEMBERED = 20_000


def signer_of(headers: Mapping[str, list[str]], *, now: datetime) -> bytes:
    """Return the key that signed a call.

    Args:
        headers: values by lower-case name; each of the three headers must be there once.
        now: what the time is, with a zone.

    Returns:
        SubjectPublicKeyInfo, DER. That its holder is enrolled remains to be asked.

    Raises:
        AccessDenied: if a header is missing, doubled or malformed, the time is off, or the
            signature does not hold. The message never says more to the caller.
    """
    try:
        pem = _decoded(_single(headers, PUBLIC_KEY_HEADER, LONGEST_KEY))
        signature = _decoded(_single(headers, SIGNATURE_HEADER, LONGEST_SIGNATURE))
        timestamp = _single(headers, TIMESTAMP_HEADER, LONGEST_TIMESTAMP)
        signed_at = datetime.fromisoformat(timestamp)
        age = (now - signed_at.astimezone(UTC)).total_seconds()
        # A time without a zone would be read in this machine's own.
        fresh = signed_at.tzinfo is not None and -CLOCK_AHEAD_SECONDS < age < CLOCK_BEHIND_SECONDS
        key = load_pem_public_key(pem)
        if not (fresh and isinstance(key, EllipticCurvePublicKey) and key.curve.name in CURVES):
            raise ValueError
        key.verify(signature, timestamp.encode("ascii"), ECDSA(SHA256()))
        # Flower compares bytes: another spelling of an enrolled key is another key.
        if key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != pem:
            raise ValueError
    except (ValueError, OverflowError, UnsupportedAlgorithm, InvalidSignature) as error:
        msg = "The call is not signed by a node."
        raise AccessDenied(msg) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _single(headers: Mapping[str, list[str]], name: str, longest: int) -> str:
    """Return the one value of a header.

    Raises:
        ValueError: if there is none, several, or a long one.
    """
    values = headers.get(name, [])
    if len(values) != 1 or not 0 < len(values[0]) <= longest:
        raise ValueError
    return values[0]


def _decoded(text: str) -> bytes:
    """Decode base64 strictly.

    Raises:
        ValueError: for anything else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError from error


@dataclass(slots=True)
class _Bucket:
    """Calls that are left, as of a moment."""

    left: float
    at: float


class RateLimit:
    """A bucket of calls for each caller; forgets who has been silent longest.

    Args:
        per_minute: how many calls one caller may make in a minute; also the size of the bucket.
        remembered: how many callers are told apart; memory is bounded by it.
    """

    def __init__(self, per_minute: int, *, remembered: int = _REMEMBERED) -> None:
        validate.positive_integer(per_minute=per_minute, remembered=remembered)
        self._size = float(per_minute)
        self._remembered = remembered
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    def take(self, caller: bytes, *, now: float) -> bool:
        """Take one call; False if none is left.

        Args:
            caller: who calls.
            now: a clock that only goes forward, in seconds.
        """
        bucket = self._refilled(caller, now)
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True

    def exhausted(self, caller: bytes, *, now: float) -> bool:
        """Tell whether no call is left, without taking one."""
        known = self._buckets.get(caller)
        return known is not None and self._refilled(caller, now).left < 1

    def _refilled(self, caller: bytes, now: float) -> _Bucket:
        """Return a caller's bucket with what has flowed in since."""
        bucket = self._buckets.pop(caller, None) or _Bucket(self._size, now)
        bucket.left = min(self._size, bucket.left + max(0.0, now - bucket.at) * self._size / 60)
        bucket.at = now
        self._buckets[caller] = bucket
        if len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return bucket
