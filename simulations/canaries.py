"""Canaries: secrets with a recorded coin each, planted before training and looked for after it.

A canary is a beginning of natural, public text and a secret after it; its loss in training, and its
score in an audit, are on the secret alone. Every canary belongs to one client only, has a beginning
of its own, and is included by its own fair coin. Held-out canaries come from the same generator and
never reach training, so what an attack tells apart is membership and nothing else. The plan is
made, and can be committed to, before the first round.

There are two kinds (:mod:`simulations.canaryplan`), as no single kind is the most telling for
every model: four random words from a known space, and one token that is used nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from client.data import ClientData, Record
from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.target import Passage
from shared.errors import InvalidValue
from shared.seeding import data_rng, derive_seed
from shared.validate import positive_integer
from simulations.canaryplan import KINDS, RARE_TOKEN, SECRET, Canary, CanaryPlan
from simulations.corpora import CANARY_WORDS, canary_secret, canary_text
from simulations.dataset import FederatedDataset, is_integer
from simulations.public_text import public_documents
from simulations.raretokens import require_tokens

BEGINNING_WORDS = 12
_SPACE = len(CANARY_WORDS) ** 4


def plan_canaries(
    *,
    count: int,
    population: int,
    seed: int,
    repeats: int = 1,
    kinds: Sequence[str] = (SECRET,),
    references: int = 0,
    tokens: Sequence[str] = (),
) -> CanaryPlan:
    """Draw canaries, their clients and their coins.

    Secrets are uniform and all different; rare tokens are a uniform choice of ``tokens``. Clients
    are a uniform choice without replacement, over all kinds together, while there are at least as
    many clients as canaries; beyond that every client gets as many as the others, or one more. The
    coins are independent and fair, so either side may be small.

    Args:
        count: how many canaries of each kind, included and held out together; may be zero.
        population: number of clients.
        seed: the run's seed.
        repeats: copies of an included canary in its client's data.
        kinds: which kinds, each once.
        references: how many fresh secrets of each kind an audit will rank against.
        tokens: rare tokens to choose from, all different; needed for that kind alone.

    Returns:
        The plan; the same arguments give the same plan.

    Raises:
        InvalidValue: if an argument is out of range, or there are fewer secrets than asked for.
        AuditError: if there are fewer rare tokens than asked for.
    """
    positive_integer(population=population, repeats=repeats)
    _require_count("count", count, _SPACE // 2)
    _require_count("references", references, _SPACE // 4)
    if len(set(kinds)) != len(kinds) or not set(kinds) <= set(KINDS):
        msg = f"kinds={tuple(kinds)}, expected some of {KINDS}, each once."
        raise InvalidValue(msg)
    rng = data_rng(seed, "canaries")
    drawn: list[tuple[str, str]] = []
    spare: tuple[str, ...] = ()
    if SECRET in kinds:
        drawn += [(SECRET, text) for text in _secrets(rng, count, taken=set())]
    if RARE_TOKEN in kinds:
        require_tokens(tokens, count)
        order = [tokens[int(place)] for place in rng.permutation(len(tokens))]
        drawn += [(RARE_TOKEN, text) for text in order[:count]]
        spare = tuple(order[count:]) if count else ()
    laps = math.ceil(len(drawn) / population)
    owners = [int(c) for _ in range(laps) for c in rng.permutation(population)[: len(drawn)]]
    coins = rng.integers(2, size=len(drawn))
    canaries = tuple(
        Canary(
            index=index,
            kind=kind,
            prompt=prompt,
            text=text,
            client=owners[index],
            included=bool(coins[index]),
        )
        for index, ((kind, text), prompt) in enumerate(
            zip(drawn, _beginnings(seed, "canaries", len(drawn), taken=set()), strict=True)
        )
    )
    return CanaryPlan(
        seed=seed, canaries=canaries, repeats=repeats, references=references, spare=spare
    )


def references(plan: CanaryPlan, kind: str) -> tuple[Passage, ...]:
    """Draw fresh secrets of the same form as canaries of a kind, to rank them against.

    Args:
        plan: whose canaries are left out, and which says how many.
        kind: ``"secret"`` or ``"rare-token"``; of the latter there may be fewer, as every reference
            uses up a token.

    Returns:
        Passages whose beginnings and secrets are all different, none of them a canary of the plan.
    """
    if kind == SECRET:
        taken = {canary.text for canary in plan.canaries}
        texts = _secrets(data_rng(plan.seed, "references"), plan.references, taken)
    else:
        texts = list(plan.spare[: plan.references])
    taken = {canary.prompt for canary in plan.canaries}
    beginnings = _beginnings(plan.seed, f"references-{kind}", len(texts), taken)
    return tuple(
        Passage(text=text, prompt=prompt) for text, prompt in zip(texts, beginnings, strict=True)
    )


def planted(plan: CanaryPlan) -> PlantedCanaries:
    """Return the canaries of a plan as audits see them, with commitment, coins and salt revealed.

    Whether the commitment was made in time is the ledger's to say: ``committed`` is left False.
    """
    return PlantedCanaries(
        kinds=tuple(_texts_of(plan, kind) for kind in plan.kinds),
        commitment=plan.digest(),
        coins=plan.coins_hex(),
        salt=plan.salt(),
        opening=plan.opening(),
    )


def included_records(plan: CanaryPlan) -> list[Record]:
    """Return each included canary once, as the record that plants it."""
    return [_record(canary) for canary in plan.canaries if canary.included]


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
    _by_client: dict[int, tuple[Canary, ...]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Collect the included canaries of each client."""
        for canary in self.plan.canaries:
            if not canary.client < self.dataset.population:
                msg = f"canary client={canary.client}, expected below {self.dataset.population}."
                raise InvalidValue(msg)
            if canary.included:
                earlier = self._by_client.get(canary.client, ())
                self._by_client[canary.client] = (*earlier, canary)

    @property
    def population(self) -> int:
        """Number of clients."""
        return self.dataset.population

    def client(self, index: int) -> ClientData:
        """Return the records of one client, with its included canaries at the end of training."""
        data = self.dataset.client(index)
        canaries = self._by_client.get(int(index), ())
        if not canaries:
            return data
        extra = [
            _record(canary, client=data.name)
            for canary in canaries
            for _ in range(self.plan.repeats)
        ]
        return ClientData(name=data.name, train=[*data.train, *extra], holdout=data.holdout)

    def describe(self) -> dict[str, object]:
        """Return the dataset's public facts and how many canaries have a coin."""
        counts = Counter(canary.kind for canary in self.plan.canaries)
        canaries = {
            "count": len(self.plan.canaries),
            "kinds": dict(counts),
            "repeats": self.plan.repeats,
        }
        return {**self.dataset.describe(), "canaries": canaries}


