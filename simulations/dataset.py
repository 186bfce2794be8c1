"""A population of simulated clients over the embedded corpus, a file, or a datasets id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Protocol

import numpy as np

from client.data import (
    HUB_PREFIX,
    ClientData,
    Columns,
    Record,
    file_format,
    read_records,
    split_holdout,
)
from shared.config import DataSection
from shared.errors import EmptyPopulation, InvalidValue, NoUsableText
from shared.registry import suggestion
from shared.seeding import data_rng
from simulations import partition
from simulations.corpora import CLIENTS_DEFAULT, client_name, private_records
from simulations.partition import Indices

BUILTIN_PREFIX = "builtin:"
CLINICS = "clinics"
RECORDS_DEFAULT = 20


class FederatedDataset(Protocol):
    """Private text by client index."""

    @property
    def population(self) -> int:
        """Number of clients."""

    def client(self, index: int) -> ClientData:
        """Return the records of one client, the same ones every time.

        Raises:
            InvalidValue: if the index is not in ``[0, population)``.
        """

    def describe(self) -> Mapping[str, object]:
        """Return public facts, fit for a report: source, clients, counts; no text, no names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClinicsDataset:
    """The embedded corpus: nothing is stored, a client costs the same in any population.

    Attributes:
        population: number of clients.
        seed: the run's seed; names the corpus too.
        records: notes of each client, held-out ones included.
        holdout: share that is held out.
    """

    population: int
    seed: int
    records: int
    holdout: float

    def client(self, index: int) -> ClientData:
        """Return the notes of one clinic."""
        require_index(index, self.population)
        name = client_name(index, self.seed)
        texts = private_records(index, seed=self.seed, records=self.records)
        records = [Record(text=text, client=name) for text in texts]
        train, held = split_holdout(records, holdout=self.holdout, seed=self.seed, client=name)
        return ClientData(name=name, train=train, holdout=held)

    def describe(self) -> dict[str, object]:
        """Return public facts about the corpus."""
        return {
            "source": f"{BUILTIN_PREFIX}{CLINICS}",
            "partitioner": "natural",
            "clients": self.population,
            "records": self.population * self.records,
            "records_per_client": {
                "min": self.records,
                "median": float(self.records),
                "max": self.records,
            },
            "holdout": self.holdout,
        }


@dataclass(frozen=True, kw_only=True)
class RecordsDataset:
    """Records read once, and the record numbers of every client.

    Attributes:
        records: every usable record of the source.
        names: names of the clients.
        members: record numbers of each client, ascending.
        source: name of the file or the datasets id.
        partitioner: how records became clients.
        seed: the run's seed.
        holdout: share that is held out.
    """

    records: Sequence[Record]
    names: Sequence[str]
    members: Sequence[Indices]
    source: str
    partitioner: str
    seed: int
    holdout: float

    @property
    def population(self) -> int:
        """Number of clients."""
        return len(self.names)

    def client(self, index: int) -> ClientData:
        """Return the records of one client."""
        require_index(index, self.population)
        name = self.names[index]
        records = [replace(self.records[number], client=name) for number in self.members[index]]
        train, held = split_holdout(records, holdout=self.holdout, seed=self.seed, client=name)
        return ClientData(name=name, train=train, holdout=held)

    def describe(self) -> dict[str, object]:
        """Return public facts about the file and how it was dealt."""
        return {
            "source": self.source,
            "partitioner": self.partitioner,
            "clients": self.population,
            "records": int(self._sizes.sum()),
            "records_per_client": {
                "min": int(self._sizes.min()),
                "median": float(np.median(self._sizes)),
                "max": int(self._sizes.max()),
            },
            "holdout": self.holdout,
        }

    @cached_property
    def _sizes(self) -> Indices:
        """Records of each client."""
        return np.array([len(member) for member in self.members], dtype=np.int64)


