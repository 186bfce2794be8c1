"""Canaries as audits see them: secrets, split by the coins that were flipped before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.audit.target import Passage
from shared import validate
from shared.errors import InvalidValue, TooFewCanaries

MIN_CANARIES = 8
"""Fewest canaries on either side for any number at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryTexts:
    """The planted secrets of one kind.

    Args:
        kind: ``"secret"`` (four random words after a prefix) or ``"rare-token"`` (one token that
            is used nowhere else, after natural text), or what a user's own files are called.
        included: canaries that were trained on.
        held_out: canaries from the same generator that the coins kept out of training.
        references: fresh draws of the same generator, never planted, to rank against; may be
            empty where a kind has no space to draw more from.
        repeats: copies of an included canary in the data of its client.
        per_client: most canaries, of any kind, that one client could hold. Bounds at client level
            need each canary to be a client of its own, so anything above 1 leaves them uncertified.
        clients_per_canary: most clients that hold one canary; above 1 no claim covers a canary.
        independent_coins: whether each canary was included by its own fair coin. False for a
            balanced draw, for which the one-run bound does not hold.
    """

    kind: str
    included: tuple[Passage, ...]
    held_out: tuple[Passage, ...]
    references: tuple[Passage, ...] = ()
    repeats: int = 1
    per_client: int = 1
    clients_per_canary: int = 1
    independent_coins: bool = True

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing and texts that sit on two sides.

        Raises:
            InvalidValue: if a count is not a positive integer, or if one text is both included and
                held out, or both a canary and a reference.
        """
        validate.positive_integer(
            repeats=self.repeats,
            per_client=self.per_client,
            clients_per_canary=self.clients_per_canary,
        )
        planted, kept = set(self.included), set(self.held_out)
        shared = len(planted & kept) + len((planted | kept) & set(self.references))
        if shared:
            msg = (
                f"canaries_on_two_sides={shared}, expected 0: a text is included, held out or a "
                "reference, and only one of these."
            )
            raise InvalidValue(msg, hint="Draw canaries and references without replacement.")

    @property
    def count(self) -> int:
        """Number of canaries whose coin was flipped."""
        return len(self.included) + len(self.held_out)

    def require(self, minimum: int = MIN_CANARIES) -> None:
        """Refuse a split with too few canaries on one side.

        Raises:
            TooFewCanaries: if either side holds fewer than ``minimum``.
        """
        n_in, n_out = len(self.included), len(self.held_out)
        if not min(n_in, n_out) >= minimum:
            msg = (
                f"{self.kind}: included={n_in}, held_out={n_out} canaries, expected at least "
                f"{minimum} each."
            )
            raise TooFewCanaries(msg, hint="Raise audit.canaries; 200 give a first answer.")

    def to_dict(self) -> dict[str, object]:
        """Return counts, never a text."""
        return {
            "kind": self.kind,
            "included": len(self.included),
            "held_out": len(self.held_out),
            "references": len(self.references),
            "repeats": self.repeats,
            "per_client": self.per_client,
            "clients_per_canary": self.clients_per_canary,
            "independent_coins": self.independent_coins,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedCanaries:
    """Canaries planted in clients' data before training, by kind, with the commitment to the coins.

    Args:
        kinds: one entry per kind; the kinds are all different.
        commitment: SHA-256, in hex, of salt and plan, as it was recorded before the first round.
        coins: how the coins fell, as a hex string, revealed now; empty for a user's own files.
        salt: what the commitment was salted with, revealed now; empty for a user's own files.
        committed: whether the commitment was found in the ledger from before the first round.
        opening: what the commitment was taken over (:mod:`server.audit.commitment`), so that a
            reader of the report can take it again; empty for a user's own files.
    """

    kinds: tuple[CanaryTexts, ...]
    commitment: str = ""
    coins: str = ""
    salt: str = ""
    committed: bool = False
    opening: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse two entries of one kind.

        Raises:
            InvalidValue: if two entries share a kind.
        """
        names = [texts.kind for texts in self.kinds]
        if len(set(names)) != len(names):
            msg = f"kinds={names}, expected each kind once."
            raise InvalidValue(msg)

    def of(self, kind: str) -> CanaryTexts | None:
        """Return the canaries of a kind, or None."""
        return next((texts for texts in self.kinds if texts.kind == kind), None)

    def to_dict(self) -> dict[str, object]:
        """Return counts, commitment and revealed coins, never a text."""
        return {
            "kinds": [texts.to_dict() for texts in self.kinds],
            "commitment": self.commitment,
            "coins": self.coins,
            "salt": self.salt,
            "committed": self.committed,
            "opening": dict(self.opening),
        }
