"""Taking the masks off a sum, from the shares that were revealed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.errors import QuorumNotReached, SecureAggregationError
from shared.privacy.secagg import shamir
from shared.privacy.secagg.cohort import Cohort
from shared.privacy.secagg.keys import agreement, public_key
from shared.privacy.secagg.masks import MaskedSum, pair_mask_key, pair_sign, self_mask_key
from shared.privacy.secagg.steps import commit

REVEAL = "reveal"


@dataclass(frozen=True, slots=True)
class RevealedShares:
    """The shares that came in, by owner and point: seeds of survivors, mask keys of the dropped."""

    by_owner: dict[int, dict[int, int]] = field(default_factory=dict, repr=False)

    def add(self, owner: int, point: int, share: int) -> None:
        """Keep one share."""
        self.by_owner.setdefault(owner, {})[point] = share


def open_sum(
    cohort: Cohort,
    sharers: Sequence[int],
    survivors: Sequence[int],
    revealed: RevealedShares,
    total: MaskedSum,
) -> None:
    """Remove every mask from the sum of the survivors' masked vectors, in place.

    Args:
        cohort: the announced cohort.
        sharers: who shared.
        survivors: whose vectors are in the sum.
        revealed: one secret per sharer.
        total: the sum of the masked vectors; afterwards the sum of the vectors.

    Raises:
        QuorumNotReached: if a secret has fewer shares than the threshold; nothing is opened.
        SecureAggregationError: if a recovered secret is not the one that its owner advertised.
    """
    view = cohort.sharers_view(sharers)
    _require_shares(cohort, sharers, revealed.by_owner)
    alive = set(survivors)
    for owner in sharers:
        secret = _recover(cohort, owner, revealed.by_owner[owner])
        if owner in alive:
            if commit(cohort.terms.digest(), owner, secret) != cohort.entries[owner].commitment:
                _blame(owner, "seed")
            total.add_mask(self_mask_key(secret, view, owner), -1)
            continue
        if public_key(secret) != cohort.entries[owner].mask_key:
            _blame(owner, "mask key")
        agree = agreement(secret)
        for peer in cohort.graph.neighbours(owner):
            if peer in alive:
                shared = agree(cohort.entries[peer].mask_key)
                key = pair_mask_key(shared, view, owner, peer)
                # What the owner would have added is what the sum lacks.
                total.add_mask(key, pair_sign(owner, peer))


def _require_shares(
    cohort: Cohort, sharers: Sequence[int], by_owner: Mapping[int, Mapping[int, int]]
) -> None:
    """Require enough shares of everybody's secret before any is put together."""
    threshold = cohort.bounds.threshold
    fewest, owner = min((len(by_owner.get(owner, {})), owner) for owner in sharers)
    if not fewest >= threshold:
        msg = (
            f"phase={REVEAL}: client={owner} has {fewest} shares revealed, expected at least "
            f"{threshold}."
        )
        raise QuorumNotReached(msg, hint="The sum stays masked; the round counts as released.")


def _recover(cohort: Cohort, owner: int, shares: Mapping[int, int]) -> bytes:
    """Put a secret together from its shares."""
    bounds = cohort.bounds
    value = shamir.combine(shares, threshold=bounds.threshold, count=bounds.degree)
    return shamir.secret_to_bytes(value)


def _blame(owner: int, what: str) -> None:
    """Refuse a secret that is not the advertised one."""
    msg = f"phase={REVEAL}: the shares of client={owner} do not give its advertised {what}."
    hint = "A neighbour revealed a wrong share, or the client shared something else."
    raise SecureAggregationError(msg, hint=hint)
