"""Reading through what a model writes by itself for the facts of people it was trained on.

Untargeted extraction after Carlini et al., "Extracting Training Data from Large Language Models"
(2021). Some facts come out by chance, names above all. How many, the same texts show: facts of
clients that no training data hold are looked for in them as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.audit import evidence as stored
from server.audit.extractable import stratified_p_value
from server.audit.facts import Holders, spoken
from server.audit.target import Target
from shared.errors import AuditError

_WRITTEN_TOKENS = 32
_MODELS = (("tuned", True), ("base", False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """How many clients' facts stand in what the model writes by itself.

    Args:
        generations: texts that were written.
        clients: clients whose facts were looked for: trained on, and not.
        kinds: clients of either sort with a fact in the texts, by kind of fact and model.
    """

    generations: int
    clients: tuple[int, int]
    kinds: Mapping[str, Mapping[str, tuple[int, int]]]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Generated:
        """Read the counts from the evidence."""
        clients = _pair(entry, "clients", None)
        kinds = stored.mapping(entry, "kinds")
        return cls(
            generations=stored.integer(entry, "generations", low=1),
            clients=clients,
            kinds={
                name: {
                    model: _pair(stored.mapping(kinds, name), model, clients)
                    for model, _ in _MODELS
                }
                for name in kinds
            },
        )

    def p_value(self) -> float:
        """Return the p-value of "facts of trained-on clients are written no more often"."""
        trained, fresh = self.clients
        return stratified_p_value(
            [(hit["tuned"][0], trained, hit["tuned"][1], fresh) for hit in self.kinds.values()]
        )

    def explain(self) -> str:
        """Say what the model writes by itself."""
        told = ", ".join(
            f"{name} {hit['tuned'][0]} against {hit['tuned'][1]}"
            for name, hit in self.kinds.items()
        )
        return (
            f"In {self.generations} texts that it wrote by itself stand facts of so many of "
            f"{self.clients[0]} clients in training, against {self.clients[1]} that were not: "
            f"{told}."
        )

    def to_dict(self) -> dict[str, object]:
        """Return the derived numbers."""
        return {"p_value": self.p_value(), "generations": self.generations}


def speak(holders: Holders, target: Target, count: int, seed: int) -> dict[str, Any]:
    """Let the model write, and count the clients whose facts it wrote.

    Args:
        holders: whose facts to look for.
        target: the model.
        count: how many texts to write, with the adapter and again without.
        seed: of the sampling, at temperature 1.

    Returns:
        Counts of clients, by kind and model: trained on, and not.
    """
    openings = holders.openings or ("",)
    prompts = [openings[number % len(openings)] for number in range(count)]
    everyone = (*holders.trained, *holders.fresh)
    names = sorted({kind for held in everyone for kind in held.values()})
    counts: dict[str, dict[str, list[int]]] = {name: {} for name in names}
    for model, adapter in _MODELS:
        written = target.write(
            prompts, adapter=adapter, max_tokens=_WRITTEN_TOKENS, temperature=1.0, seed=seed
        )
        outputs = [f"{p}{text}" for p, text in zip(prompts, written, strict=True)]
        kinds = spoken(outputs, everyone)
        split = len(holders.trained)
        for name in names:
            hit = [name in found_kinds for found_kinds in kinds]
            counts[name][model] = [sum(hit[:split]), sum(hit[split:])]
    return {
        "generations": count,
        "clients": [len(holders.trained), len(holders.fresh)],
        "kinds": counts,
    }


def _pair(entry: Mapping[str, Any], key: str, limits: tuple[int, int] | None) -> tuple[int, int]:
    """Return two counts, trained and fresh."""
    values = stored.sequence(entry, key)
    if len(values) != 2:
        msg = f"evidence {key!r} has {len(values)} entries, expected 2."
        raise AuditError(msg)
    high = (None, None) if limits is None else limits
    first, second = (
        stored.integer({key: value}, key, low=0, high=most)
        for value, most in zip(values, high, strict=True)
    )
    return first, second
