"""Reading records of every format, its errors, and the held-out split."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.data import Columns, Record, file_format, read_records, split_holdout
from shared.errors import DataFileNotFound, FedSLMError, InvalidValue, MalformedRow

SECRET = "zebra-4711"
TEXT = Columns(text="note")
FULL = Columns(text="note", client="who", label="kind")
PAIR = Columns(prompt="q", response="a")


def texts(path: Path, columns: Columns = TEXT, format: str = "auto") -> list[str | None]:  # noqa: A002
    return [record.text for record in read_records(path, format=format, columns=columns)]


def refused(path: Path, columns: Columns = TEXT, format: str = "auto") -> MalformedRow:  # noqa: A002
    """Return the error of a malformed file after checking that the secret is nowhere in it."""
    with pytest.raises(MalformedRow) as caught:
        list(read_records(path, format=format, columns=columns))
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert SECRET not in str(caught.value.to_dict())
    cause: BaseException | None = caught.value
    while cause is not None:
        assert SECRET not in repr(vars(cause)), "the text travels along with the exception"
        assert SECRET not in repr(getattr(cause, "doc", ""))
        cause = cause.__cause__ or cause.__context__
    assert path.name in caught.value.message
    assert str(path.parent) not in str(caught.value)
    return caught.value


def write_parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pa = pytest.importorskip("pyarrow", reason="the sim extra is not installed")
    importlib.import_module("pyarrow.parquet").write_table(pa.table(columns), path)
    return path


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_jsonl_reads_text_client_and_label(tmp_path: Path) -> None:
    rows: list[object] = [
        {"note": "erste", "who": "b", "kind": 3, "more": None},
        {"note": "zweite", "who": 7, "kind": "x"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert list(read_records(path, columns=FULL)) == [
        Record(text="erste", client="b", label="3"),
        Record(text="zweite", client="7", label="x"),
    ]


def test_jsonl_skips_blank_lines_and_takes_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"note": "a"}\r\n\n  \n{"note": "\xc3\xa9\xef\xbf\xbd"}')
    assert texts(path) == ["a", "é\ufffd"]


def test_a_list_gives_one_record_per_element_and_null_is_empty(tmp_path: Path) -> None:
    rows: list[object] = [{"note": ["a", "b", None]}, {"note": None}, {"note": []}]
    assert texts(write_jsonl(tmp_path / "a.jsonl", rows)) == ["a", "b", "", ""]


def test_pairs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.json", [{"q": "why", "a": "so"}, {"q": "who", "a": None}])
    assert list(read_records(path, columns=PAIR)) == [
        Record(prompt="why", response="so"),
        Record(prompt="who", response=""),
    ]


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1), max_size=6)
)
def test_csv_reads_back_what_the_csv_module_wrote(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(["id", "note"])
        writer.writerows([[index, value] for index, value in enumerate(values)])
    assert texts(path) == values


def test_csv_quoted_line_ends_byte_order_mark_and_long_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    path.write_bytes(f'\ufeffnote,n\r\n"a\nb, ""c""",1\r\n\r\n{long},2\r\n'.encode())
    assert texts(path) == ['a\nb, "c"', long]


def test_text_is_one_record_per_line_that_is_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\n  \n two \nthree")
    assert texts(path, Columns()) == ["one", " two ", "three"]


def test_parquet_reads_strings_lists_and_numbers(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "a.parquet", {"note": [["a", "b"], ["c"]], "who": [1, 2], "kind": ["x", "y"]}
    )
    assert list(read_records(path, columns=FULL)) == [
        Record(text="a", client="1", label="x"),
        Record(text="b", client="1", label="x"),
        Record(text="c", client="2", label="y"),
    ]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keep the datasets library off the network and its cache in a folder of the test."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache = tmp_path / "cache"
    datasets = pytest.importorskip("datasets", reason="the sim extra is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    return cache


def test_datasets_reads_a_local_folder_and_leaves_no_copy_in_the_cache(
    offline: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"note": SECRET, "who": 1}, {"note": "b", "who": 2}])
    write_jsonl(folder / "test.jsonl", [{"note": "c", "who": 2}])
    columns = Columns(text="note", client="who")
    train = [Record(text=SECRET, client="1"), Record(text="b", client="2")]
    assert list(read_records(f"hf:{folder}", columns=columns)) == train
    held = list(read_records(f"hf:{folder}", columns=columns, split="test"))
    assert held == [Record(text="c", client="2")]
    assert capfd.readouterr().err == "", "no progress bars"
    copies = [path for path in offline.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in copies)


