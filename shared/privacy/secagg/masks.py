"""Masks: ChaCha20 key streams under 256-bit keys, added modulo 2**32.

A mask is the key stream of ChaCha20 (RFC 8439) read as little-endian 32-bit words. Its key and
nonce are derived by HKDF-SHA256 from 256 secret bits (a self-mask seed) or from an X25519 secret,
with the digest of the announcement and of the sharers as salt and the one or two clients in the
info, so each key is used for one mask only and two clients who were told different stories have
masks that do not cancel. Nothing on the way is narrower than the key; Flower's masks come from a
numpy seed of 32 bits.

AES-256-CTR is faster where the processor has AES instructions (the benchmark ``secagg`` measures
both), but ChaCha20 runs in constant time on processors without them too, has no birthday bound, and
is the cipher of the noise and of the shares already.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from shared.privacy.secagg.codec import write_integer
from shared.privacy.secagg.keys import KEY_BYTES, derive

SEED_BYTES = 32
STREAM_BYTES = KEY_BYTES + 12

Words = npt.NDArray[np.uint32]

_BLOCK = 1 << 15
_ZEROS = bytes(4 * _BLOCK)
_COUNTER = bytes(4)


def self_mask_key(seed: bytes, view: bytes, client: int) -> bytes:
    """Return key and nonce of the mask that a client adds alone.

    Args:
        seed: 32 uniform bytes.
        view: digest of announcement and sharers.
        client: whose mask.

    Returns:
        44 bytes.
    """
    return derive(seed, "self mask", view, write_integer(client), STREAM_BYTES)


def pair_mask_key(secret: bytes, view: bytes, one: int, other: int) -> bytes:
    """Return key and nonce of the mask that one client adds and another subtracts.

    Args:
        secret: the X25519 secret of the two.
        view: digest of announcement and sharers.
        one: a client.
        other: the other client; the order does not matter.

    Returns:
        44 bytes.
    """
    ends = write_integer(min(one, other)) + write_integer(max(one, other))
    return derive(secret, "pair mask", view, ends, STREAM_BYTES)


def pair_sign(client: int, other: int) -> Literal[1, -1]:
    """Return whether a client adds (1) or subtracts (-1) the mask that it has with another."""
    return 1 if client < other else -1


class MaskedSum:
    """A running sum modulo 2**32, to which vectors and masks are added one by one.

    Holds one vector and 128 KiB of scratch space, however much is added.

    Args:
        dimension: length of the vectors.

    Attributes:
        words: the sum so far, uint32, shape ``(dimension,)``.
    """

    __slots__ = ("_scratch", "words")

    def __init__(self, dimension: int) -> None:
        self.words: Words = np.zeros(dimension, dtype=np.uint32)
        self._scratch = bytearray(4 * min(dimension, _BLOCK))

    def add(self, vector: npt.NDArray[np.uint32]) -> None:
        """Add a vector, shape ``(dimension,)``."""
        np.add(self.words, vector, out=self.words)

    def add_mask(self, key: bytes, sign: Literal[1, -1]) -> None:
        """Add or subtract the mask of a key.

        Args:
            key: 44 bytes, key and nonce.
            sign: 1 to add, -1 to subtract.
        """
        nonce = _COUNTER + key[KEY_BYTES:]
        stream = Cipher(algorithms.ChaCha20(key[:KEY_BYTES], nonce), mode=None).encryptor()
        combine = np.add if sign == 1 else np.subtract
        zeros, mask = memoryview(_ZEROS), np.frombuffer(self._scratch, dtype="<u4")
        for start in range(0, self.words.size, _BLOCK):
            part = self.words[start : start + _BLOCK]
            stream.update_into(zeros[: 4 * part.size], self._scratch)
            combine(part, mask[: part.size], out=part)
