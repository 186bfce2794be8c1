"""The clients' own records as members and non-members: what was trained on, what was held out."""

from __future__ import annotations

from collections.abc import Iterable

from client.data import Record
from server.audit.membership import TextSplit
from server.audit.target import Passage
from shared.seeding import data_rng
from simulations.auditing.target import ModelTarget
from simulations.dataset import FederatedDataset

SOURCE = "the clients' training records and the records they held out, split by chance"


def natural_split(
    dataset: FederatedDataset,
    target: ModelTarget,
    *,
    seed: int,
    most: int,
    participants: Iterable[int] | None = None,
) -> TextSplit | None:
    """Return the records of a run as a split.

    Each text counts once, and a text that one client trained on while another held it out is on
    neither side. A client holds its records out by chance, before training.

    Args:
        dataset: the clients' data, without canaries.
        target: leaves out what training leaves out.
        seed: draws from more records than are wanted.
        most: most texts of a side.
        participants: clients that took part in training; None for all. Records of the others
            were not trained on, whatever their side, and are left out.

    Returns:
        The split; None if a side is empty, as it is without a hold-out.
    """
    members: dict[tuple[str, str], Passage] = {}
    nonmembers: dict[tuple[str, str], Passage] = {}
    for index in range(dataset.population) if participants is None else sorted(set(participants)):
        data = dataset.client(index)
        for side, records in ((members, data.train), (nonmembers, data.holdout)):
            for record in records:
                passage = passage_of(record)
                side.setdefault((passage.prompt.strip(), passage.text.strip()), passage)
    both = members.keys() & nonmembers.keys()
    sides = []
    for name, side in (("members", members), ("nonmembers", nonmembers)):
        texts = [passage for key, passage in side.items() if key not in both]
        order = data_rng(seed, "natural", name).permutation(len(texts))
        usable = (texts[i] for i in order if target.scorable(texts[i]))
        sides.append(tuple(passage for passage, _ in zip(usable, range(most), strict=False)))
    if not all(sides):
        return None
    return TextSplit(members=sides[0], nonmembers=sides[1], source=SOURCE, by_chance=True)


def passage_of(record: Record) -> Passage:
    """Return a record as it is scored: a response after its prompt, or a text."""
    if record.response is not None:
        return Passage(text=record.response, prompt=record.prompt or "")
    return Passage(text=record.text or "")
