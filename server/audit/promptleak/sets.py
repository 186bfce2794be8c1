"""Attacks and system prompts from the user's own files: JSON, JSON Lines or plain text.

What is read stays where it is: nothing is copied, and an error names a file and a row, never what
stands there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from server.audit.promptleak.attacks import ROOM, Attack
from server.audit.promptleak.prompts import SystemPrompt
from shared.errors import DataFileNotFound, MalformedRow, NoUsableText

MAX_BYTES = 32 * 1024 * 1024
MAX_ROWS = 10_000
GIVEN = "given"
"""Family of an attack that was given without one."""

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_PROMPT_KEYS = ("prompt", "system_prompt", "system", "instruction", "text")
_ATTACK_KEYS = ("attack", "prompt", "text", "instruction", "query", "content")
_LIST_KEYS = ("attacks", "prompts", "data", "items", "examples")


def load_prompts(path: Path) -> tuple[SystemPrompt, ...]:
    """Read system prompts.

    ``.jsonl`` holds one string or object per line, ``.json`` a list of them, anything else is text:
    paragraphs between blank lines, or one prompt per line without blank lines. An object has its
    prompt under ``prompt``, ``system_prompt``, ``system``, ``instruction`` or ``text``, and may
    have a ``secret`` that is part of it. Repeated prompts count once.

    Raises:
        DataFileNotFound: if the file cannot be read, or is larger than :data:`MAX_BYTES`.
        MalformedRow: if a row is neither; names file and row.
        NoUsableText: if nothing is there.
    """
    found: dict[str, SystemPrompt] = {}
    for row, value in _rows(path):
        text, secret = value, ""
        if isinstance(value, Mapping):
            text = next((value[key] for key in _PROMPT_KEYS if key in value), None)
            secret = value.get("secret") or ""
        if not (isinstance(text, str) and isinstance(secret, str) and secret in text):
            _refuse(path, row, f"a text, or an object with one under {', '.join(_PROMPT_KEYS)}")
        if text.strip():
            found.setdefault(" ".join(text.split()), SystemPrompt(text=text, secret=secret))
    return tuple(found.values()) or _nothing(path, "system prompts")


def load_attacks(path: Path) -> tuple[Attack, ...]:
    """Read extraction attacks, with ids of the form ``given-12``.

    A row is a string, a list of strings (turns), or an object with ``turns``, or with the text
    under ``attack``, ``prompt``, ``text``, ``instruction``, ``query`` or ``content``; an object may
    have a ``family`` (or ``category``) and a ``decoder``. A JSON object of lists maps families to
    attacks. Families that are not short lower-case names are called ``given``, so that no wording
    reaches a report.

    Raises:
        DataFileNotFound: if the file cannot be read, or is larger than :data:`MAX_BYTES`.
        MalformedRow: if a row is none of these; names file and row.
        NoUsableText: if nothing is there.
    """
    found: dict[tuple[str, ...], Attack] = {}
    for row, value in _rows(path):
        turns, family, decoder = _attack(path, row, value)
        turns = tuple(turn for turn in turns if turn.strip())
        if turns and turns not in found:
            name = f"given-{len(found) + 1}"
            found[turns] = Attack(id=name, family=family, turns=turns, decoder=decoder)
    return tuple(found.values()) or _nothing(path, "attacks")


def _attack(path: Path, row: int, value: object) -> tuple[tuple[str, ...], str, str]:
    """Return turns, family and decoder of one row."""
    family, decoder, turns = GIVEN, "", value
    if isinstance(value, Mapping):
        stated = str(value.get("family") or value.get("category") or GIVEN).lower()
        stated = stated.replace("_", "-").replace(" ", "-")
        family = stated if _SLUG.fullmatch(stated) else GIVEN
        decoder = str(value.get("decoder") or "")
        decoder = decoder if decoder in ROOM else ""
        turns = next((value[key] for key in ("turns", *_ATTACK_KEYS) if key in value), None)
    if isinstance(turns, str):
        return (turns,), family, decoder
    if isinstance(turns, Sequence) and turns and all(isinstance(turn, str) for turn in turns):
        return tuple(turns), family, decoder
    _refuse(path, row, "a text, a list of turns, or an object with one of these")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file, numbered from 1."""
    content = _read(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = _json_lines(path, content)
    elif suffix == ".json":
        rows = enumerate(_listed(path, _parsed(path, 1, content)), start=1)
    else:
        gaps = re.search(r"\S[ \t]*\n[ \t]*\n\s*\S", content)
        blocks = re.split(r"\n[ \t]*\n", content) if gaps else content.splitlines()
        rows = enumerate((block.strip() for block in blocks if block.strip()), start=1)
    for count, (row, value) in enumerate(rows):
        if count >= MAX_ROWS:
            msg = f"{path.name!r} has more than {MAX_ROWS} rows."
            raise DataFileNotFound(msg, hint="Give a smaller file.")
        yield row, value


def _json_lines(path: Path, content: str) -> Iterator[tuple[int, Any]]:
    """Yield the parsed lines that are not blank."""
    for row, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield row, _parsed(path, row, line)


def _listed(path: Path, data: object) -> list[Any]:
    """Return the entries of a JSON file: a list, an object with a list, or lists by family."""
    if isinstance(data, Mapping):
        for key in _LIST_KEYS:
            if isinstance(data.get(key), list):
                return list(data[key])
        return [entry for family, value in data.items() for entry in _of_family(family, value)]
    if isinstance(data, list):
        return list(data)
    _refuse(path, 1, "a JSON list or object")


def _of_family(family: str, value: object) -> list[Any]:
    """Return one family's entries, each with its family."""
    entries = value if isinstance(value, list) else [value]
    return [
        {"family": family, **entry}
        if isinstance(entry, Mapping)
        else {"family": family, "turns": entry}
        for entry in entries
    ]


def _read(path: Path) -> str:
    """Return a file's text."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            msg = f"{path.name!r} has {size} bytes, expected at most {MAX_BYTES}."
            raise DataFileNotFound(msg, hint="Give a smaller file.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        # Not kept as a cause: its text shows bytes of the file.
        reason = "it is not UTF-8"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    msg = f"{path.name!r} cannot be read: {reason}."
    raise DataFileNotFound(msg)


def _parsed(path: Path, row: int, text: str) -> Any:  # noqa: ANN401
    """Return parsed JSON; a parser's message is not kept, since it may quote the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    _refuse(path, row, "valid JSON")


def _refuse(path: Path, row: int, expected: str) -> NoReturn:
    """Raise the error for one row, without showing it."""
    msg = f"{path.name!r}, row {row}, cannot be used, expected {expected}."
    raise MalformedRow(msg)


def _nothing(path: Path, what: str) -> NoReturn:
    """Raise the error for a file without anything usable."""
    msg = f"{path.name!r} holds no {what}."
    raise NoUsableText(msg)
