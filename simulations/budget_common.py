"""What the ``fedslm budget`` commands share: opening a ledger, reading a head, printing JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from shared.privacy.ledger import Ledger
    from shared.privacy.ledger_store import Head

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Where = Annotated[Path, typer.Argument(help="A run folder or a ledger file.")]
Anchor = Annotated[
    str | None, typer.Option(metavar="SEQ:HASH", help="A head that was seen earlier.")
]


def open_ledger(where: Path) -> Ledger:
    """Open the ledger of a run folder or file; never create one.

    Raises:
        LedgerError: if there is none.
    """
    from server.prepared import LEDGER
    from shared.errors import LedgerError
    from shared.privacy.ledger import Ledger

    path = where / LEDGER if where.is_dir() else where
    if not path.is_file():
        msg = f"{path.name} does not exist here."
        raise LedgerError(msg, hint="Give a run folder or the path of a ledger file.")
    return Ledger(path)


def read_head(text: str | None) -> Head | None:
    """Read ``SEQ:HASH``.

    Raises:
        UsageError: for anything else.
    """
    from shared.errors import UsageError
    from shared.privacy.ledger_store import Head

    if text is None:
        return None
    number, _, digest = text.partition(":")
    if not (number.isdigit() and digest):
        msg = f"--anchor {text!r}, expected SEQ:HASH."
        raise UsageError(msg, hint="It is the head that an earlier verify printed.")
    return Head(seq=int(number), hash=digest)


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