def test_datasets_refuses_an_unknown_id_split_and_column(offline: Path, tmp_path: Path) -> None:
    del offline
    with pytest.raises(DataFileNotFound, match="nobody/nothing-4711"):
        list(read_records("hf:nobody/nothing-4711", columns=TEXT))
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"notes": SECRET}])
    with pytest.raises(DataFileNotFound, match="split='valid'") as caught:
        list(read_records(f"hf:{folder}", columns=TEXT, split="valid"))
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MalformedRow, match=r"set, row 1: no column 'note'.*notes") as missing:
        list(read_records(f"hf:{folder}", columns=TEXT))
    assert SECRET not in str(missing.value)


def test_datasets_with_several_splits_asks_which(offline: Path, tmp_path: Path) -> None:
    del offline
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "test.jsonl", [{"note": "a"}])
    assert texts(Path(f"hf:{folder}")) == ["a"], "the only split needs no name"
    write_jsonl(folder / "validation.jsonl", [{"note": "a"}])
    with pytest.raises(InvalidValue, match=r"test, validation, expected data.split"):
        list(read_records(f"hf:{folder}", columns=TEXT))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f'{{"note": "{SECRET}"', "line 2: not JSON at character"),
        (f'["{SECRET}"]', "line 2: found list, expected one JSON object per line"),
        (f'"{SECRET}"', "line 2: found str"),
        (f'{{"note": {{"deep": "{SECRET}"}}}}', "line 2: column 'note' holds dict"),
        (f'{{"note": ["{SECRET}", 3]}}', "line 2: column 'note' holds int"),
        (f'{{"note": "{SECRET} \\ud800"}}', "half a surrogate pair"),
        (f'{{"notes": "{SECRET}"}}', "line 2: no column 'note', expected one of: notes"),
        ('{"note": ' + "[" * 100_000, "line 2: not JSON"),
        ('{"note": ' + "1" * 5000 + "}", "line 2: "),
    ],
)
def test_malformed_jsonl(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"note": "fine"}}\n{line}\n', encoding="utf-8")
    assert expected in refused(path).message


def test_a_missing_column_suggests_the_nearest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"notes": SECRET, "other": 1}])
    assert refused(path).hint == "Did you mean 'notes'?"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt"])
def test_bytes_that_are_not_utf8_name_the_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"note\n" if ending == "csv" else b'{"note": "a"}\n')
    with path.open("ab") as stream:
        stream.write(b'{"note": "' + SECRET.encode() + b'\xff"}\n')
    columns = Columns() if ending == "txt" else TEXT
    assert "line 2: bytes that are not UTF-8" in refused(path, columns).message


@pytest.mark.parametrize("value", ["null", "[]", "true", '""', '"  "', '"\\ud800"'])
def test_a_client_needs_a_name(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"note": "{SECRET}", "who": {value}, "kind": 1}}\n', encoding="utf-8")
    assert "line 1: column 'who'" in refused(path, FULL).message


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"note,n\n{SECRET}\n", "line 2: found 1 fields, expected 2"),
        (f"note,n\nfine,1\n\n{SECRET},1,2\n", "line 4: found 3 fields, expected 2"),
        (f'note,n\n"a\nb",1\n"{SECRET},2\nx,3\n', "line 4: unexpected end of data"),
        (f'note,n\n"{SECRET}"x,2\n', "line 2: ',' expected after"),
        (f"notes,n\n{SECRET},1\n", "line 1: no column 'note', expected one of: notes, n"),
        (f"note,note\n{SECRET},1\n", "line 1: column 'note' is there 2 times"),
    ],
)
def test_malformed_csv(tmp_path: Path, body: str, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(body, encoding="utf-8")
    assert expected in refused(path).message


def test_malformed_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"notes": [SECRET]})
    assert "no column 'note', expected one of: notes" in refused(path).message
    path = write_parquet(tmp_path / "b.parquet", {"note": [1]})
    assert "row 1: column 'note' holds int" in refused(path).message
    path = tmp_path / "c.parquet"
    path.write_text(SECRET, encoding="utf-8")
    assert "expected a Parquet file" in refused(path).message
    whole = write_parquet(tmp_path / "d.parquet", {"note": [SECRET * 1000]})
    whole.write_bytes(whole.read_bytes()[:40] + b"\0" * 40 + whole.read_bytes()[80:])
    assert "expected a Parquet file" in refused(whole).message


def test_missing_files_folders_and_permissions(tmp_path: Path) -> None:
    with pytest.raises(DataFileNotFound, match="does not exist"):
        read_records(tmp_path / "no.jsonl", columns=TEXT)
    folder = tmp_path / "a.jsonl"
    folder.mkdir()
    with pytest.raises(DataFileNotFound, match="is a folder"):
        read_records(folder, columns=TEXT)
    with pytest.raises(DataFileNotFound, match="cannot be read"):
        read_records(write_jsonl(tmp_path / "b.jsonl", []) / "c.jsonl", columns=TEXT)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [])
    path.chmod(0)
    with pytest.raises(DataFileNotFound, match="Permission denied"):
        read_records(path, columns=TEXT)


