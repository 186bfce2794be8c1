"""``fedslm client redact``: take personal data out of a query, and put it back into the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.redaction import Restored

MapOption = Annotated[
    Path | None,
    typer.Option("--map", help="Where to keep what stands for what; goes on if it exists."),
]
RestoreOption = Annotated[
    Path | None,
    typer.Option("--restore", metavar="MAP", help="Put back what MAP knows: stdin is an answer."),
]
KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", help="Take out this kind only; repeatable. All kinds without it."),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--spacy-model", help="Ask an installed spaCy model too; none is downloaded."),
]


def redact(
    map_path: MapOption = None,
    restore: RestoreOption = None,
    kinds: KindOption = None,
    spacy_model: ModelOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Take personal data out of the query on stdin, on this device; --restore undoes it.

    What is not found stays in the query: docs/audits says how much that is.
    """
    from shared.errors import UsageError

    if restore is not None and (map_path or kinds or spacy_model):
        msg = "--restore goes with none of --map, --kind and --spacy-model."
        raise UsageError(msg, hint="fedslm client redact --restore MAP < answer.txt")
    query = _stdin()
    if restore is not None:
        _restore(query, restore, as_json=as_json)
    else:
        _redact(query, map_path, kinds or [], spacy_model, as_json=as_json)


def _stdin() -> str:
    """Return what stands on stdin, its line ends as they are."""
    from shared.errors import UsageError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        msg = "stdin is not UTF-8 text."
        raise UsageError(msg, hint="Convert it first: iconv -t utf-8") from error


def _redact(
    query: str, map_path: Path | None, kinds: list[str], spacy_model: str | None, *, as_json: bool
) -> None:
    """Redact a query; the map is written before anything is printed."""
    from client.redaction import Session, default_redactor, read_map, write_map

    known = map_path is not None and map_path.exists()
    session = read_map(map_path) if map_path is not None and known else Session()
    redactor = default_redactor(kinds=frozenset(kinds) if kinds else None, spacy_model=spacy_model)
    found = redactor.redact(query, session)
    if map_path is not None:
        write_map(map_path, session)
    if as_json:
        _print_json({"text": found.text, "found": found.counts()})
        return
    typer.echo(found.text, nl=False)
    what = ", ".join(f"{kind} {count}" for kind, count in found.counts().items())
    typer.echo(f"Taken out: {what or 'nothing'}.", err=True)
    if map_path is None and found.spans:
        typer.echo("Without --map nothing of it can be put back.", err=True)


def _restore(answer: str, map_path: Path, *, as_json: bool) -> None:
    """Restore an answer, and say which placeholders it lost or made up."""
    from client.redaction import read_map

    found = read_map(map_path).restore(answer)
    if as_json:
        _print_json(
            {
                "text": found.text,
                "restored": list(found.restored),
                "missing": list(found.missing),
                "unknown": list(found.unknown),
            }
        )
        return
    typer.echo(found.text, nl=False)
    _warn(found)


def _warn(found: Restored) -> None:
    """Say on stderr what of an answer could not be put back, or did not come back."""
    if found.missing:
        typer.echo(f"Not in the answer: {', '.join(found.missing)}.", err=True)
    if found.unknown:
        typer.echo(f"Never given out, left as it is: {', '.join(found.unknown)}.", err=True)


def _print_json(value: dict[str, object]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
