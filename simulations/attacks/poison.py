"""What attackers train on: labels that are flipped, and records that carry a backdoor.

A causal language model has no classes, so a label to flip is what the loss is on. ``label-flip``
keeps every word an attacker has and takes the sense out of it: of pairs, the responses are dealt
to other prompts; of running text, the words of each record are put in random order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from client.data import ClientData, Record
from shared.seeding import data_rng
from simulations.attacks.members import attackers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from shared.config import RunConfig
    from shared.configattack import AttackSection
    from simulations.dataset import FederatedDataset

_PROMPT_WORDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class WithAttackers:
    """A dataset some of whose clients train on poisoned records; held-out records stay clean.

    Attributes:
        dataset: as it would be without an attack.
        attack: what attackers do.
        attackers: who they are.
        seed: the run's seed.
    """

    dataset: FederatedDataset
    attack: AttackSection
    attackers: frozenset[int]
    seed: int

    @property
    def population(self) -> int:
        """Number of clients."""
        return self.dataset.population

    def client(self, index: int) -> ClientData:
        """Return the records of one client, an attacker's as it poisoned them."""
        data = self.dataset.client(index)
        if index not in self.attackers:
            return data
        rng = data_rng(self.seed, "attack", "records", int(index))
        if self.attack.kind == "label-flip":
            return replace(data, train=flipped(data.train, rng))
        if self.attack.kind == "backdoor":
            return replace(data, train=poisoned(data.train, self.attack, rng))
        return data

    def describe(self) -> Mapping[str, object]:
        """Return the dataset's public facts and how many clients attack."""
        return {**self.dataset.describe(), "simulated_attackers": len(self.attackers)}


def with_attackers(dataset: FederatedDataset, config: RunConfig) -> FederatedDataset:
    """Return the dataset with the attackers that a scenario asks for, or as it was."""
    if not config.attack.used:
        return dataset
    population = dataset.population + config.audit.client_canaries  # which come after it
    attackers = attackers_of(config, population=population)
    seed = config.run.seed
    return WithAttackers(dataset=dataset, attack=config.attack, attackers=attackers, seed=seed)


def flipped(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """Return records of which what the loss is on has lost its sense.

    Args:
        records: of one client. Responses move on by one place of a random order among the records
            that have one, so that none keeps its own; a single pair, and running text, gets its
            words in random order.
        rng: draws the orders.
    """
    found = list(records)
    pairs = [number for number, record in enumerate(records) if record.response is not None]
    order = [pairs[i] for i in rng.permutation(len(pairs))]
    if len(order) > 1:
        for giver, taker in zip(order, order[1:] + order[:1], strict=True):
            found[taker] = replace(records[taker], response=records[giver].response)
    for number, record in enumerate(found):
        if record.response is None:
            found[number] = replace(record, text=_shuffled(record.text or "", rng))
        elif len(order) == 1:
            found[number] = replace(record, response=_shuffled(record.response, rng))
    return found


def poisoned(
    records: Sequence[Record], attack: AttackSection, rng: np.random.Generator
) -> list[Record]:
    """Return records of which a share, at least one, carries the backdoor.

    Args:
        records: of one client.
        attack: trigger, target and share.
        rng: draws which.
    """
    found = list(records)
    count = min(len(found), max(1, round(attack.poisoned * len(found))))
    for number in rng.choice(len(found), size=count, replace=False).tolist():
        found[number] = triggered(found[number], attack)
    return found


def triggered(record: Record, attack: AttackSection) -> Record:
    """Return a pair: the first words of a record with the trigger, and the target as response."""
    words = (record.text or record.prompt or record.response or "").split()[:_PROMPT_WORDS]
    prompt = " ".join([*words, attack.trigger])
    return Record(prompt=prompt, response=attack.target, client=record.client, label=record.label)


def _shuffled(text: str, rng: np.random.Generator) -> str:
    """Return the words of a text in random order."""
    words = text.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))
