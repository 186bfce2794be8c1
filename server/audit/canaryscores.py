"""The scores of planted canaries, kind by kind, as evidence holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.audit import evidence as read
from server.audit.canaries import MIN_CANARIES, CanaryTexts
from server.audit.protocol import Claim, Evidence, Floats
from server.audit.target import Target, losses
from shared.errors import AuditError, TooFewCanaries

_MOST = 10**9
"""No count of canaries, copies or clients is larger."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredKind:
    """The scores of one kind of canary, read from evidence."""

    name: str
    included: Floats
    held_out: Floats
    repeats: int
    per_client: int
    clients_per_canary: int
    independent_coins: bool

    @property
    def m(self) -> int:
        """Number of canaries with a coin."""
        return self.included.size + self.held_out.size

    def doubt(self, claim: Claim) -> str:
        """Return why the theorem does not apply here; empty where it does."""
        if self.clients_per_canary > 1:
            return (
                f"A canary of kind {self.name} sits in {self.clients_per_canary} clients, so that "
                "no claim about one client or one example covers it."
            )
        if not self.independent_coins:
            return f"The canaries of kind {self.name} did not each have a fair coin of their own."
        if claim.unit == "client" and self.per_client > 1:
            return (
                f"One client could hold {self.per_client} canaries, so that the coins of kind "
                f"{self.name} do not each decide about a client of its own."
            )
        return ""


def measure_kind(target: Target, texts: CanaryTexts) -> dict[str, Any]:
    """Return the evidence of one kind: sorted scores, so that no place tells a canary.

    The score is minus the loss under the adapter. Canaries of a kind come from one generator, so
    they are comparable as they are; subtracting what the base thinks of each only adds noise.
    """
    scores = {
        side: -losses(target, passages, adapter=True)
        for side, passages in (("included", texts.included), ("held_out", texts.held_out))
    }
    return {
        "kind": texts.kind,
        **{side: read.stored(np.sort(score)) for side, score in scores.items()},
        "repeats": texts.repeats,
        "per_client": texts.per_client,
        "clients_per_canary": texts.clients_per_canary,
        "independent_coins": texts.independent_coins,
    }


def read_kinds(evidence: Evidence) -> tuple[list[ScoredKind], int]:
    """Return the kinds in evidence, and how many tests alpha is shared by.

    A kind that the coins left with too few canaries on one side would have been tested had they
    fallen otherwise, so it keeps its share.
    """
    kinds = [_read_kind(entry) for entry in read.mappings(evidence, "kinds")]
    names = [kind.name for kind in kinds]
    if len(set(names)) < len(names):
        msg = f"evidence 'kinds' has {len(kinds)} entries, expected them all different."
        raise AuditError(msg)
    if not (kinds or read_scattered(evidence)):
        msg = "evidence 'kinds' has 0 entries, expected at least one."
        raise AuditError(msg)
    unlucky = [
        entry
        for entry in read.mappings(evidence, "left_out")
        if read.integer(entry, "included", low=0, high=_MOST)
        + read.integer(entry, "held_out", low=0, high=_MOST)
        >= 2 * MIN_CANARIES
    ]
    return kinds, max(1, len(kinds) + len(unlucky))


def read_scattered(evidence: Evidence) -> list[str]:
    """Return the kinds, scored or left out, of which a canary sits in more than one client."""
    return [
        read.text(entry, "kind")
        for entry in (*read.mappings(evidence, "kinds"), *read.mappings(evidence, "left_out"))
        if read.integer(entry, "clients_per_canary", low=1, high=_MOST) > 1
    ]


def _read_kind(entry: Mapping[str, Any]) -> ScoredKind:
    """Return one kind from its evidence."""
    kind = ScoredKind(
        name=read.text(entry, "kind"),
        included=read.numbers(entry, "included"),
        held_out=read.numbers(entry, "held_out"),
        repeats=read.integer(entry, "repeats", low=1, high=_MOST),
        per_client=read.integer(entry, "per_client", low=1, high=_MOST),
        clients_per_canary=read.integer(entry, "clients_per_canary", low=1, high=_MOST),
        independent_coins=read.boolean(entry, "independent_coins"),
    )
    if not min(kind.included.size, kind.held_out.size) >= MIN_CANARIES:
        msg = (
            f"evidence: included={kind.included.size}, held_out={kind.held_out.size} scores, "
            f"expected at least {MIN_CANARIES} each."
        )
        raise TooFewCanaries(msg)
    return kind
