"""What a client computes within a phase, as functions of its state; the order is the session's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.errors import SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import shamir
from shared.privacy.secagg.codec import Row, write_integer
from shared.privacy.secagg.cohort import ADVERTISE, Cohort
from shared.privacy.secagg.keys import (
    Identity,
    agreement,
    decrypt,
    digest,
    encrypt,
    public_key,
)
from shared.privacy.secagg.masks import MaskedSum, pair_mask_key, pair_sign, self_mask_key
from shared.privacy.secagg.shamir import SHARE_BYTES
from shared.privacy.secagg.state import SessionState
from shared.privacy.secagg.uploads import Advertisement


def commit(context: bytes, client: int, seed: bytes) -> bytes:
    """Return what stands for a self-mask seed until it is opened, 32 bytes.

    Args:
        context: digest of the terms.
        client: whose seed.
        seed: 32 bytes.
    """
    return digest("seed", context, write_integer(client), seed)


def advertise(state: SessionState, identity: Identity) -> Advertisement:
    """Return the advertisement that belongs to a client's secrets; always the same."""
    own, context = state.own_secrets(), state.terms.digest()
    keys = public_key(own.share_key), public_key(own.mask_key)
    commitment = commit(context, state.client, own.seed)
    content = b"".join((*keys, commitment))
    return Advertisement(
        context=context,
        client=state.client,
        share_key=keys[0],
        mask_key=keys[1],
        commitment=commitment,
        signature=identity.sign(ADVERTISE, context, state.client, content),
    )


def encrypt_shares(state: SessionState, cohort: Cohort) -> tuple[Row, ...]:
    """Share both secrets among the neighbours.

    Returns:
        (neighbour, ciphertext), ascending: the share of the seed, then that of the mask key.
    """
    own, me = state.own_secrets(), state.client
    threshold, count = cohort.bounds.threshold, cohort.bounds.degree
    seeds, keys = (
        shamir.split(int.from_bytes(secret, "big"), threshold=threshold, count=count)
        for secret in (own.seed, own.mask_key)
    )
    rows = []
    agree = agreement(own.share_key)
    for peer in cohort.graph.neighbours(me):
        at = cohort.graph.point(me, peer) - 1
        plain = shamir.share_to_bytes(seeds[at]) + shamir.share_to_bytes(keys[at])
        secret = agree(cohort.entries[peer].share_key)
        rows.append((peer, encrypt(secret, cohort.view, me, peer, plain)))
    return tuple(rows)


def decrypt_shares(
    state: SessionState, cohort: Cohort, ciphertexts: Sequence[Row], sharers: Sequence[int]
) -> tuple[Row, ...]:
    """Open what the neighbours shared.

    Returns:
        (neighbour, 66 bytes), ascending: the share of its seed, then that of its mask key.

    Raises:
        SecureAggregationError: if the senders are not the neighbours who shared, a ciphertext is
            not authentic, or a share is no field element.
    """
    me, key = state.client, state.own_secrets().share_key
    expected = _neighbours(cohort, me, sharers)
    found = tuple(client for client, _ in ciphertexts)
    if found != expected:
        differ = sorted(set(found) ^ set(expected))
        msg = f"client={me}: shares of client={differ[0]} are missing or not a neighbour's."
        raise SecureAggregationError(msg)
    held = []
    agree = agreement(key)
    for peer, ciphertext in ciphertexts:
        secret = agree(cohort.entries[peer].share_key)
        pair = decrypt(secret, cohort.view, peer, me, ciphertext)
        shamir.share_from_bytes(pair[:SHARE_BYTES])
        shamir.share_from_bytes(pair[SHARE_BYTES:])
        held.append((peer, pair))
    return tuple(held)


def require_vector(vector: npt.NDArray[np.uint32], dimension: int) -> None:
    """Require uint32 words of the agreed number.

    Raises:
        SchemaMismatch: for another type or shape.
    """
    if not (
        isinstance(vector, np.ndarray)
        and vector.dtype == np.dtype(np.uint32)
        and vector.shape == (dimension,)
    ):
        kind, shape = getattr(vector, "dtype", type(vector).__name__), np.shape(vector)
        msg = f"vector: dtype={kind}, shape={shape}, expected uint32 of shape ({dimension},)."
        raise SchemaMismatch(msg)


def mask_vector(
    state: SessionState,
    cohort: Cohort,
    sharers: Sequence[int],
    vector: npt.NDArray[np.uint32],
) -> bytes:
    """Add the self-mask and the pairwise masks of all neighbours who shared.

    Returns:
        Little-endian 32-bit words.
    """
    own, me, view = state.own_secrets(), state.client, cohort.sharers_view(sharers)
    total = MaskedSum(vector.size)
    total.add(vector)
    total.add_mask(self_mask_key(own.seed, view, me), 1)
    agree = agreement(own.mask_key)
    for peer in _neighbours(cohort, me, sharers):
        secret = agree(cohort.entries[peer].mask_key)
        total.add_mask(pair_mask_key(secret, view, me, peer), pair_sign(me, peer))
    return total.words.astype("<u4", copy=False).tobytes()


def _neighbours(cohort: Cohort, client: int, sharers: Sequence[int]) -> tuple[int, ...]:
    """Return a client's neighbours among the sharers, ascending."""
    alive = set(sharers)
    return tuple(peer for peer in cohort.graph.neighbours(client) if peer in alive)
