"""Rounds of a fleet that were begun and never finished (docs/adr/0022).

A device answers a round once. What it was asked before the server was killed, or before too few
had answered, is not asked again: the round is over and its number is used up. What it was charged
stays charged, nothing of it is released, and the run goes on with the next number. A run therefore
never costs more than its plan says, however often its server dies.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from shared.errors import NotResumable
from shared.files import write_json

NAME: Final = "underway.json"
LOST: Final = "begun, and not finished"

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A round whose messages may have left.

    Attributes:
        server_round: its number.
        cohort: how many clients it chose.
    """

    server_round: int
    cohort: int


def begin_round(folder: Path, begun: Begun) -> None:
    """Write down, before it is charged and before a message leaves, that a round begins.

    Raises:
        OutOfDisk: when no space is left; the round must not begin then.
    """
    write_json(folder / NAME, {"schema": _SCHEMA, **asdict(begun)})


def begun_round(folder: Path) -> Begun | None:
    """Return the round that began last; None before the first.

    Raises:
        NotResumable: if the file is damaged.
    """
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        numbers = found["server_round"], found["cohort"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{NAME} is damaged: it is not known which rounds devices were asked."
        raise NotResumable(msg, hint="Restore it from a copy, or start another run.") from error
    if not all(type(number) is int and number >= 0 for number in numbers):
        msg = f"{NAME} is damaged: it is not known which rounds devices were asked."
        raise NotResumable(msg, hint="Restore it from a copy, or start another run.")
    return Begun(server_round=numbers[0], cohort=numbers[1])
