"""What a conversation gave away, as one character: six yes-or-no marks in the base-64 alphabet.

Reports keep one character per prompt and attack, so that every rate can be worked out again, by
family or by measure, from numbers alone.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from server.audit import evidence as read
from server.audit.promptleak.judge import Judged
from server.audit.protocol import Evidence
from shared.errors import AuditError

MEASURES = ("exact_raw", "close_raw", "exact", "close", "secret", "contained")
"""The marks, from the least significant bit."""
UNTRIED = "."
"""A conversation that did not fit the model."""

_SIGNS = string.digits + string.ascii_letters + "-_"
_VALUE = {sign: value for value, sign in enumerate(_SIGNS)} | {UNTRIED: -1}


def mark(judged: Judged | None) -> str:
    """Return the character for what a conversation gave away."""
    if judged is None:
        return UNTRIED
    return _SIGNS[sum(getattr(judged, name) << bit for bit, name in enumerate(MEASURES))]


class Marks:
    """The marks of one model: prompts by attacks.

    Args:
        values: shape ``(prompts, attacks)``; -1 where a conversation was not held.
    """

    def __init__(self, values: NDArray[np.int64]) -> None:
        self.values = values

    @property
    def tried(self) -> NDArray[np.bool_]:
        """Which conversations were held, shape ``(prompts, attacks)``."""
        held: NDArray[np.bool_] = self.values >= 0
        return held

    def of(self, *measures: str) -> NDArray[np.bool_]:
        """Return which conversations any of these measures calls a leak, same shape."""
        bits = sum(1 << MEASURES.index(name) for name in measures)
        hits: NDArray[np.bool_] = self.tried & ((self.values & bits) != 0)
        return hits

    @property
    def leaks(self) -> NDArray[np.bool_]:
        """Which conversations gave the whole prompt away, exactly or nearly, decoded or not."""
        return self.of("exact", "close")


def read_rows(evidence: Evidence, key: str, *, rows: int, columns: int, signs: str) -> list[str]:
    """Return one string per prompt, each of one sign per column.

    Raises:
        AuditError: if it is anything else.
    """
    found = read.sequence(evidence, key)
    good = all(
        isinstance(row, str) and len(row) == columns and set(row) <= set(signs) for row in found
    )
    if not (good and len(found) == rows):
        msg = f"evidence {key!r} is not {rows} rows of {columns} marks."
        raise AuditError(msg, hint="The report was changed or written by another version.")
    return list(found)


def read_marks(side: Mapping[str, object], *, prompts: int, attacks: int) -> Marks:
    """Read the marks of one model from evidence.

    Raises:
        AuditError: if they are malformed.
    """
    rows = read_rows(side, "marks", rows=prompts, columns=attacks, signs=_SIGNS + UNTRIED)
    return Marks(_array(rows, columns=attacks))


def _array(rows: Sequence[str], *, columns: int) -> NDArray[np.int64]:
    """Return rows of signs as numbers."""
    flat = [[_VALUE[sign] for sign in row] for row in rows]
    return np.array(flat, dtype=np.int64).reshape(len(rows), columns)
