"""Test vectors of secure aggregation and of noise on a grid, from the code that nodes run.

All secrets here are public, so they protect nobody; what a client draws is given, so that every
byte of what it sends follows.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from client.native.sessionvectors import (
    SMALL_ORDER,
    SessionVectors,
    coefficients,
    secret,
    split,
)
from shared.errors import ConflictingSettings
from shared.privacy.distributed import DistributedSkellam, encode_update
from shared.privacy.events import NeighboringRelation, SkellamEvent
from shared.privacy.mechanism import AdapterDelta, ClippedDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.secagg import graph, keys, masks, shamir
from shared.privacy.skellam import skellam_curve

SKELLAM_ORDERS: Final = (*range(2, 12), *range(12, 64), 128, 256)
"""Whole orders that Python's accountant has too, so that a device never finds a smaller figure."""

_SEED: Final = 5
_LABELS: Final = ("share", 3, 2)


def secure_vectors() -> dict[str, Any]:
    """Return the vectors of secure aggregation and of distributed noise."""
    return {
        "secagg": {
            "primitives": _primitives(),
            "shamir": _shamir(),
            "graph": _graphs(),
            **SessionVectors().vectors(),
        },
        "skellam": {
            "seed": _SEED,
            "labels": list(_LABELS),
            "draws": _draws(),
            "shares": _shares(),
            "epsilon": _epsilon(),
        },
    }


def unamplified_skellam_epsilon(
    *, noise_multiplier: float, grid: int, releases: int, delta: float
) -> float:
    """Return a bound on epsilon of Skellam releases, by :data:`SKELLAM_ORDERS`.

    The divergences of :mod:`shared.privacy.skellam` without sampling, converted as those of
    Gaussian noise; never below what :mod:`shared.privacy.accountant` reports.

    Args:
        noise_multiplier: noise divided by the grid, > 0.
        grid: G >= 1.
        releases: how many.
        delta: in ``(0, 1)``.
    """
    orders = np.array(SKELLAM_ORDERS, dtype=np.float64)
    event = SkellamEvent(noise_multiplier=noise_multiplier, grid=grid, count=releases)
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    curve = skellam_curve(1.0, event.noise_multiplier, grid, relation, tuple(orders))
    found = releases * curve + np.log1p(-1.0 / orders) - np.log(delta * orders) / (orders - 1.0)
    return max(0.0, float(found.min()))


def _primitives() -> dict[str, Any]:
    """Write key agreement, derivation, encryption and signatures."""
    one, other, view = secret("one"), secret("other"), secret("view")
    agreed = keys.agree(one, keys.public_key(other))
    plain = secret("plain") + secret("more")
    identity = keys.Identity.from_private_bytes(secret("identity"))
    mask = masks.pair_mask_key(agreed, view, 9, 4)
    words = masks.MaskedSum(5)
    words.add_mask(mask, -1)
    return {
        "private": one.hex(),
        "public": keys.public_key(one).hex(),
        "peer": keys.public_key(other).hex(),
        "agreed": agreed.hex(),
        "small_order": SMALL_ORDER.hex(),
        "view": view.hex(),
        "derived": keys.derive(agreed, "share", view, b"content", 44).hex(),
        "digest": keys.digest("seed", view, b"part").hex(),
        "plain": plain.hex(),
        "sender": 4,
        "receiver": 9,
        "sealed": keys.encrypt(agreed, view, 4, 9, plain).hex(),
        "identity": identity.private_bytes().hex(),
        "identity_public": identity.public_key.hex(),
        "signed": identity.sign("share", view, 4, b"content").hex(),
        "self_mask": masks.self_mask_key(one, view, 4).hex(),
        "pair_mask": mask.hex(),
        "subtracted": words.words.astype("<u4").tobytes().hex(),
    }


def _shamir() -> list[dict[str, Any]]:
    """Write shares of secrets at the ends of the field and inside."""
    cases = [(bytes(32), 2, 3), (b"\xff" * 32, 5, 7), (secret("shared"), 3, 4)]
    return [
        {
            "secret": shared.hex(),
            "threshold": threshold,
            "count": count,
            "coefficients": [
                shamir.share_to_bytes(c).hex() for c in coefficients("case", threshold - 1)
            ],
            "shares": [share.hex() for share in split(shared, "case", threshold, count)],
        }
        for shared, threshold, count in cases
    ]


