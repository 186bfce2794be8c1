"""A client's private records: what one is, how it is read from a file, and what is held out.

Errors name the file, the line and the column of whatever is wrong and never quote the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client.readers import (
    Row,
    csv_rows,
    dataset_name,
    datasets_rows,
    jsonl_rows,
    lines,
    parquet_rows,
    require_readable,
)
from shared.errors import InvalidValue, MalformedRow
from shared.registry import suggestion
from shared.seeding import data_rng

HUB_PREFIX = "hf:"
FORMATS = ("jsonl", "csv", "parquet", "text", "datasets")
_ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".text": "text",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One private record: the unit that example-level privacy protects.

    Its ``repr`` leaves the private fields out, so that it may end up in a traceback.

    Attributes:
        text: running text, or None for a prompt with its response.
        prompt: what the model is given.
        response: what the model should answer.
        client: name of the client it belongs to, if the data say so.
        label: class used by the Dirichlet and shard partitioners, if the data have one.
    """

    text: str | None = field(default=None, repr=False)
    prompt: str | None = field(default=None, repr=False)
    response: str | None = field(default=None, repr=False)
    client: str | None = None
    label: str | None = field(default=None, repr=False)

    @property
    def usable(self) -> bool:
        """Whether there is anything to learn: text, or a response, beyond white space."""
        wanted = self.text if self.response is None else self.response
        return bool(wanted and wanted.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what; ``text``, or ``prompt`` with ``response``."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    client: str | None = None
    label: str | None = None

    def named(self) -> list[str]:
        """Return the columns that are read, each once."""
        names = (self.text, self.prompt, self.response, self.client, self.label)
        return list(dict.fromkeys(name for name in names if name is not None))

    def require(self, kind: str) -> None:
        """Refuse columns that do not fit together or do not exist in a format.

        Raises:
            InvalidValue: if neither or both of text and prompt/response are named, or if plain
                text, which has no columns, is asked for one other than ``text``.
        """
        if kind == "text":
            extra = [name for name in self.named() if name != self.text]
            if extra:
                msg = f"column {extra[0]!r} was asked for, but plain text has no columns."
                raise InvalidValue(msg, hint="Use JSONL, CSV or Parquet for columns.")
            return
        given = (self.text is not None, self.prompt is not None, self.response is not None)
        if given not in ((True, False, False), (False, True, True)):
            msg = "data.text, data.prompt and data.response do not say what a record is."
            raise InvalidValue(msg, hint="Name the text column, or both prompt and response.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientData:
    """The records of one client.

    Attributes:
        name: the client's id, shown in errors.
        train: records that may be trained on, at least one.
        holdout: records that never are; no text of it is in ``train``.
    """

    name: str
    train: Sequence[Record]
    holdout: Sequence[Record]


def read_records(
    path: Path | str,
    *,
    format: str = "auto",  # noqa: A002
    columns: Columns,
    split: str | None = None,
) -> Iterator[Record]:
    """Read records from a file or a datasets-library id, in the order of the file.

    Formats: ``jsonl`` (an object a line), ``csv`` (first line names the columns, quoted fields
    may span lines), ``parquet``, ``text`` (**one record per line that is not blank**; a longer
    document belongs into JSONL), ``datasets`` (``"hf:<id>"`` or ``"hf:<local folder>"``). UTF-8
    with or without a byte order mark. A text column that holds a list of strings gives one record
    per element; a missing text (JSON null) is an empty one.

    Args:
        path: the file, or the id with its ``hf:``.
        format: one of the above, or ``auto`` to go by the ending.
        columns: which column holds what.
        split: split of a datasets-library id; may be left out if there is ``train`` or only one.

    Yields:
        Records; nothing is kept, so a file larger than memory can be read through.

    Raises:
        DataFileNotFound: if there is no such file, it is a folder, or it cannot be read.
        MalformedRow: for a row that cannot be parsed, a missing column, or a value of the wrong
            type; names file, line (for Parquet and datasets: row) and column.
        InvalidValue: for an unknown format or columns that do not fit together.
        MissingDependency: if Parquet or datasets are asked for and not installed.
    """
    kind = file_format(path, format)
    columns.require(kind)
    names = columns.named()
    if kind == "datasets":
        name = str(path).removeprefix(HUB_PREFIX)
        return _records(datasets_rows(name, names, split), columns, dataset_name(name))
    file = Path(path)
    require_readable(file)
    if kind == "text":
        return _text_records(file)
    reader = {"jsonl": jsonl_rows, "csv": csv_rows, "parquet": parquet_rows}[kind]
    return _records(reader(file, names), columns, file.name)


def file_format(path: Path | str, format: str = "auto") -> str:  # noqa: A002
    """Return the format of a data source, by its ending if ``format`` is ``"auto"``.

    Raises:
        InvalidValue: for an unknown format, or an ending that says nothing.
    """
    if str(path).startswith(HUB_PREFIX):
        return "datasets"
    kind = _ENDINGS.get(Path(path).suffix.lower(), "") if format == "auto" else format
    if kind not in FORMATS:
        found = f"data.format={format!r} for {Path(path).name!r}"
        msg = f"{found}, expected one of: {', '.join(FORMATS)}."
        raise InvalidValue(msg, hint=suggestion(format, FORMATS) or "Set data.format.")
    return kind


def split_holdout(
    records: Sequence[Record], *, holdout: float, seed: int, client: str
) -> tuple[list[Record], list[Record]]:
    """Split one client's records into what is trained on and what never is.

    Guarantee:
        Records with the same text (up to white space at the ends) are on the same side, so a
        held-out text is never trained on. The split depends on seed, client and records only.

    Args:
        records: all records of the client.
        holdout: share to hold out, in ``[0, 1)``.
        seed: the run's seed.
        client: the client's name.

    Returns:
        Training and held-out records, each in the order given. With two different texts and
        ``holdout > 0`` neither is empty; with one text everything is trained on.

    Raises:
        InvalidValue: if ``holdout`` is outside ``[0, 1)``.
    """
    if not 0 <= holdout < 1:
        msg = f"holdout={holdout!r}, expected a number in [0, 1)."
        raise InvalidValue(msg)
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(_identity(record), []).append(index)
    if holdout == 0 or len(groups) < 2:
        return list(records), []
    held = _choose_groups(list(groups.values()), holdout, seed=seed, client=client)
    train = [record for index, record in enumerate(records) if index not in held]
    return train, [record for index, record in enumerate(records) if index in held]


def _choose_groups(groups: list[list[int]], holdout: float, *, seed: int, client: str) -> set[int]:
    """Draw groups of equal texts until the share is reached, at least one and never all."""
    total = sum(len(group) for group in groups)
    wanted = min(round(holdout * total), total - 1)
    order = data_rng(seed, "holdout", client).permutation(len(groups))
    held: set[int] = set()
    for index in order:
        if len(held) + len(groups[index]) <= wanted:
            held.update(groups[index])
    if not held:
        held.update(groups[min(order, key=lambda index: len(groups[index]))])
    return held


def _identity(record: Record) -> tuple[str | None, ...]:
    """Return what makes two records the same text."""
    parts = (record.text, record.prompt, record.response)
    return tuple(part if part is None else part.strip() for part in parts)


def _records(rows: Iterable[Row], columns: Columns, source: str) -> Iterator[Record]:
    """Turn rows into records, one per element where the text column holds a list."""
    for place, row in rows:
        where = f"{source}, {place}"
        client, label = (
            None if column is None else _name(row[column], column, where)
            for column in (columns.client, columns.label)
        )
        if columns.prompt is not None and columns.response is not None:
            prompt = _text(row[columns.prompt], columns.prompt, where)
            response = _text(row[columns.response], columns.response, where)
            yield Record(prompt=prompt, response=response, client=client, label=label)
        elif columns.text is not None:
            for text in _texts(row[columns.text], columns.text, where):
                yield Record(text=text, client=client, label=label)


def _text_records(file: Path) -> Iterator[Record]:
    """Yield a record per line that is not blank."""
    for _, line in lines(file):
        if line.strip():
            yield Record(text=line.rstrip("\r\n"))


def _texts(value: object, column: str, where: str) -> list[str]:
    """Return the texts of one value: a string, or a list of strings."""
    if isinstance(value, list | tuple):
        return [_text(element, column, where) for element in value]
    return [_text(value, column, where)]


def _text(value: object, column: str, where: str) -> str:
    """Return a text that UTF-8 can write; a missing value is an empty text."""
    if value is None:
        return ""
    if not isinstance(value, str):
        found = type(value).__name__
        msg = f"{where}: column {column!r} holds {found}, expected a string."
        raise MalformedRow(msg)
    if not _encodable(value):
        msg = f"{where}: column {column!r} holds half a surrogate pair, expected Unicode text."
        raise MalformedRow(msg)
    return value


def _encodable(text: str) -> bool:
    """Tell whether UTF-8 can write a text: JSON may hold lone surrogates, tokenizers crash."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(value: object, column: str, where: str) -> str:
    """Return a client or label as a string."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = type(value).__name__
        msg = f"{where}: column {column!r} holds {found}, expected a name or a number."
        raise MalformedRow(msg)
    name = str(value).strip()
    if not (name and _encodable(name)):
        msg = f"{where}: column {column!r} is empty or not Unicode, expected a name."
        raise MalformedRow(msg)
    return name
