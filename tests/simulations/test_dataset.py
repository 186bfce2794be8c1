"""Opening a scenario's data: the embedded corpus, files, natural and dealt clients."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from client.data import ClientData
from shared.config import DataSection
from shared.errors import (
    DataFileNotFound,
    EmptyPopulation,
    InvalidValue,
    MalformedRow,
    NoUsableText,
)
from simulations.corpora import client_name, private_records
from simulations.dataset import FederatedDataset, open_dataset

FEDERATED = Path("../shared/data/federated")
SHAKESPEARE = FEDERATED / "shakespeare" / "by_role.jsonl"
MEDQUAD = FEDERATED / "medquad" / "medquad_small.jsonl"


def opened(
    base: Path | None = None, *, population: int | None = None, seed: int = 1, **data: Any
) -> FederatedDataset:
    section = DataSection(**data)
    return open_dataset(section, population=population, seed=seed, base_dir=base or Path())


def write(folder: Path, rows: list[dict[str, object]]) -> None:
    body = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(body, encoding="utf-8")


def ward(folder: Path, sizes: dict[str, int]) -> None:
    """Write clients of given sizes, interleaved, with texts that say where they belong."""
    rows = [
        {"who": name, "note": f"{name} {index}", "kind": index % 3}
        for index in range(max(sizes.values()))
        for name, size in sizes.items()
        if index < size
    ]
    write(folder, rows)


NATURAL: dict[str, Any] = {"path": "a.jsonl", "text": "note", "client": "who"}


def texts(data: ClientData) -> set[str]:
    return {str(record.text) for record in (*data.train, *data.holdout)}


def names(dataset: FederatedDataset) -> list[str]:
    return [dataset.client(index).name for index in range(dataset.population)]


def test_the_embedded_corpus_is_what_corpora_makes() -> None:
    dataset = opened(path="builtin:clinics", population=1000, records=10, holdout=0.2, seed=7)
    data = dataset.client(42)
    assert data.name == client_name(42, 7)
    assert texts(data) == set(private_records(42, seed=7, records=10))
    assert (len(data.train), len(data.holdout)) == (8, 2)
    assert all(record.client == data.name for record in data.train)
    assert dataset.client(42) == data
    assert dataset.population == 1000


def test_a_million_clients_open_at_once() -> None:
    tracemalloc.start()
    before = time.perf_counter()
    dataset = opened(path="builtin:clinics", population=1_000_000)
    last = dataset.client(999_999)
    seconds = time.perf_counter() - before
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.population == 1_000_000
    assert last.train
    assert seconds < 1.0
    assert peak < 4 << 20, "nothing is stored per client"


@pytest.mark.parametrize("records", [None, 1, 7])
def test_records_and_their_bound_in_the_embedded_corpus(records: int | None) -> None:
    dataset = opened(path="builtin:clinics", population=3, records=records, max_records=5)
    data = dataset.client(0)
    expected = 1 if records == 1 else 5
    assert len(data.train) + len(data.holdout) == expected
    assert dataset.describe()["records"] == 3 * expected


def test_embedded_corpora_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="builtin:clinic'") as caught:
        opened(tmp_path, path="builtin:clinic", population=3)
    assert caught.value.hint == "Did you mean 'builtin:clinics'?"
    with pytest.raises(InvalidValue, match='expected "natural"'):
        opened(tmp_path, path="builtin:clinics", population=3, partitioner="iid")


@pytest.mark.parametrize("population", [0, -1])
@pytest.mark.parametrize("path", ["builtin:clinics", "a.jsonl"])
def test_a_population_of_zero(tmp_path: Path, path: str, population: int) -> None:
    with pytest.raises(EmptyPopulation, match="expected at least 1"):
        opened(tmp_path, path=path, text="note", client="who", population=population)


@pytest.mark.parametrize("index", [-1, 3, True])
def test_a_client_that_does_not_exist(tmp_path: Path, index: int) -> None:
    ward(tmp_path, {"a": 2, "b": 2, "c": 2})
    for dataset in (
        opened(path="builtin:clinics", population=3),
        opened(tmp_path, **NATURAL),
    ):
        with pytest.raises(InvalidValue, match="from 0 to 2"):
            dataset.client(index)


def test_natural_clients_are_sorted_and_keep_their_own(tmp_path: Path) -> None:
    ward(tmp_path, {"zoe": 4, "amy": 3, "bob": 1})
    dataset = opened(tmp_path, **NATURAL, holdout=0.25)
    assert names(dataset) == ["amy", "bob", "zoe"]
    for index in range(3):
        data = dataset.client(index)
        assert all(text.startswith(data.name) for text in texts(data))
        assert all(record.client == data.name for record in (*data.train, *data.holdout))
    assert len(texts(dataset.client(2))) == 4
    assert dataset.client(1).holdout == []
    assert dataset.describe() == {
        "source": "a.jsonl",
        "partitioner": "natural",
        "clients": 3,
        "records": 8,
        "records_per_client": {"min": 1, "median": 3.0, "max": 4},
        "holdout": 0.25,
    }


def test_min_records_drops_small_clients(tmp_path: Path) -> None:
    ward(tmp_path, {"a": 4, "b": 3, "c": 2})
    assert names(opened(tmp_path, **NATURAL, min_records=3)) == ["a", "b"]
    with pytest.raises(EmptyPopulation, match=r"none of 3 clients has data.min_records=5"):
        opened(tmp_path, **NATURAL, min_records=5)


def test_a_smaller_population_is_a_seeded_choice(tmp_path: Path) -> None:
    ward(tmp_path, {f"c{index:02d}": 2 for index in range(30)})
    chosen = names(opened(tmp_path, **NATURAL, population=10, seed=1))
    assert chosen == names(opened(tmp_path, **NATURAL, population=10, seed=1))
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10
    assert chosen != names(opened(tmp_path, **NATURAL, population=10, seed=2))


def test_a_larger_population_names_both_numbers(tmp_path: Path) -> None:
    ward(tmp_path, {"a": 4, "b": 1})
    with pytest.raises(InvalidValue, match=r"population=3, but only 2 clients"):
        opened(tmp_path, **NATURAL, population=3)
    with pytest.raises(InvalidValue, match=r"population=2, but only 1 clients have at least 2"):
        opened(tmp_path, **NATURAL, population=2, min_records=2)


def test_max_records_is_a_seeded_choice(tmp_path: Path) -> None:
    ward(tmp_path, {"a": 20, "b": 3})

    def kept(seed: int) -> set[str]:
        return texts(opened(tmp_path, **NATURAL, max_records=5, seed=seed).client(0))

    assert len(kept(1)) == 5
    assert kept(1) == kept(1)
    assert kept(1) != kept(2)
    dataset = opened(tmp_path, **NATURAL, max_records=5)
    assert len(texts(dataset.client(1))) == 3


def test_a_client_of_white_space_is_one_clear_error(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"who": "a", "note": "x"}, {"who": "b", "note": " \n"}]
    write(tmp_path, rows)
    with pytest.raises(NoUsableText, match="client='b' has 1 records"):
        opened(tmp_path, **NATURAL)
    write(tmp_path, [*rows, {"who": "a", "note": "y"}])
    assert names(opened(tmp_path, **NATURAL, min_records=2)) == ["a"]


def test_blank_records_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, [{"who": "a", "note": text} for text in ("x", " ", None, "y")])
    assert texts(opened(tmp_path, **NATURAL).client(0)) == {"x", "y"}
    dealt = opened(tmp_path, path="a.jsonl", text="note", partitioner="iid", population=2)
    assert [len(dealt.client(index).train) for index in range(2)] == [1, 1]


def test_min_records_counts_usable_records(tmp_path: Path) -> None:
    rows = [("a", "x"), ("a", " "), ("b", "y"), ("b", "z")]
    write(tmp_path, [{"who": who, "note": note} for who, note in rows])
    assert names(opened(tmp_path, **NATURAL, min_records=2)) == ["b"]


def test_files_without_text(tmp_path: Path) -> None:
    write(tmp_path, [])
    with pytest.raises(EmptyPopulation, match=r"a\.jsonl holds no records"):
        opened(tmp_path, **NATURAL)
    write(tmp_path, [{"who": "a", "note": " "}])
    with pytest.raises(NoUsableText, match="none of 1 records"):
        opened(tmp_path, path="a.jsonl", text="note", partitioner="iid", population=1)


def test_errors_of_the_file_come_through(tmp_path: Path) -> None:
    with pytest.raises(DataFileNotFound):
        opened(tmp_path, **NATURAL)
    write(tmp_path, [{"note": "x"}])
    with pytest.raises(MalformedRow, match="line 1: no column 'who'"):
        opened(tmp_path, **NATURAL)
    with pytest.raises(InvalidValue, match=r"data\.client"):
        opened(tmp_path, path="a.jsonl", text="note")


DEALT: list[dict[str, Any]] = [
    {"partitioner": "iid"},
    {"partitioner": "dirichlet", "label": "kind", "dirichlet_alpha": 0.5},
    {"partitioner": "shards", "label": "kind", "shards_per_client": 2},
    {"partitioner": "shards", "shards_per_client": 1},
]


@pytest.mark.parametrize("how", DEALT, ids=lambda how: str(how["partitioner"]))
def test_dealt_clients_hold_every_record_once(tmp_path: Path, how: dict[str, Any]) -> None:
    pytest.importorskip("flwr_datasets", reason="the sim extra is not installed")
    ward(tmp_path, {"a": 40, "b": 21})
    dataset = opened(tmp_path, path="a.jsonl", text="note", population=12, **how)
    assert names(dataset) == [f"client-{index:02d}" for index in range(12)]
    found = [text for index in range(12) for text in sorted(texts(dataset.client(index)))]
    assert len(found) == len(set(found)) == 61
    again = opened(tmp_path, path="a.jsonl", text="note", population=12, **how)
    assert [again.client(i) for i in range(12)] == [dataset.client(i) for i in range(12)]


@pytest.mark.parametrize(
    "how", [{"partitioner": "dirichlet"}, {"partitioner": "shards"}, {"partitioner": "iid"}],
    ids=str,
)  # fmt: skip
def test_partitioners_say_what_they_need(tmp_path: Path, how: dict[str, Any]) -> None:
    ward(tmp_path, {"a": 4})
    population = None if how["partitioner"] == "iid" else 2
    with pytest.raises(InvalidValue, match="needs"):
        opened(tmp_path, path="a.jsonl", text="note", population=population, **how)


def test_more_clients_than_records_says_both_numbers(tmp_path: Path) -> None:
    ward(tmp_path, {"a": 4})
    with pytest.raises(InvalidValue, match=r"population=5, but there are only 4 records"):
        opened(tmp_path, path="a.jsonl", text="note", partitioner="iid", population=5)


def test_absolute_paths_are_not_shown(tmp_path: Path) -> None:
    ward(tmp_path, {"a": 4})
    data: dict[str, Any] = {**NATURAL, "path": str(tmp_path / "a.jsonl")}
    assert opened(Path("elsewhere"), **data).describe()["source"] == "a.jsonl"


def test_a_datasets_folder_beside_the_scenario(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the sim extra is not installed")
    (tmp_path / "set").mkdir()
    ward(tmp_path / "set", {"a": 4, "b": 2})
    dataset = opened(tmp_path, path="hf:set", text="note", client="who")
    assert names(dataset) == ["a", "b"]
    assert dataset.describe()["source"] == "hf:set"


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason=f"needs the file {SHAKESPEARE}")
def test_shakespeare_by_role() -> None:
    data: dict[str, Any] = {"path": str(SHAKESPEARE), "text": "lines", "client": "client"}
    assert opened(**data).population == 298
    dataset = opened(**data, min_records=20)
    assert dataset.population == 98
    with SHAKESPEARE.open(encoding="utf-8") as stream:
        speeches = {row["client"]: row["lines"] for row in map(json.loads, stream)}
    gloucester = dataset.client(names(dataset).index("GLOUCESTER"))
    assert len(gloucester.train) + len(gloucester.holdout) == len(speeches["GLOUCESTER"])
    assert texts(gloucester) == set(speeches["GLOUCESTER"])


@pytest.mark.skipif(not MEDQUAD.is_file(), reason=f"needs the file {MEDQUAD}")
def test_medquad_by_institution() -> None:
    dataset = opened(path=str(MEDQUAD), prompt="question", response="answer", client="client")
    assert dataset.population == 9
    sizes = [len(d.train) + len(d.holdout) for d in map(dataset.client, range(9))]
    assert sum(sizes) == MEDQUAD.read_bytes().count(b"\n")
    assert max(sizes) == 300
    assert all(record.prompt and record.response for record in dataset.client(0).train)
