"""Rows of a data file, one reader per format, with errors that say where and never what.

A reader yields ``(place, row)``: ``"line 7"`` or ``"row 7"``, and the row by column name. An error
that was raised while private text was parsed is not kept as the cause of ours, because it would
carry the text along.
"""

from __future__ import annotations

import codecs
import csv
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from shared.errors import DataFileNotFound, InvalidValue, MalformedRow, MissingDependency
from shared.registry import suggestion

# The csv module refuses fields beyond 128 KiB by default; a long document is not an error.
_LONGEST_FIELD = 1 << 24
_NAMES_SHOWN = 12

Row = tuple[str, Mapping[str, Any]]


def missing_column(column: str, available: Iterable[str], where: str) -> MalformedRow:
    """Return the error for a column that is not there, with the ones that are."""
    names = [name[:40] for name in available]
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    msg = f"{where}: no column {column!r}, expected one of: {shown or '(none)'}."
    return MalformedRow(msg, hint=suggestion(column, names))


def require_readable(file: Path) -> None:
    """Refuse a missing file, a folder, and a file without permission."""
    if file.is_dir():
        msg = f"data.path {_shown(file)} is a folder, expected a file."
        raise DataFileNotFound(msg, hint='Name a file, or "hf:<folder>" for a datasets folder.')
    try:
        with file.open("rb"):
            return
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or type(error).__name__})"
    msg = f"data.path {_shown(file)} {reason}, expected a readable file."
    raise DataFileNotFound(msg, hint="Check data.path; relative paths start at the scenario.")


def _shown(file: Path) -> str:
    """Return a path for an error message, without the name of a home folder."""
    home = Path.home()
    return f"'~/{file.relative_to(home)}'" if file.is_relative_to(home) else f"'{file}'"


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """Yield numbered lines with their ends, decoded one by one so that errors have a line."""
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            data = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            text = data.decode("utf-8", errors="replace")
            if "\ufffd" in text and text.encode() != data:
                msg = f"{file.name}, line {number}: bytes that are not UTF-8, expected UTF-8 text."
                raise MalformedRow(msg, hint="Convert it, e.g. with iconv -t UTF-8.")
            yield number, text


