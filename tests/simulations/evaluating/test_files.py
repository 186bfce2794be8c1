"""Questions from files, made here as their publishers write them, and what is refused."""

from __future__ import annotations

import gzip
import json
import zipfile
from functools import partial
from pathlib import Path

import pytest

from shared.errors import DataFileNotFound, FedSLMError, MalformedRow, NoUsableText
from simulations.evaluating.files import blimp, crows_pairs, olmo_task, task_of_file
from simulations.evaluating.questions import chosen, clinic_endings, word_order

SECRET = "zanzibar"
DATA = Path("../shared/data/eval")


def crows(folder: Path, *rows: str) -> None:
    (folder / "crows_pairs").mkdir()
    head = ",sent_more,sent_less,stereo_antistereo,bias_type"
    text = "\n".join([head, *rows]) + "\n"
    (folder / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(text, encoding="utf-8")


def olmo(folder: Path, *rows: object) -> None:
    (folder / "olmo_rc").mkdir()
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "olmo_rc" / "copa.requests.jsonl.gz").write_bytes(gzip.compress(lines.encode()))


def request(doc: int, idx: int, choice: str, context: str = "So") -> dict[str, object]:
    asked = {"context": context, "continuation": choice}
    return {"doc_id": doc, "idx": idx, "label": 1, "request": asked}


def test_crows_pairs_ask_for_the_first_sentence_whatever_the_direction(tmp_path: Path) -> None:
    crows(tmp_path, '0,"a, b",c,stereo,age', "1,d,e,antistereo,gender")
    task = crows_pairs(tmp_path)
    assert [q.choices for q in task.questions] == [("a, b", "c"), ("d", "e")]
    assert {q.gold for q in task.questions} == {0}
    assert [q.group for q in task.questions] == ["age", "gender"]
    assert task.neutral == 0.5


def test_blimp_reads_every_law_and_nothing_of_the_finder(tmp_path: Path) -> None:
    (tmp_path / "blimp").mkdir()
    row = {"sentence_good": "g", "sentence_bad": "b", "linguistics_term": "binding"}
    with zipfile.ZipFile(tmp_path / "blimp" / "BLiMP.zip", "w") as archive:
        archive.writestr("data/one.jsonl", json.dumps(row) + "\n")
        archive.writestr("__MACOSX/data/._one.jsonl", b"\x00\x01")
    (question,) = blimp(tmp_path).questions
    assert (question.choices, question.gold, question.group) == (("g", "b"), 0, "binding")


def test_olmo_requests_become_questions_and_unconditional_ones_go(tmp_path: Path) -> None:
    olmo(
        tmp_path,
        request(0, 1, " y"),
        request(0, 0, " x"),
        request(1_000_000, 0, " x", "Answer:"),
    )
    (question,) = olmo_task(tmp_path, "copa").questions
    assert (question.context, question.choices, question.gold) == ("So", (" x", " y"), 1)


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    rows = [{"choices": [" a", " b"], "gold": 1, "context": "c", "group": "g"}]
    path.write_text(json.dumps({"name": "mine", "questions": rows}), encoding="utf-8")
    task = task_of_file(path)
    assert (task.name, task.questions[0].gold, task.questions[0].group) == ("mine", 1, "g")


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        json.dumps([SECRET]),
        json.dumps({"name": f"../{SECRET}", "questions": []}),
        json.dumps({"name": "a", "questions": SECRET}),
        json.dumps({"name": "a", "questions": [], "normalised": "yes"}),
        json.dumps({"name": "a", "questions": [], "more": SECRET}),
        json.dumps({"name": "a", "questions": []}),
        *(
            json.dumps({"name": "a", "questions": [row]})
            for row in (
                SECRET,
                {"choices": [SECRET], "gold": 0},
                {"choices": [SECRET, " "], "gold": 0},
                {"choices": [SECRET, SECRET], "gold": 2},
                {"choices": [SECRET, SECRET], "gold": True},
                {"choices": [SECRET, SECRET], "gold": 0, "hint": SECRET},
            )
        ),
    ],
)
def test_a_task_file_that_says_something_else_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(value, encoding="utf-8")
    with pytest.raises((MalformedRow, NoUsableText)) as caught:
        task_of_file(path)
    assert SECRET not in str(caught.value)


def test_damage_is_named_by_its_row_and_never_quoted(tmp_path: Path) -> None:
    crows(tmp_path, "0,a,b,stereo,age", f"1,{SECRET},,stereo,age")
    olmo(tmp_path, request(0, 0, f" {SECRET}"), f"{SECRET}")
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "BLiMP.zip").write_bytes(b"PK" + SECRET.encode())
    for read, where in (
        (crows_pairs, "row 2"),
        (partial(olmo_task, name="copa"), "row 2"),
        (blimp, "damaged"),
    ):
        with pytest.raises(MalformedRow, match=where) as caught:
            read(tmp_path)
        assert SECRET not in str(caught.value)


def test_a_missing_file_is_named_with_where_it_is_published(tmp_path: Path) -> None:
    for read in (crows_pairs, blimp, partial(olmo_task, name="piqa")):
        with pytest.raises(DataFileNotFound, match=r"https://github\.com/") as caught:
            read(tmp_path)
        assert isinstance(caught.value, FedSLMError)


def test_built_in_questions_are_the_same_everywhere_and_have_one_answer() -> None:
    for make in (word_order, clinic_endings):
        task = make(3)
        assert task.digest == make(3).digest != make(4).digest
        assert len(task.questions) == 400
        assert all(len(set(q.choices)) == 2 for q in task.questions)
        assert 150 < sum(q.gold for q in task.questions) < 250
    for question in word_order(3).questions:
        assert sorted(question.choices[0].split()) == sorted(question.choices[1].split())


def test_a_limit_draws_the_same_questions_again() -> None:
    task = word_order(0)
    first = chosen(task, limit=7, seed=1)
    assert first == chosen(task, limit=7, seed=1) != chosen(task, limit=7, seed=2)
    assert len(first) == 7
    assert chosen(task, limit=1000, seed=1) == task.questions


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/eval beside the repository")
def test_the_published_files_are_read_whole() -> None:
    task = crows_pairs(DATA)
    assert len(task.questions) == 1508
    assert len({question.group for question in task.questions}) == 9
    assert [len(olmo_task(DATA, name).questions) for name in ("copa", "piqa")] == [100, 1838]