def open_dataset(
    data: DataSection, *, population: int | None, seed: int, base_dir: Path
) -> FederatedDataset:
    """Open the data of a scenario and deal them to clients.

    Natural clients are sorted by name; those with fewer than ``min_records`` records are dropped,
    and a ``population`` below what remains is a seeded choice. ``max_records`` keeps a seeded
    choice of each client's records. Records of white space only are dropped, but a natural client
    with enough records of which none is usable is an error.

    Args:
        data: the scenario's data section.
        population: number of clients; None takes all natural ones, or the corpus's default.
        seed: the run's seed.
        base_dir: folder that a relative path starts at.

    Returns:
        The dataset; a file has been read into memory, the embedded corpus is made on demand.

    Raises:
        EmptyPopulation: if the population is zero, or no client is left.
        InvalidValue: if the population is larger than the data allow, with both numbers.
        NoUsableText: if a natural client, or the whole file, has only white space.
        DataFileNotFound: as :func:`client.data.read_records`; so are the next two.
        MalformedRow: for a row that cannot be read.
        MissingDependency: if a format or partitioner needs the ``sim`` extra.
    """
    if population is not None and population < 1:
        msg = f"clients.population={population}, expected at least 1 client."
        raise EmptyPopulation(msg)
    if data.path.startswith(BUILTIN_PREFIX) or data.format == "builtin":
        return _open_builtin(data, population=population, seed=seed)
    records = _read(data, base_dir)
    if data.partitioner == "natural":
        clients = _natural(records, data, population=population, seed=seed)
    else:
        records = [record for record in records if record.usable]
        clients = _dealt(records, data, population=population, seed=seed)
    names = tuple(clients)
    members = tuple(
        _capped(clients[name], data.max_records, seed=seed, client=name) for name in names
    )
    return RecordsDataset(
        records=records,
        names=names,
        members=members,
        source=_source_name(data.path),
        partitioner=data.partitioner,
        seed=seed,
        holdout=data.holdout,
    )


def require_index(index: int, population: int) -> None:
    """Refuse a client that does not exist.

    Raises:
        InvalidValue: if the index is not an integer in ``[0, population)``.
    """
    if not (is_integer(index) and 0 <= index < population):
        msg = f"client index={index!r}, expected an integer from 0 to {population - 1}."
        raise InvalidValue(msg)


