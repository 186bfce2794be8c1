"""Canaries: secrets with a recorded coin each, planted before training and looked for after it.

Every canary is drawn uniformly from a known space, belongs to one client only, and is included by
its own fair coin. Held-out canaries come from the same generator and never reach training, so what
an attack tells apart is membership and nothing else. The plan is made, and can be committed to,
before the first round.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from client.data import ClientData, Record
from shared.canonical import canonical_json, sha256_hex
from shared.errors import AuditError, InvalidValue
from shared.seeding import data_rng, encode_labels
from shared.validate import positive_integer
from simulations.corpora import CANARY_WORDS, canary_secret, canary_text
from simulations.dataset import FederatedDataset, is_integer

_SALT_DOMAIN = "fedslm-canary-salt-v1"
_SPACE = len(CANARY_WORDS) ** 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """One planted secret.

    Attributes:
        index: position in the plan.
        words: the secret.
        client: index of the only client that may hold it.
        included: how its fair coin fell.
    """

    index: int
    words: tuple[str, ...]
    client: int
    included: bool

    @property
    def text(self) -> str:
        """The record that plants it."""
        return canary_text(self.words)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPlan:
    """Which canaries there are, where they go, and how their coins fell.

    Attributes:
        seed: the seed that everything was drawn from.
        canaries: in the order of their index, all secrets different.
        repeats: copies of an included canary in its client's training data.
    """

    seed: int
    canaries: tuple[Canary, ...]
    repeats: int

    def __post_init__(self) -> None:
        """Check that the plan is one that :func:`plan_canaries` could have made.

        Raises:
            InvalidValue: if ``repeats`` is not positive, two secrets are equal, an index is out
                of order, or a client is negative.
        """
        positive_integer(repeats=self.repeats)
        secrets = {canary.text for canary in self.canaries}
        in_order = all(canary.index == place for place, canary in enumerate(self.canaries))
        if not (
            len(secrets) == len(self.canaries)
            and in_order
            and all(canary.client >= 0 for canary in self.canaries)
        ):
            msg = f"A plan of {len(self.canaries)} canaries has equal secrets or bad indices."
            raise InvalidValue(msg)

    @property
    def per_client(self) -> int:
        """Most canaries that one client could hold; at least 1."""
        return max(Counter(canary.client for canary in self.canaries).values(), default=1)

    def digest(self) -> str:
        """Return a commitment to coins, clients and texts, publishable before training.

        Returns:
            SHA-256, in hex, over a 256-bit salt and the canonical JSON of the plan. The salt is
            derived from the seed: who knows the seed can open the commitment, and nobody can
            guess the coins from it without the seed.
        """
        salt = hashlib.sha256(encode_labels(_SALT_DOMAIN, self.seed)).hexdigest()
        return sha256_hex(salt + canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_json` reads; it holds the secrets."""
        return {
            "seed": self.seed,
            "repeats": self.repeats,
            "canaries": [
                {"words": list(canary.words), "client": canary.client, "included": canary.included}
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
                    words=tuple(str(word) for word in item["words"]),
                    client=_integer(item["client"]),
                    included=_coin(item["included"]),
                )
                for index, item in enumerate(data["canaries"])
            )
            seed, repeats = _integer(data["seed"]), _integer(data["repeats"])
            return cls(seed=seed, canaries=canaries, repeats=repeats)
        except (KeyError, TypeError, ValueError) as error:
            msg = "A canary plan is malformed, expected what CanaryPlan.to_json wrote."
            raise AuditError(msg) from error


def plan_canaries(*, count: int, population: int, seed: int, repeats: int = 1) -> CanaryPlan:
    """Draw canaries, their clients and their coins.

    Secrets are uniform and all different. Clients are a uniform choice without replacement while
    there are at least as many clients as canaries; beyond that every client gets as many as the
    others, or one more. The coins are independent and fair, so either side may be small.

    Args:
        count: how many canaries, included and held out together; may be zero.
        population: number of clients.
        seed: the run's seed.
        repeats: copies of an included canary in its client's data.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        InvalidValue: if an argument is out of range, or there are fewer secrets than asked for.
    """
    positive_integer(population=population, repeats=repeats)
    _require_count(count, _SPACE)
    rng = data_rng(seed, "canaries")
    secrets = _fresh(rng, count, taken=set())
    rounds = math.ceil(count / population)
    owners = [int(client) for _ in range(rounds) for client in rng.permutation(population)[:count]]
    coins = rng.integers(2, size=count)
    canaries = tuple(
        Canary(index=index, words=words, client=owners[index], included=bool(coins[index]))
        for index, words in enumerate(secrets)
    )
    return CanaryPlan(seed=seed, canaries=canaries, repeats=repeats)


def references(plan: CanaryPlan, count: int, seed: int) -> list[str]:
    """Draw fresh secrets of the same form, to rank canaries against.

    Args:
        plan: whose canaries are left out.
        count: how many.
        seed: the run's seed.

    Returns:
        Different texts, none of them a canary of the plan.

    Raises:
        InvalidValue: if fewer secrets are left than asked for.
    """
    _require_count(count, _SPACE - len(plan.canaries))
    taken = {canary.words for canary in plan.canaries}
    return [canary_text(words) for words in _fresh(data_rng(seed, "references"), count, taken)]


@dataclass(frozen=True, slots=True)
class WithCanaries:
    """A dataset whose clients also train on the included canaries of a plan.

    Held-out records, and clients without an included canary, are as they were. Canaries come
    after a client's own records, so the data order of the rest does not change.

    Args:
        dataset: the dataset to plant in.
        plan: what to plant; its clients must exist.

    Raises:
        InvalidValue: if the plan names a client that the dataset does not have.
    """

    dataset: FederatedDataset
    plan: CanaryPlan
    _by_client: dict[int, tuple[str, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Collect the included canaries of each client."""
        for canary in self.plan.canaries:
            if not canary.client < self.dataset.population:
                msg = f"canary client={canary.client}, expected below {self.dataset.population}."
                raise InvalidValue(msg)
            if canary.included:
                earlier = self._by_client.get(canary.client, ())
                self._by_client[canary.client] = (*earlier, canary.text)

    @property
    def population(self) -> int:
        """Number of clients."""
        return self.dataset.population

    def client(self, index: int) -> ClientData:
        """Return the records of one client, with its included canaries at the end of training."""
        data = self.dataset.client(index)
        texts = self._by_client.get(int(index), ())
        if not texts:
            return data
        planted = [
            Record(text=text, client=data.name) for text in texts for _ in range(self.plan.repeats)
        ]
        return ClientData(name=data.name, train=[*data.train, *planted], holdout=data.holdout)

    def describe(self) -> dict[str, object]:
        """Return the dataset's public facts and how many canaries have a coin."""
        canaries = {"count": len(self.plan.canaries), "repeats": self.plan.repeats}
        return {**self.dataset.describe(), "canaries": canaries}


def _fresh(
    rng: np.random.Generator, count: int, taken: set[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Draw different secrets, none of them taken."""
    seen = set(taken)
    secrets: list[tuple[str, ...]] = []
    while len(secrets) < count:
        words = canary_secret(rng)
        if words not in seen:
            seen.add(words)
            secrets.append(words)
    return secrets


def _require_count(count: int, available: int) -> None:
    """Refuse a count that is no count, or more than half of the secrets left to draw from."""
    if not (is_integer(count) and 0 <= count <= available // 2):
        msg = f"count={count!r}, expected an integer from 0 to {available // 2}."
        raise InvalidValue(msg, hint="Half of the possible secrets at most.")


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
