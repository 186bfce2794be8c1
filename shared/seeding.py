"""Named, reproducible random streams for data order, initial weights and tests.

Never for privacy noise, masks or keys: whoever knows the seed can recompute every draw. Noise
comes from :class:`shared.privacy.noise.NoiseSource`, which says how it was seeded.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from shared.errors import InvalidValue

SEED_BITS = 128
_DOMAIN = "fedslm-seed-v1"


def derive_seed(seed: int, *labels: str | int) -> int:
    """Derive an independent 128-bit seed from a run's seed and the name of a stream.

    Every bit of ``seed`` counts (``s`` and ``s + 2**32`` give unrelated streams), labels of
    different types or split differently never collide, and the result does not depend on the
    platform.

    Args:
        seed: the run's seed, any integer.
        *labels: what the stream is for, from the outside in (``"init"``, ``"client"``, ``17``).

    Returns:
        An integer in ``[0, 2**128)``: the first 16 bytes of SHA-256 over a JSON list.

    Raises:
        InvalidValue: if the seed is not an integer or a label is neither string nor integer.

    >>> derive_seed(7, "init") == derive_seed(7, "init")
    True
    >>> derive_seed(7, "init") == derive_seed(7 + 2**32, "init")
    False
    """
    return int.from_bytes(hashlib.sha256(encode_labels(_DOMAIN, seed, *labels)).digest()[:16])


def data_rng(seed: int, *labels: str | int) -> np.random.Generator:
    """Return numpy's generator for one named stream, keyed with all 128 bits.

    Args:
        seed: the run's seed.
        *labels: what the stream is for.

    Returns:
        A Philox generator. Reproducible, therefore never used for privacy noise.

    Raises:
        InvalidValue: as :func:`derive_seed`.
    """
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, *labels)))


def encode_labels(domain: str, seed: int, *labels: str | int) -> bytes:
    """Encode a domain, a seed and labels without ambiguity, for hashing.

    Args:
        domain: separates uses that must never share a stream.
        seed: any integer.
        *labels: strings and integers.

    Returns:
        The UTF-8 bytes of a JSON list.

    Raises:
        InvalidValue: if the seed is not an integer or a label is neither string nor integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        msg = f"seed={seed!r}, expected an integer."
        raise InvalidValue(msg)
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, str | int):
            msg = f"label={label!r}, expected a string or an integer."
            raise InvalidValue(msg)
    return json.dumps([domain, seed, *labels], separators=(",", ":")).encode()
