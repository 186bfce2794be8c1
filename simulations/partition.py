"""How records become clients: by a column, or dealt out IID, by Dirichlet draws, or in shards.

The last three are flwr-datasets' partitioners, run on record numbers instead of records, so that
nothing private is copied. What they leave open is settled here: an IID deal is shuffled first, no
client stays empty, and no record is lost. Every function returns one array of record numbers per
client; together they hold every record exactly once.
"""

from __future__ import annotations

import heapq
import importlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import InvalidValue, MissingDependency
from shared.seeding import data_rng, derive_seed
from shared.validate import positive, positive_integer

Indices = NDArray[np.int64]
# Far above, the draw's sum overflows and everything silently goes to the last client.
_LARGEST_ALPHA = 1e6


class _Rows(Protocol):
    """Rows of the datasets library, read all at once, which is far faster than one by one."""

    def __getitem__(self, rows: slice) -> Mapping[str, Sequence[int]]:
        """Return the columns of some rows."""


class _Partitioner(Protocol):
    """What the partitioners of flwr-datasets have in common, as far as it is used here."""

    dataset: Any

    def load_partition(self, partition_id: int) -> _Rows:
        """Return the rows of one client."""


def by_name(names: Iterable[str]) -> dict[str, Indices]:
    """Group record numbers by the client that each record names.

    Args:
        names: the client of every record, in the order of the records.

    Returns:
        Ascending record numbers for each client, clients sorted by name.
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return {name: np.asarray(groups[name], dtype=np.int64) for name in sorted(groups)}


def iid(records: int, *, clients: int, seed: int) -> list[Indices]:
    """Deal shuffled records in equal parts; sizes differ by at most one.

    Args:
        records: how many there are.
        clients: how many clients to make.
        seed: the run's seed.

    Raises:
        InvalidValue: if there are fewer records than clients.
        MissingDependency: if flwr-datasets is not installed.
    """
    _require_enough(records, clients)
    order = data_rng(seed, "partition", "iid").permutation(records)
    partitioner = _partitioners().IidPartitioner(num_partitions=clients)
    return _run(partitioner, {"record": order}, clients)


def dirichlet(labels: Sequence[str], *, clients: int, alpha: float, seed: int) -> list[Indices]:
    """Deal each label by its own draw from a symmetric Dirichlet distribution over the clients.

    A small ``alpha`` gives each client few labels, a large one the same mixture to all. A client
    that the draw leaves empty takes one record from the largest client.

    Args:
        labels: one per record.
        clients: how many clients to make.
        alpha: concentration, above zero.
        seed: the run's seed.

    Raises:
        InvalidValue: if ``alpha`` is not in ``(0, 1e6]``, or if there are fewer records than
            clients.
        MissingDependency: if flwr-datasets is not installed.
    """
    positive(dirichlet_alpha=alpha)
    if not alpha <= _LARGEST_ALPHA:
        msg = f"dirichlet_alpha={alpha!r}, expected at most {_LARGEST_ALPHA:g}."
        raise InvalidValue(msg, hint='That is as good as the same mixture for all: use "iid".')
    _require_enough(len(labels), clients)
    partitioner = _partitioners().DirichletPartitioner(
        num_partitions=clients,
        partition_by="label",
        alpha=float(alpha),
        min_partition_size=0,
        self_balancing=False,
        seed=derive_seed(seed, "partition", "dirichlet"),
    )
    columns = {"record": np.arange(len(labels)), "label": _codes(labels)}
    return _fill_empty(_run(partitioner, columns, clients))


def shards(
    labels: Sequence[str], *, clients: int, shards_per_client: int, seed: int
) -> list[Indices]:
    """Sort by label, cut into equal shards, and give each client the same number at random.

    This is the split of McMahan et al. (2017): with two shards a client sees about two labels.
    Records that do not fill a shard, fewer than there are shards, go one by one to the smallest
    client that already holds their label, or to the smallest of all.

    Args:
        labels: one per record; all equal gives clients of equal size.
        clients: how many clients to make.
        shards_per_client: how many shards each gets.
        seed: the run's seed.

    Raises:
        InvalidValue: if there are fewer records than shards.
        MissingDependency: if flwr-datasets is not installed.
    """
    positive_integer(shards_per_client=shards_per_client)
    _require_enough(len(labels), clients)
    total = clients * shards_per_client
    if len(labels) < total:
        msg = f"shards_per_client={shards_per_client} for {clients} clients needs {total} records"
        msg = f"{msg}, found {len(labels)}."
        raise InvalidValue(msg, hint="Use fewer shards_per_client or a smaller population.")
    codes = _codes(labels)
    order = data_rng(seed, "partition", "shards").permutation(len(labels))
    whole = len(labels) - len(labels) % total
    kept, rest = np.sort(order[:whole]), np.sort(order[whole:])
    partitioner = _partitioners().ShardPartitioner(
        num_partitions=clients,
        partition_by="label",
        num_shards_per_partition=shards_per_client,
        seed=derive_seed(seed, "partition", "shards"),
    )
    parts = _run(partitioner, {"record": kept, "label": codes[kept]}, clients)
    return _deal_rest(parts, rest, codes)


def _require_enough(records: int, clients: int) -> None:
    """Refuse a population that some client of would have no record."""
    positive_integer(population=clients)
    if not records >= clients:
        msg = f"clients.population={clients}, but there are only {records} records."
        raise InvalidValue(msg, hint=f"Expected at most one client per record: {records}.")


def _codes(labels: Sequence[str]) -> Indices:
    """Number the labels in sorted order, so that nothing but numbers reaches the library."""
    _, codes = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    return np.asarray(codes, dtype=np.int64)


def _run(partitioner: _Partitioner, columns: dict[str, Indices], clients: int) -> list[Indices]:
    """Give a partitioner its columns and collect the record numbers of every client."""
    datasets = _extra("datasets")
    partitioner.dataset = datasets.Dataset.from_dict(columns)
    parts = []
    with warnings.catch_warnings():
        # datasets 4 sorts with an argument that pyarrow deprecates from version 25 on.
        warnings.filterwarnings("ignore", message=".*null_placement", category=FutureWarning)
        for client in range(clients):
            part = np.asarray(partitioner.load_partition(client)[:]["record"], dtype=np.int64)
            parts.append(np.sort(part))
    return parts


def _fill_empty(parts: list[Indices]) -> list[Indices]:
    """Move one record of the then largest client to each empty one."""
    heap = [(-len(part), client) for client, part in enumerate(parts)]
    heapq.heapify(heap)
    for client, part in enumerate(parts):
        if len(part) == 0:
            size, donor = heapq.heappop(heap)
            parts[client], parts[donor] = parts[donor][-1:], parts[donor][:-1]
            heapq.heappush(heap, (size + 1, donor))
    return parts


def _deal_rest(parts: list[Indices], rest: Indices, codes: Indices) -> list[Indices]:
    """Deal left-over records to the smallest client that has the label, or of all."""
    sizes = np.array([len(part) for part in parts])
    extra: list[list[int]] = [[] for _ in parts]
    holders: dict[int, Indices] = {}
    for record in rest:
        label = int(codes[record])
        if label not in holders:
            having = [client for client, part in enumerate(parts) if (codes[part] == label).any()]
            holders[label] = np.asarray(having or range(len(parts)), dtype=np.int64)
        client = int(holders[label][np.argmin(sizes[holders[label]])])
        extra[client].append(int(record))
        sizes[client] += 1
    return [
        np.sort(np.concatenate([part, np.asarray(more, dtype=np.int64)]))
        for part, more in zip(parts, extra, strict=True)
    ]


def _partitioners() -> ModuleType:
    """Import flwr-datasets' partitioners."""
    return _extra("flwr_datasets.partitioner")


def _extra(module: str) -> ModuleType:
    """Import a module of the ``sim`` extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f"{module.split('.')[0]} is not installed, but the partitioner needs it."
        raise MissingDependency(msg, hint="Run: pip install 'fedslm[sim]'") from error
