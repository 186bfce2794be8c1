"""Dealing records to clients: nothing lost, nothing twice, the same for a seed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import InvalidValue
from simulations.partition import Indices, by_name, dirichlet, iid, shards

pytest.importorskip("flwr_datasets", reason="the sim extra is not installed")

Deal = Callable[[int], list[Indices]]


def covers(parts: list[Indices], records: int) -> bool:
    return sorted(int(i) for part in parts for i in part) == list(range(records))


labels_strategy = st.lists(st.sampled_from("abcde"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 60), st.integers(0, 2**70))
def test_iid_is_a_cover_of_equal_parts(data: st.DataObject, records: int, seed: int) -> None:
    clients = data.draw(st.integers(1, records))
    parts = iid(records, clients=clients, seed=seed)
    assert len(parts) == clients
    assert covers(parts, records)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(deadline=None, max_examples=40)
@given(st.data(), labels_strategy, st.sampled_from([0.01, 0.3, 1.0, 100.0]), st.integers(0, 2**70))
def test_dirichlet_is_a_cover_without_empty_clients(
    data: st.DataObject, labels: list[str], alpha: float, seed: int
) -> None:
    clients = data.draw(st.integers(1, len(labels)))
    parts = dirichlet(labels, clients=clients, alpha=alpha, seed=seed)
    assert len(parts) == clients
    assert covers(parts, len(labels))
    assert min(map(len, parts)) >= 1


@settings(deadline=None, max_examples=40)
@given(st.data(), labels_strategy, st.integers(0, 2**70))
def test_shards_are_a_cover(data: st.DataObject, labels: list[str], seed: int) -> None:
    clients = data.draw(st.integers(1, len(labels)))
    each = data.draw(st.integers(1, len(labels) // clients))
    parts = shards(labels, clients=clients, shards_per_client=each, seed=seed)
    assert len(parts) == clients
    assert covers(parts, len(labels))
    assert min(map(len, parts)) >= each


def test_shards_give_few_labels_to_each_client() -> None:
    labels = [str(i % 10) for i in range(1000)]
    parts = shards(labels, clients=50, shards_per_client=2, seed=3)
    assert {len(part) for part in parts} == {20}
    assert max(len({labels[i] for i in part}) for part in parts) <= 2


def test_records_that_fill_no_shard_stay_with_their_label() -> None:
    labels = ["a"] * 53 + ["b"] * 52
    parts = shards(labels, clients=10, shards_per_client=1, seed=5)
    assert covers(parts, 105)
    assert min(map(len, parts)) >= 10
    # One shard of ten straddles the border at most; no left-over record adds a label elsewhere.
    assert sum(len({labels[i] for i in part}) == 2 for part in parts) <= 1


DEALS: list[Deal] = [
    lambda seed: iid(50, clients=7, seed=seed),
    lambda seed: dirichlet(list("abcde") * 10, clients=7, alpha=0.5, seed=seed),
    lambda seed: shards(list("abcde") * 10, clients=7, shards_per_client=2, seed=seed),
]


@pytest.mark.parametrize("deal", DEALS, ids=["iid", "dirichlet", "shards"])
def test_the_same_seed_deals_the_same_and_another_does_not(deal: Deal) -> None:
    first = [part.tolist() for part in deal(1)]
    assert first == [part.tolist() for part in deal(1)]
    assert first != [part.tolist() for part in deal(2)]
    assert first != [part.tolist() for part in deal(1 + 2**32)], "all bits of the seed count"
    assert all(part == sorted(part) for part in first)


def mean_skew(alpha: float) -> float:
    """Return the mean total-variation distance of the clients' label shares from all labels'."""
    labels = np.array([str(i % 8) for i in range(1600)])
    parts = dirichlet(labels.tolist(), clients=20, alpha=alpha, seed=11)
    names = np.unique(labels)
    shares = [np.array([(labels[part] == name).mean() for name in names]) for part in parts]
    return float(np.mean([np.abs(share - 1 / 8).sum() / 2 for share in shares]))


def test_dirichlet_skew_falls_with_alpha() -> None:
    skews = [mean_skew(alpha) for alpha in (0.03, 0.3, 3.0, 300.0)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.6, "nearly one label a client"
    assert skews[-1] < 0.05, "nearly the mixture of all"


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1.1e6, 1e308])
def test_dirichlet_refuses_what_is_no_concentration(alpha: float) -> None:
    with pytest.raises(InvalidValue, match="dirichlet_alpha="):
        dirichlet(["a", "b"], clients=2, alpha=alpha, seed=0)


@pytest.mark.parametrize(("alpha", "smallest", "largest"), [(1e-320, 1, 10), (1e6, 6, 8)])
def test_extreme_concentrations(alpha: float, smallest: int, largest: int) -> None:
    """Two labels of ten records: whole labels to one client each, or thirds to everyone."""
    parts = dirichlet(list("ab") * 10, clients=3, alpha=alpha, seed=0)
    assert covers(parts, 20)
    assert (min(map(len, parts)), max(map(len, parts))) == (smallest, largest)


REFUSED: list[Callable[[], object]] = [
    lambda: iid(3, clients=4, seed=0),
    lambda: dirichlet(["a"] * 3, clients=4, alpha=1.0, seed=0),
    lambda: shards(["a"] * 3, clients=4, shards_per_client=1, seed=0),
]


@pytest.mark.parametrize("deal", REFUSED, ids=["iid", "dirichlet", "shards"])
def test_more_clients_than_records_says_both_numbers(deal: Callable[[], object]) -> None:
    with pytest.raises(InvalidValue, match=r"population=4.*only 3 records"):
        deal()


def test_more_shards_than_records_says_all_numbers() -> None:
    with pytest.raises(InvalidValue, match=r"=2 for 4 clients needs 8 records, found 7"):
        shards(["a"] * 7, clients=4, shards_per_client=2, seed=0)


def test_no_clients_at_all() -> None:
    with pytest.raises(InvalidValue, match="population=0"):
        iid(3, clients=0, seed=0)


def test_by_name_groups_and_sorts() -> None:
    groups = by_name(["b", "a", "b", "c"])
    assert {name: members.tolist() for name, members in groups.items()} == {
        "a": [1],
        "b": [0, 2],
        "c": [3],
    }
    assert list(groups) == ["a", "b", "c"]


def test_without_the_library_the_install_line_is_given() -> None:
    program = (
        "import sys; sys.modules['flwr_datasets'] = None\n"
        "from simulations.partition import iid\n"
        "from shared.errors import MissingDependency\n"
        "try: iid(3, clients=2, seed=0)\n"
        "except MissingDependency as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "Run: pip install 'fedslm[sim]'", done.stderr