def is_integer(value: object) -> bool:
    """Tell whether a value is an integer and not a boolean."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _open_builtin(data: DataSection, *, population: int | None, seed: int) -> ClinicsDataset:
    """Open the embedded corpus."""
    name = data.path.removeprefix(BUILTIN_PREFIX)
    if name != CLINICS:
        known = f"{BUILTIN_PREFIX}{CLINICS}"
        msg = f"data.path={data.path!r}, expected {known!r}."
        raise InvalidValue(msg, hint=suggestion(data.path, [known]))
    if data.partitioner != "natural":
        msg = f'data.partitioner={data.partitioner!r} for {data.path!r}, expected "natural".'
        raise InvalidValue(msg, hint="The embedded corpus is made client by client.")
    records = RECORDS_DEFAULT if data.records is None else data.records
    if data.max_records is not None:
        records = min(records, data.max_records)
    return ClinicsDataset(
        population=CLIENTS_DEFAULT if population is None else population,
        seed=seed,
        records=records,
        holdout=data.holdout,
    )


def _read(data: DataSection, base_dir: Path) -> list[Record]:
    """Read every record of a file or datasets id; names are shared, not stored once a record."""
    columns = Columns(
        text=data.text,
        prompt=data.prompt,
        response=data.response,
        client=data.client,
        label=data.label,
    )
    path = _located(data, base_dir)
    kind = file_format(path, data.format)
    records = [
        replace(record, client=_shared(record.client), label=_shared(record.label))
        for record in read_records(path, format=kind, columns=columns, split=data.split)
    ]
    if not records:
        msg = f"{_source_name(data.path)} holds no records, expected at least one."
        raise EmptyPopulation(msg)
    if not any(record.usable for record in records):
        msg = f"{_source_name(data.path)}: none of {len(records)} records holds text."
        raise NoUsableText(msg, hint="Check that data.text names the right column.")
    return records


def _located(data: DataSection, base_dir: Path) -> str:
    """Return the path from ``base_dir`` on; a datasets id that is no folder there stays an id."""
    if data.path.startswith(HUB_PREFIX) or data.format == "datasets":
        name = data.path.removeprefix(HUB_PREFIX)
        folder = base_dir / Path(name).expanduser()
        return f"{HUB_PREFIX}{folder if folder.is_dir() else name}"
    return str(base_dir / Path(data.path).expanduser())


def _source_name(path: str) -> str:
    """Return what a report may call the source: an id, or the name of a file."""
    if path.startswith(HUB_PREFIX) and not Path(path.removeprefix(HUB_PREFIX)).is_absolute():
        return path
    return Path(path).name


def _shared(name: str | None) -> str | None:
    """Return one object for equal names."""
    return None if name is None else intern(name)


def _natural(
    records: Sequence[Record], data: DataSection, *, population: int | None, seed: int
) -> dict[str, Indices]:
    """Group records by the client they name, and choose the population."""
    if data.client is None:
        msg = 'data.partitioner="natural" needs data.client, the column that names the client.'
        raise InvalidValue(msg, hint='Or set data.partitioner to "iid".')
    groups = partition.by_name(str(record.client) for record in records)
    clients: dict[str, Indices] = {}
    for name, members in groups.items():
        if len(members) < data.min_records:
            continue
        usable = members[[records[number].usable for number in members]]
        if len(usable) == 0:
            msg = f"client={name!r} has {len(members)} records and none holds text."
            raise NoUsableText(msg, hint="Remove the client, or check data.text.")
        if len(usable) >= data.min_records:
            clients[name] = usable
    if not clients:
        msg = f"none of {len(groups)} clients has data.min_records={data.min_records} records."
        raise EmptyPopulation(msg)
    if population is None or population == len(clients):
        return clients
    if population > len(clients):
        found = f"but only {len(clients)} clients have at least {data.min_records} records"
        msg = f"clients.population={population}, {found}."
        raise InvalidValue(msg, hint="Lower clients.population or data.min_records.")
    chosen = data_rng(seed, "population").choice(len(clients), size=population, replace=False)
    names = list(clients)
    return {names[index]: clients[names[index]] for index in sorted(chosen)}


def _dealt(
    records: Sequence[Record], data: DataSection, *, population: int | None, seed: int
) -> dict[str, Indices]:
    """Deal records to numbered clients."""
    if population is None:
        msg = f"data.partitioner={data.partitioner!r} needs clients.population."
        raise InvalidValue(msg)
    labels = [record.label or "" for record in records]
    if data.partitioner == "iid":
        parts = partition.iid(len(records), clients=population, seed=seed)
    elif data.partitioner == "dirichlet":
        if data.label is None or data.dirichlet_alpha is None:
            msg = 'data.partitioner="dirichlet" needs data.label and data.dirichlet_alpha.'
            raise InvalidValue(msg)
        alpha = data.dirichlet_alpha
        parts = partition.dirichlet(labels, clients=population, alpha=alpha, seed=seed)
    else:
        if data.shards_per_client is None:
            msg = 'data.partitioner="shards" needs data.shards_per_client.'
            raise InvalidValue(msg)
        number = data.shards_per_client
        parts = partition.shards(labels, clients=population, shards_per_client=number, seed=seed)
    width = len(str(population - 1))
    return {f"client-{index:0{width}d}": part for index, part in enumerate(parts)}


def _capped(members: Indices, limit: int | None, *, seed: int, client: str) -> Indices:
    """Keep a seeded choice of at most ``limit`` records, in their order."""
    if limit is None or len(members) <= limit:
        return members
    chosen = data_rng(seed, "max-records", client).choice(len(members), size=limit, replace=False)
    return np.asarray(members[np.sort(chosen)], dtype=np.int64)
