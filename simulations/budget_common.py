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
Where = Annotated[str, typer.Argument(help="A run folder, a ledger file, or a PostgreSQL URL.")]
Anchor = Annotated[
    str | None, typer.Option(metavar="SEQ:HASH", help="A head that was seen earlier.")
]
PublicKey = Annotated[
    str | None, typer.Option(metavar="HEX", help="The key that must have signed the ledger.")
]
URLS = ("postgresql://", "postgres://")


def is_url(where: str) -> bool:
    """Tell whether a ledger is in a PostgreSQL database."""
    return where.startswith(URLS)


def open_ledger(where: str) -> Ledger:
    """Open a ledger to read it; never create or change one.

    Args:
        where: a run folder, a ledger file, or the URL of a PostgreSQL database.

    Raises:
        LedgerError: if there is none.
    """
    from server.prepared import LEDGER
    from shared.errors import LedgerError
    from shared.privacy.ledger import Ledger

    if is_url(where):
        return Ledger(where, read_only=True)
    given = Path(where)
    path = given / LEDGER if given.is_dir() else given
    if not path.is_file():
        msg = f"{path.name} does not exist here."
        raise LedgerError(msg, hint="Give a run folder, a ledger file or a PostgreSQL URL.")
    return Ledger(path, read_only=True)


def read_key(text: str | None) -> str | None:
    """Read a public key of 64 hexadecimal digits.

    Raises:
        UsageError: for anything else.
    """
    from shared.errors import UsageError

    if text is None:
        return None
    key = text.lower()
    if not (len(key) == 64 and set(key) <= set("0123456789abcdef")):
        msg = f"--public-key of {len(text)} characters, expected 64 hexadecimal digits."
        raise UsageError(msg, hint="It is the key that an earlier verify printed.")
    return key


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
