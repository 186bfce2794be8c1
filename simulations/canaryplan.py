"""Which canaries a run has, where they go and how their coins fell; and the commitment to it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from server.audit.commitment import coins_hex, commitment_of, opening_of, text_digest
from server.audit.target import Passage
from shared.errors import AuditError, InvalidValue
from shared.seeding import encode_labels
from shared.validate import positive_integer

KINDS = ("secret", "rare-token")
SECRET, RARE_TOKEN = KINDS
_SALT_DOMAIN = "fedslm-canary-salt-v1"
_KEY_DOMAIN = "fedslm-canary-key-v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One secret, planted or held out; its ``repr`` shows nothing of it.

    Attributes:
        index: position in the plan.
        kind: ``"secret"`` or ``"rare-token"``.
        prompt: the beginning, which carries no loss and no score.
        text: the secret.
        client: index of the only client that may hold it.
        included: how its fair coin fell.
    """

    index: int
    kind: str
    prompt: str = field(repr=False)
    text: str = field(repr=False)
    client: int
    included: bool

    @property
    def passage(self) -> Passage:
        """The canary as an audit reads it."""
        return Passage(text=self.text, prompt=self.prompt)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPlan:
    """Which canaries there are, where they go, and how their coins fell.

    Attributes:
        seed: the seed that everything was drawn from.
        canaries: in the order of their index, all beginnings and all secrets different.
        repeats: copies of an included canary in its client's training data.
        references: how many fresh secrets of each kind :func:`planted` draws to rank against.
        spare: rare tokens that no canary uses; references of that kind come from them.
    """

    seed: int
    canaries: tuple[Canary, ...]
    repeats: int
    references: int = 0
    spare: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Check that the plan is one that :func:`plan_canaries` could have made.

        Raises:
            InvalidValue: if ``repeats`` is not positive, two beginnings or two secrets are equal,
                an index is out of order, a client or the number of references is negative, or a
                kind is not known.
        """
        positive_integer(repeats=self.repeats)
        texts = {*self.spare, *(canary.text for canary in self.canaries)}
        beginnings = {canary.prompt for canary in self.canaries}
        in_order = all(canary.index == place for place, canary in enumerate(self.canaries))
        if not (
            len(texts) == len(self.canaries) + len(self.spare)
            and len(beginnings) == len(self.canaries)
            and in_order
            and self.references >= 0
            and all(canary.client >= 0 and canary.kind in KINDS for canary in self.canaries)
        ):
            msg = f"A plan of {len(self.canaries)} canaries has equal secrets or bad indices."
            raise InvalidValue(msg)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of which there are canaries, in the order of the plan."""
        return tuple(dict.fromkeys(canary.kind for canary in self.canaries))

    @property
    def per_client(self) -> int:
        """Most canaries, of any kind, that one client could hold; at least 1."""
        return max(Counter(canary.client for canary in self.canaries).values(), default=1)

    def salt(self) -> str:
        """Return what the commitment is salted with, 64 hexadecimal digits; for the report.

        It is derived from the seed under a domain of its own: whoever knows or guesses the seed has
        the salt, and nobody else can try coins against the commitment.
        """
        return hashlib.sha256(encode_labels(_SALT_DOMAIN, self.seed)).hexdigest()

    def coins_hex(self) -> str:
        """Return how the coins fell, in hex, the first canary in the highest bit; for the report.

        The last byte is filled up with zeros; there are as many coins as canaries.
        """
        return coins_hex([canary.included for canary in self.canaries])

    def opening(self) -> dict[str, Any]:
        """Return what the commitment was taken over; it shows no secret and may be published.

        :func:`server.audit.commitment.verify_commitment` checks it against :meth:`digest`.
        """
        return opening_of(
            salt=self.salt(),
            repeats=self.repeats,
            coins=[canary.included for canary in self.canaries],
            kinds=[canary.kind for canary in self.canaries],
            digests=[self._digest_of(canary) for canary in self.canaries],
        )

    def digest(self) -> str:
        """Return a commitment to coins, clients and texts, publishable before training.

        Returns:
            64 hexadecimal digits: :func:`server.audit.commitment.commitment_of` the opening.
        """
        return commitment_of(self.opening())

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_json` reads; it holds the secrets."""
        return {
            "seed": self.seed,
            "repeats": self.repeats,
            "references": self.references,
            "spare": list(self.spare),
            "canaries": [
                {
                    "kind": canary.kind,
                    "prompt": canary.prompt,
                    "text": canary.text,
                    "client": canary.client,
                    "included": canary.included,
                }
                for canary in self.canaries
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CanaryPlan:
        """Read the JSON form of :meth:`to_json`.

        Raises:
            AuditError: if a field is missing or malformed.
        """
        try:
            canaries = tuple(
                Canary(
                    index=index,
                    kind=_string(item["kind"]),
                    prompt=_string(item["prompt"]),
                    text=_string(item["text"]),
                    client=_integer(item["client"]),
                    included=_coin(item["included"]),
                )
                for index, item in enumerate(data["canaries"])
            )
            return cls(
                seed=_integer(data["seed"]),
                canaries=canaries,
                repeats=_integer(data["repeats"]),
                references=_integer(data["references"]),
                spare=tuple(_string(text) for text in data["spare"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = "A canary plan is malformed, expected what CanaryPlan.to_json wrote."
            raise AuditError(msg) from error

    def _digest_of(self, canary: Canary) -> str:
        """Return the digest under which a canary stands in the opening."""
        return text_digest(
            key=hashlib.sha256(encode_labels(_KEY_DOMAIN, self.seed)).hexdigest(),
            index=canary.index,
            kind=canary.kind,
            client=canary.client,
            prompt=canary.prompt,
            text=canary.text,
        )


def _string(value: object) -> str:
    """Return a string that JSON held."""
    if not isinstance(value, str):
        msg = f"found {type(value).__name__}, expected a string."
        raise InvalidValue(msg)
    return value


def _integer(value: object) -> int:
    """Return an integer that JSON held, and nothing that merely looks like one."""
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"found {type(value).__name__}, expected an integer."
        raise InvalidValue(msg)
    return value


def _coin(value: object) -> bool:
    """Return a boolean that JSON held."""
    if not isinstance(value, bool):
        msg = f"found {type(value).__name__}, expected a boolean."
        raise InvalidValue(msg)
    return value
