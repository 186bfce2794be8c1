"""Shamir's secret sharing of 32-byte secrets over the prime field of order 2**256 + 297.

A secret is the value at zero of a polynomial of degree ``threshold - 1`` whose other coefficients
are uniform; share number x (1 to ``count``) is its value at x. Any ``threshold`` shares give the
secret; any fewer are independent of it, exactly (Shamir 1979), which the tests check by going
through every polynomial over a small prime.

The prime is the smallest above 2**256, so that every 32-byte string is a field element and a share
has 33 bytes. Since the points are always 1 to ``count`` less the missing set M, the Lagrange
coefficient of point j at zero is

    (-1)**(j - 1) * binomial(count, j) * prod over m in M of (m - j) / m,

so a secret costs one inversion and ``O((count - |M|) * |M|)`` products of small integers, and the
coefficients are kept for all secrets with the same missing shares.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from shared.errors import InvalidValue, SecureAggregationError

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
MIN_THRESHOLD = 2

_FAMILIES = 256


def split(
    secret: int,
    *,
    threshold: int,
    count: int,
    prime: int = PRIME,
    draw: Callable[[int], int] = secrets.randbelow,
) -> list[int]:
    """Share a secret among ``count`` holders.

    Args:
        secret: a field element.
        threshold: how many shares give the secret back, ``2 <= threshold <= count``.
        count: number of holders, below the prime.
        prime: order of the field.
        draw: returns a uniform integer in ``[0, argument)``; the operating system's generator.

    Returns:
        The shares of the points 1 to ``count``.

    Raises:
        InvalidValue: if an argument is out of its range.
    """
    if not (MIN_THRESHOLD <= threshold <= count < prime and 0 <= secret < prime):
        msg = (
            f"threshold={threshold}, count={count}: expected 2 <= threshold <= count < prime and a "
            "secret in the field."
        )
        raise InvalidValue(msg)
    coefficients = [secret, *(draw(prime) for _ in range(threshold - 1))]
    coefficients.reverse()
    return [_evaluate(coefficients, x, prime) for x in range(1, count + 1)]


def combine(shares: Mapping[int, int], *, threshold: int, count: int, prime: int = PRIME) -> int:
    """Recover a secret from the shares that are there.

    All shares given are used, so one that was altered changes the result; whoever calls must be
    able to recognise the secret (by a commitment or a public key).

    Args:
        shares: point (1 to ``count``) to share.
        threshold: the threshold under which the secret was shared.
        count: the number of holders under which it was shared.
        prime: order of the field.

    Returns:
        The field element at zero.

    Raises:
        SecureAggregationError: for fewer shares than the threshold, or a point out of range.
    """
    if not (len(shares) >= threshold and all(1 <= x <= count for x in shares)):
        msg = f"{len(shares)} shares, expected at least {threshold} with points 1 to {count}."
        raise SecureAggregationError(msg)
    missing = tuple(x for x in range(1, count + 1) if x not in shares)
    weights = _weights(count, missing, prime)
    return sum(weights[x - 1] * share for x, share in shares.items()) % prime


def share_to_bytes(share: int) -> bytes:
    """Return the 33 bytes of a share."""
    return share.to_bytes(SHARE_BYTES, "big")


def share_from_bytes(data: bytes) -> int:
    """Read a share.

    Raises:
        SecureAggregationError: if it is not a field element in 33 bytes.
    """
    share = int.from_bytes(data, "big")
    if not (len(data) == SHARE_BYTES and share < PRIME):
        msg = f"a share of {len(data)} bytes is not an element of the field."
        raise SecureAggregationError(msg)
    return share


def secret_to_bytes(secret: int) -> bytes:
    """Return the 32 bytes of a recovered secret.

    Raises:
        SecureAggregationError: if it does not fit, which no honest set of shares gives.
    """
    if not 0 <= secret < 1 << (8 * SECRET_BYTES):
        msg = "shares give no 32-byte secret, so at least one of them is wrong."
        raise SecureAggregationError(msg)
    return secret.to_bytes(SECRET_BYTES, "big")


def _evaluate(descending: Sequence[int], x: int, prime: int) -> int:
    """Return a polynomial's value by Horner's rule."""
    value = 0
    for coefficient in descending:
        value = (value * x + coefficient) % prime
    return value


@lru_cache(maxsize=_FAMILIES)
def _weights(count: int, missing: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Return the Lagrange coefficients at zero of the points 1 to ``count`` that are not missing.

    Entry ``j - 1`` belongs to point j and is zero for a missing point.
    """
    scale = pow(math.prod(missing), -1, prime)
    return tuple(
        base * math.prod(m - j for m in missing) * scale % prime
        for j, base in enumerate(_all_present(count, prime), start=1)
    )


@lru_cache(maxsize=_FAMILIES)
def _all_present(count: int, prime: int) -> tuple[int, ...]:
    """Return the Lagrange coefficients at zero where no point is missing."""
    weights, binomial = [], 1
    for j in range(1, count + 1):
        binomial = binomial * (count - j + 1) // j
        weights.append(binomial % prime if j % 2 else -binomial % prime)
    return tuple(weights)