def jsonl_rows(file: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yield the objects of a JSONL file, each with all the named keys."""
    for number, line in lines(file):
        if not line.strip():
            continue
        place = f"line {number}"
        row, reason = _parse_json(line)
        if not isinstance(row, dict):
            found = reason or f"found {type(row).__name__}"
            msg = f"{file.name}, {place}: {found}, expected one JSON object per line."
            raise MalformedRow(msg)
        _require_columns(names, row, f"{file.name}, {place}")
        yield place, row


def _require_columns(names: Sequence[str], available: Iterable[str], where: str) -> None:
    """Require every named column."""
    known = list(available)
    for name in names:
        if name not in known:
            raise missing_column(name, known, where)


def _parse_json(line: str) -> tuple[object, str]:
    """Return a JSON value, or None and what is wrong, without the exception that holds the text."""
    try:
        return json.loads(line), ""
    except json.JSONDecodeError as error:
        return None, f"not JSON at character {error.colno} ({error.msg})"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON ({type(error).__name__})"


def csv_rows(file: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a CSV file by the names of its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    reader = csv.reader((line for _, line in lines(file)), strict=True)
    header: list[str] | None = None
    while True:
        place = f"line {reader.line_num + 1}"
        fields, reason = _next_fields(reader)
        if reason:
            msg = f"{file.name}, {place}: {reason}, expected comma-separated values."
            raise MalformedRow(msg, hint='Quote a field with commas or line ends: "…".')
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = fields
            _check_header(header, names, f"{file.name}, {place}")
        elif len(fields) != len(header):
            msg = f"{file.name}, {place}: found {len(fields)} fields, expected {len(header)}."
            raise MalformedRow(msg, hint='Quote a field with commas or line ends: "…".')
        else:
            yield place, dict(zip(header, fields, strict=True))


def _next_fields(reader: Iterator[list[str]]) -> tuple[list[str] | None, str]:
    """Return the next fields, None at the end, or None and what is wrong."""
    try:
        return next(reader, None), ""
    except csv.Error as error:
        return None, str(error)


def _check_header(header: list[str], names: Sequence[str], where: str) -> None:
    """Require every named column exactly once."""
    _require_columns(names, header, where)
    for name in names:
        if header.count(name) > 1:
            msg = f"{where}: column {name!r} is there {header.count(name)} times, expected once."
            raise MalformedRow(msg)


def parquet_rows(file: Path, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a Parquet file, reading only the named columns."""
    arrow, parquet = _extra("pyarrow"), _extra("pyarrow.parquet")
    number, reason = 0, ""
    try:
        with parquet.ParquetFile(file) as table:
            _require_columns(names, table.schema_arrow.names, f"{file.name}, schema")
            for batch in table.iter_batches(batch_size=1024, columns=list(names)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = type(error).__name__
    if reason:
        msg = f"{file.name}, row {number + 1}: {reason}, expected a Parquet file."
        raise MalformedRow(msg)


def datasets_rows(name: str, names: Sequence[str], split: str | None) -> Iterator[Row]:
    """Yield the rows of a datasets-library id or local folder.

    A local folder is streamed: the library would otherwise leave a copy of the private text in
    its cache. A hub id is public and is cached, so that it can be used again without a network.
    """
    rows = iter(_load_dataset(name, split))
    source, number = dataset_name(name), 0
    while True:
        row, reason = _next_row(rows)
        number += 1
        where = f"{source}, row {number}"
        if reason:
            msg = f"{where}: {reason}, expected a row that the datasets library can read."
            raise MalformedRow(msg)
        if row is None:
            return
        _require_columns(names, row, where)
        yield f"row {number}", row


def dataset_name(name: str) -> str:
    """Return a hub id, or the last part of a folder, so that no home folder is shown."""
    return Path(name).name if Path(name).is_absolute() else name


def _next_row(rows: Iterator[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str]:
    """Return the next row, None at the end, or None and what is wrong."""
    try:
        return next(rows, None), ""
    except _datasets_errors() as error:
        return None, type(error).__name__


def _load_dataset(name: str, split: str | None) -> Iterable[Mapping[str, Any]]:
    """Open one split, without progress bars and telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    datasets = _extra("datasets")
    found, reason = None, ""
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(name, split=split, streaming=Path(name).is_dir())
    except _datasets_errors() as error:
        reason = type(error).__name__
    finally:
        if bars:
            datasets.enable_progress_bars()
    if found is None:
        msg = f"dataset {dataset_name(name)!r} split={split!r} cannot be loaded ({reason})."
        raise DataFileNotFound(msg, hint="Check the id and the split, and that it is reachable.")
    rows: Iterable[Mapping[str, Any]] = found if split is not None else _only_split(found, name)
    return rows


def _datasets_errors() -> tuple[type[Exception], ...]:
    """Return what the datasets library raises for an id, a split or a file it cannot use."""
    errors: type[Exception] = _extra("datasets.exceptions").DatasetsError
    return errors, OSError, ValueError, TypeError, RuntimeError, ImportError


def _only_split(
    splits: Mapping[str, Iterable[Mapping[str, Any]]], name: str
) -> Iterable[Mapping[str, Any]]:
    """Return the split ``train``, or the only one."""
    if "train" in splits:
        return splits["train"]
    if len(splits) == 1:
        return next(iter(splits.values()))
    found = ", ".join(sorted(splits))
    msg = f"dataset {dataset_name(name)!r} has splits {found}, expected data.split to name one."
    raise InvalidValue(msg)


def _extra(module: str) -> ModuleType:
    """Import a module of the ``sim`` extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        msg = f"{module.split('.')[0]} is not installed, but this data format needs it."
        raise MissingDependency(msg, hint="Run: pip install 'fedslm[sim]'") from error
