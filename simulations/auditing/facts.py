"""Which personal facts a run was trained on, and which comparable ones it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from client.data import Record
from server.audit.facts import Holders, PersonalFact, PersonalFacts, questions
from shared.seeding import data_rng
from shared.validate import positive_integer
from simulations.corpora import Secret, secrets
from simulations.dataset import ClinicsDataset

PER_KIND = 64
CANDIDATES = 15
HOLDERS = 1_000
OPENINGS = ("Pt",)
"""How every record of the embedded corpus begins."""

_KINDS = ("name", "phone", "record_number", "address")


def personal_facts(
    dataset: object,
    *,
    seed: int,
    per_kind: int = PER_KIND,
    candidates: int = CANDIDATES,
    holders: int = HOLDERS,
) -> PersonalFacts | None:
    """Return the facts planted in the embedded corpus, with comparable ones.

    Facts that were trained on come from a random choice of clients and stand in a record that the
    client may train on: a fact that is only in its held-out records is left out. Comparable facts
    come from clients of the same corpus whose index lies beyond the population, and so do the
    candidates, every one from a client of its own. Whatever stands on both sides by chance, as two
    people may have one name, is left out of both.

    Args:
        dataset: the data of the run; wrappers that plant canaries are looked through.
        seed: chooses the clients.
        per_kind: facts of each kind on either side, at most.
        candidates: other facts for each to be told from.
        holders: clients on either side whose facts are looked for in what the model writes.

    Returns:
        The facts; None for data that plant none.

    Raises:
        InvalidValue: if a count is not a positive integer.
    """
    positive_integer(per_kind=per_kind, candidates=candidates, holders=holders)
    clinics = _clinics(dataset)
    if clinics is None:
        return None
    chosen = data_rng(seed, "audit-facts").permutation(clinics.population)
    members = [int(client) for client in chosen[: max(holders, 2 * per_kind)]]
    trained = [_held(clinics, client) for client in members]
    beyond = replace(clinics, population=clinics.population + len(members))
    fresh = [_held(beyond, clinics.population + number) for number in range(len(members))]
    taken = [{text for held in side for text in held} for side in (trained, fresh)]
    both = taken[0] & taken[1]
    pool = _Pool(first=beyond.population, seed=clinics.seed, known=taken[0] | taken[1])
    sides = [
        tuple(
            pool.with_candidates(fact, candidates)
            for kind in _KINDS
            for fact in _one_each(side, kind, per_kind, both)
        )
        for side in (trained, fresh)
    ]
    return PersonalFacts(
        trained=sides[0],
        fresh=sides[1],
        holders=Holders(
            trained=tuple(_by_text(held, both) for held in trained[:holders]),
            fresh=tuple(_by_text(held, both) for held in fresh[:holders]),
            openings=OPENINGS,
        ),
    )


class _Pool:
    """Facts of clients that exist nowhere else, dealt out one client at a time."""

    def __init__(self, *, first: int, seed: int, known: set[str]) -> None:
        self._seed = seed
        self._known = known
        self._next = dict.fromkeys(_KINDS, first)
        self._drawn: dict[int, list[Secret]] = {}

    def with_candidates(self, fact: PersonalFact, count: int) -> PersonalFact:
        """Return a fact with candidates of its kind, each from a client not used for that kind."""
        found: list[str] = []
        space = fact.text[: len(fact.text) - len(fact.text.lstrip())]
        while len(found) < count:
            client = self._next[fact.kind]
            self._next[fact.kind] += 1
            drawn = self._drawn.get(client) or secrets(client, self._seed)
            self._drawn[client] = drawn
            text = next(secret.text for secret in drawn if secret.kind == fact.kind)
            if text not in self._known and space + text not in found:
                found.append(space + text)
        return replace(fact, candidates=tuple(found))


def _clinics(dataset: object) -> ClinicsDataset | None:
    """Return the embedded corpus inside a dataset, if that is what it wraps."""
    seen = dataset
    while not isinstance(seen, ClinicsDataset):
        seen = getattr(seen, "dataset", None)
        if seen is None:
            return None
    return seen


def _held(clinics: ClinicsDataset, client: int) -> Mapping[str, PersonalFact]:
    """Return the facts in a client's training records, by text."""
    records = clinics.client(client).train
    found = {}
    for secret in secrets(client, clinics.seed):
        fact = _located(secret, records)
        if fact is not None:
            found[secret.text] = fact
    return found


def _located(secret: Secret, records: Sequence[Record]) -> PersonalFact | None:
    """Return a fact with what stands before it in the first record that holds it as a whole."""
    for record in records:
        text = record.text or ""
        start = _whole(text, secret.text)
        if start is None:
            continue
        before = text[:start].removesuffix(" ")
        return PersonalFact(
            kind=secret.kind,
            before=before,
            text=text[len(before) : start + len(secret.text)],
            asked=questions(secret.kind, secret.patient),
        )
    return None


def _whole(text: str, fact: str) -> int | None:
    """Return where a fact stands as a whole, between white space and the end of a word."""
    start = text.find(fact)
    while start >= 0:
        after = text[start + len(fact) : start + len(fact) + 1]
        if (start == 0 or text[start - 1].isspace()) and not after.isalnum():
            return start
        start = text.find(fact, start + 1)
    return None


def _one_each(
    side: Sequence[Mapping[str, PersonalFact]], kind: str, most: int, left_out: set[str]
) -> list[PersonalFact]:
    """Return one fact of a kind from each client that has one, up to a number."""
    found: list[PersonalFact] = []
    for held in side:
        mine = [f for text, f in held.items() if f.kind == kind and text not in left_out]
        if mine and len(found) < most:
            found.append(mine[0])
    return found


def _by_text(held: Mapping[str, PersonalFact], left_out: set[str]) -> dict[str, str]:
    """Return the kind of each of a client's facts by its text."""
    return {text: fact.kind for text, fact in held.items() if text not in left_out}