def _graphs() -> dict[str, Any]:
    """Write the bounds of cohorts of several sizes, and one sparse ring."""
    cases = [
        (n, h, s)
        for n in (2, 3, 5, 10, 63, 64, 100, 400)
        for h, s in ((1.0, 0.7), (0.6, 0.9), (0.8, 0.9), (0.3, 0.9))
    ]
    found = []
    for n, h, s in cases:
        said: dict[str, Any] = {
            "clients": n,
            "honest_fraction": repr(h),
            "survivor_fraction": repr(s),
        }
        try:
            bounds = graph.parameters(n, h, s)
        except ConflictingSettings as error:
            found.append({**said, "refused": error.code})
            continue
        numbers = (bounds.degree, bounds.threshold, bounds.required, bounds.corrupt, bounds.quorum)
        found.append({**said, "bounds": list(numbers)})
    clients = tuple(range(1, 211, 3))
    ring = graph.NeighbourGraph.drawn(clients, 6, secret("ring"))
    odd = graph.NeighbourGraph.drawn(clients, len(clients) - 1, secret("ring"))
    return {
        "bounds": found,
        "ring": {
            "seed": secret("ring").hex(),
            "clients": list(clients),
            "degree": 6,
            "of": 7,
            "neighbours": list(ring.neighbours(7)),
            "points": [ring.point(7, peer) for peer in ring.neighbours(7)],
            "complete_points": [odd.point(7, peer) for peer in odd.neighbours(7)],
        },
    }


def _draws() -> list[dict[str, Any]]:
    """Write Skellam numbers of several variances, each from a source of its own."""
    variances = (20.0, 61.5, 1e4, 2.0**38 / 5, 1e15)
    return [
        {
            "variance": variance,
            "numbers": NoiseSource.seeded(_SEED, *_LABELS).skellam(variance, 40).tolist(),
        }
        for variance in variances
    ]


def _shares() -> list[dict[str, Any]]:
    """Write encoded updates, and the words that are masked."""
    rng = np.random.default_rng(_SEED + 2)
    long = rng.standard_normal(12).astype(np.float32)
    cases = [(long, 0.5, 2**18, 4.0, 5), (long, 100.0, 2**10, 1.5, 3), (0 * long, 0.5, 64, 2.0, 4)]
    found = []
    for vector, bound, grid, noise, cohort in cases:
        clipped: ClippedDelta = clip_update(AdapterDelta(vector=vector), clipping_norm=bound)
        source = NoiseSource.seeded(_SEED, *_LABELS)
        integers = encode_update(clipped, grid=grid, source=source).integers
        mechanism = DistributedSkellam(noise_multiplier=noise, clipping_norm=bound, grid=grid)
        again = NoiseSource.seeded(_SEED, *_LABELS)
        share = mechanism.share(clipped, cohort=cohort, source=again)
        found.append(
            {
                "vector": vector.astype("<f4").tobytes().hex(),
                "clipping_norm": bound,
                "grid": grid,
                "noise_multiplier": noise,
                "cohort": cohort,
                "integers": integers.tolist(),
                "words": share.words.astype("<u4").tobytes().hex(),
            }
        )
    return found


def _epsilon() -> list[dict[str, float | int]]:
    """Write what some plans cost by :func:`unamplified_skellam_epsilon`."""
    plans = [(4.0, 2**18, 5, 1e-5), (1.0, 64, 2, 1e-5), (0.5, 4, 1, 1e-6), (8.0, 2**10, 100, 1e-5)]
    return [
        {
            "noise_multiplier": noise,
            "grid": grid,
            "releases": releases,
            "delta": delta,
            "epsilon": unamplified_skellam_epsilon(
                noise_multiplier=noise, grid=grid, releases=releases, delta=delta
            ),
        }
        for noise, grid, releases, delta in plans
    ]
