"""What canaries were committed to before training, opened so that anybody can check it.

Before the first round one hash goes into the ledger: of a salt, the coins, and one digest per
canary. Afterwards the report may publish all of that (an *opening*) and still show no secret:

- ``salt``: 256 bits, in hex; without it nobody can try coins against the hash.
- ``coins``: one bit per canary, 1 for included, the first canary in the highest bit of the first
  byte; zeros fill the last byte. Hex.
- ``digests``: for each canary SHA-256 over the canonical JSON of
  ``["fedslm-canary-text-v1", key, index, kind, client, prompt, text]``. The key is 256 bits that
  stay with whoever planted the canaries: without it four words would be found by trying all of
  them, with it any single canary can be shown later.
- ``kinds`` and ``repeats``.

The commitment is SHA-256 over ``fedslm-canary-commitment-v1``, a line feed, and the canonical JSON
of the opening (:mod:`shared.canonical`). It fixes which canaries there are, in which client, how
often, and how each coin fell.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from shared.canonical import canonical_json, sha256_hex
from shared.errors import AuditError

SCHEMA = 1
_COMMITMENT_DOMAIN = "fedslm-canary-commitment-v1"
_TEXT_DOMAIN = "fedslm-canary-text-v1"
_DIGEST_LENGTH = 64
_KEYS = frozenset(("schema", "salt", "repeats", "coins", "kinds", "digests"))


def opening_of(
    *, salt: str, repeats: int, coins: Sequence[bool], kinds: Sequence[str], digests: Sequence[str]
) -> dict[str, Any]:
    """Return what a commitment is taken over, as it may be published after training.

    Args:
        salt: 64 hexadecimal digits.
        repeats: copies of an included canary.
        coins: how the coin of each canary fell.
        kinds: kind of each canary.
        digests: digest of each canary, from :func:`text_digest`.

    Raises:
        AuditError: if the lengths differ or a value has not the form above.
    """
    opening = {
        "schema": SCHEMA,
        "salt": salt,
        "repeats": repeats,
        "coins": coins_hex(coins),
        "kinds": list(kinds),
        "digests": list(digests),
    }
    if len(coins) != len(digests):
        msg = f"coins={len(coins)}, digests={len(digests)}, expected as many of both."
        raise AuditError(msg)
    _require_form(opening)
    return opening


def commitment_of(opening: Mapping[str, Any]) -> str:
    """Return the commitment to an opening: 64 hexadecimal digits.

    Raises:
        AuditError: if it is not an opening.
    """
    _require_form(opening)
    return sha256_hex(f"{_COMMITMENT_DOMAIN}\n{canonical_json(dict(opening))}")


def verify_commitment(opening: Mapping[str, Any], commitment: str) -> bool:
    """Tell whether an opening is the one that was committed to.

    Args:
        opening: as a report shows it.
        commitment: as the ledger holds it from before the first round.

    Returns:
        True if they belong together; False for any other commitment.

    Raises:
        AuditError: if it is not an opening.
    """
    return hmac.compare_digest(commitment_of(opening).encode(), commitment.encode())


def text_digest(*, key: str, index: int, kind: str, client: int, prompt: str, text: str) -> str:
    """Return the digest under which a canary stands in an opening.

    Args:
        key: 64 hexadecimal digits that are not published.
        index: position of the canary.
        kind: its kind.
        client: the only client that may hold it.
        prompt: what stands before the secret.
        text: the secret.
    """
    return sha256_hex(canonical_json([_TEXT_DOMAIN, key, index, kind, client, prompt, text]))


def coins_hex(coins: Sequence[bool]) -> str:
    """Return coins as hex, the first in the highest bit of the first byte.

    >>> coins_hex([True, False, False, False, False, False, False, False, True])
    '8080'
    """
    padded = [*coins, *[False] * (-len(coins) % 8)]
    bits = "".join("1" if coin else "0" for coin in padded)
    return "".join(f"{int(bits[i : i + 8], 2):02x}" for i in range(0, len(bits), 8))


def read_coins(opening: Mapping[str, Any]) -> list[bool]:
    """Return the coins of an opening, one per canary.

    Raises:
        AuditError: if it is not an opening.
    """
    _require_form(opening)
    data, count = bytes.fromhex(opening["coins"]), len(opening["digests"])
    return [bool(data[i // 8] >> (7 - i % 8) & 1) for i in range(count)]


def tally(opening: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return how many canaries of each kind the coins included, and how many they kept out.

    Raises:
        AuditError: if it is not an opening.
    """
    counts: dict[str, tuple[int, int]] = {}
    for kind, coin in zip(opening["kinds"], read_coins(opening), strict=True):
        included, kept = counts.get(kind, (0, 0))
        counts[kind] = (included + coin, kept + (not coin))
    return counts


def _require_form(opening: Mapping[str, Any]) -> None:
    """Refuse what is not an opening.

    Raises:
        AuditError: naming the part that is wrong.
    """
    wrong = _wrong_part(opening)
    if wrong is None:
        return
    msg = f"The opening of a canary commitment is malformed: {wrong}."
    raise AuditError(msg, hint="Expected what the audit report holds; see docs/audits/canaries.md.")


def _wrong_part(opening: Mapping[str, Any]) -> str | None:
    """Return which part of an opening is wrong, or None."""
    if set(opening) != _KEYS:
        return f"its keys are not {sorted(_KEYS)}"
    if opening["schema"] != SCHEMA or isinstance(opening["schema"], bool):
        return f"its schema is not {SCHEMA}"
    repeats = opening["repeats"]
    if isinstance(repeats, bool) or not (isinstance(repeats, int) and repeats >= 1):
        return "repeats is not a positive integer"
    kinds, digests = opening["kinds"], opening["digests"]
    if not (_texts(kinds) and _texts(digests) and len(kinds) == len(digests)):
        return "kinds and digests are not lists of as many strings"
    if not all(_is_hex(digest, _DIGEST_LENGTH) for digest in (*digests, opening["salt"])):
        return "salt or a digest is not 64 hexadecimal digits"
    count = len(digests)
    coins = opening["coins"]
    if not _is_hex(coins, 2 * -(-count // 8)):
        return f"coins are not {count} bits in hex"
    unused = -count % 8
    if coins and int(coins[-2:], 16) & ((1 << unused) - 1):
        return "a bit behind the last coin is set"
    return None


def _texts(value: object) -> bool:
    """Tell whether a value is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_hex(value: object, length: int) -> bool:
    """Tell whether a value is lower-case hex of a length."""
    return (
        isinstance(value, str)
        and len(value) == length
        and all(digit in "0123456789abcdef" for digit in value)
    )