def test_no_error_shows_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataFileNotFound, match=r"'~/sub/no\.jsonl'") as caught:
        read_records(tmp_path / "sub" / "no.jsonl", columns=TEXT)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.JSONL", "jsonl"), ("a.csv", "csv"), ("a.pq", "parquet"), ("a.txt", "text"),
     ("hf:a/b", "datasets")],
)  # fmt: skip
def test_auto_goes_by_the_ending(name: str, expected: str) -> None:
    assert file_format(name) == expected
    assert file_format("a.bin", "csv") == "csv"


@pytest.mark.parametrize(("name", "kind"), [("a.bin", "auto"), ("a", "auto"), ("a.csv", "cvs")])
def test_unknown_formats(name: str, kind: str) -> None:
    with pytest.raises(InvalidValue, match="expected one of: jsonl, csv"):
        file_format(name, kind)


@pytest.mark.parametrize(
    "columns",
    [Columns(), Columns(prompt="q"), Columns(response="a"),
     Columns(text="t", prompt="q", response="a")],
)  # fmt: skip
def test_columns_that_say_nothing(columns: Columns) -> None:
    with pytest.raises(InvalidValue, match="do not say what a record is"):
        columns.require("jsonl")


def test_plain_text_has_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\n", encoding="utf-8")
    with pytest.raises(InvalidValue, match="'who'"):
        read_records(path, columns=Columns(client="who"))


def test_missing_libraries_give_the_install_line(tmp_path: Path) -> None:
    """In a process where pyarrow and datasets cannot be imported."""
    (tmp_path / "a.parquet").touch()
    program = (
        "import sys; sys.modules['pyarrow'] = sys.modules['datasets'] = None\n"
        "from client.data import Columns, read_records\n"
        "from shared.errors import MissingDependency\n"
        "for path in sys.argv[1:]:\n"
        "    try: list(read_records(path, columns=Columns(text='t')))\n"
        "    except MissingDependency as error: print(error.hint)\n"
        "print('torch' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.parquet"), "hf:a/b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = "Run: pip install 'fedslm[sim]'"
    assert done.stdout.splitlines() == [line, line, "False"]


def test_records_do_not_show_their_content() -> None:
    record = Record(text=SECRET, prompt=SECRET, response=SECRET, label=SECRET, client="c")
    assert repr(record) == "Record(client='c')"


def make(texts_: list[str]) -> list[Record]:
    return [Record(text=text) for text in texts_]


@given(
    st.lists(st.sampled_from(["a", "b ", "b", "c", "d", "e", "f"]), min_size=1, max_size=30),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**40),
)
def test_holdout_is_a_disjoint_cover(values: list[str], share: float, seed: int) -> None:
    records = make(values)
    train, held = split_holdout(records, holdout=share, seed=seed, client="c")
    position = {id(record): index for index, record in enumerate(records)}
    taken = [position[id(record)] for record in (*train, *held)]
    assert sorted(taken) == list(range(len(records)))
    assert taken[: len(train)] == sorted(taken[: len(train)])
    assert train, "somebody has to be trained on"
    assert not {str(r.text).strip() for r in train} & {str(r.text).strip() for r in held}
    distinct = len({value.strip() for value in values})
    assert bool(held) == (share > 0 and distinct >= 2)


def test_holdout_share_is_exact_for_different_texts() -> None:
    records = make([str(index) for index in range(50)])
    train, held = split_holdout(records, holdout=0.2, seed=1, client="c")
    assert (len(train), len(held)) == (40, 10)


def test_holdout_depends_on_seed_and_client_only() -> None:
    records = make([str(index) for index in range(50)])

    def held(seed: int, client: str) -> list[Record]:
        return split_holdout(records, holdout=0.2, seed=seed, client=client)[1]

    assert held(1, "c") == held(1, "c")
    assert held(1, "c") != held(2, "c")
    assert held(1, "c") != held(1, "d")


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_holdout_refuses_what_is_no_share(share: float) -> None:
    with pytest.raises(InvalidValue, match="holdout="):
        split_holdout(make(["a"]), holdout=share, seed=0, client="c")


@pytest.mark.parametrize(
    ("record", "usable"),
    [
        (Record(text="a"), True),
        (Record(text=" \n"), False),
        (Record(text=None), False),
        (Record(prompt="", response="a"), True),
        (Record(prompt="a", response=" "), False),
    ],
)
def test_usable(record: Record, usable: bool) -> None:
    assert record.usable is usable


def test_errors_are_raised_before_the_first_record_is_asked_for(tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: read_records(tmp_path / "no.csv", columns=TEXT),
        lambda: read_records(tmp_path / "no.csv", columns=Columns()),
        lambda: read_records(tmp_path / "no.bin", columns=TEXT),
    ]
    for call in calls:
        with pytest.raises(FedSLMError):
            call()