def _texts_of(plan: CanaryPlan, kind: str) -> CanaryTexts:
    """Return the canaries of one kind as audits see them."""
    mine = [canary for canary in plan.canaries if canary.kind == kind]
    return CanaryTexts(
        kind=kind,
        included=tuple(canary.passage for canary in mine if canary.included),
        held_out=tuple(canary.passage for canary in mine if not canary.included),
        references=references(plan, kind),
        repeats=plan.repeats,
        per_client=plan.per_client,
    )


def _record(canary: Canary, *, client: str | None = None) -> Record:
    """Return the record that plants a canary: a prompt, which is masked, and the secret."""
    return Record(prompt=canary.prompt, response=canary.text, client=client)


def _secrets(rng: np.random.Generator, count: int, taken: set[str]) -> list[str]:
    """Draw different secrets of four words, none of them taken."""
    seen = set(taken)
    texts: list[str] = []
    while len(texts) < count:
        text = canary_text(canary_secret(rng))
        if text not in seen:
            seen.add(text)
            texts.append(text)
    return texts


def _beginnings(seed: int, stream: str, count: int, taken: set[str]) -> list[str]:
    """Return different beginnings of invented public documents, none of them taken."""
    found: list[str] = []
    for beginning in _all_beginnings(seed, stream, taken):
        if len(found) == count:
            break
        found.append(beginning)
    return found


def _all_beginnings(seed: int, stream: str, taken: set[str]) -> Iterator[str]:
    """Generate beginnings of long enough documents for ever, each once."""
    seen = set(taken)
    for document in public_documents(derive_seed(seed, "canary-beginnings", stream)):
        words = document.split()
        beginning = " ".join(words[:BEGINNING_WORDS])
        if len(words) >= BEGINNING_WORDS and beginning not in seen:
            seen.add(beginning)
            yield beginning


def _require_count(name: str, count: int, most: int) -> None:
    """Refuse a count that is no count, or more than the secrets that may be used up."""
    if not (is_integer(count) and 0 <= count <= most):
        msg = f"{name}={count!r}, expected an integer from 0 to {most}."
        raise InvalidValue(msg, hint="Half of the possible secrets at most.")
