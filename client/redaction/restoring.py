"""Personal data put back into an answer piece by piece, as the answer is written."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.redaction.placeholders import Session

# What may be the beginning of a placeholder, in any way in which an answer may write one.
_BEGINNING = re.compile(
    r"(?:(?:&lt;|[<\[{])\s*[A-Za-z_]*[_ -]?[0-9]{0,9}\s*(?:&g?t?)?"
    r"|&l?t?"
    r"|(?<![A-Za-z0-9_])[A-Za-z0-9_]+)\Z"
)


class RestoringStream:
    """The pieces of an answer with the personal data back in place.

    Together they are what :meth:`~client.redaction.placeholders.Session.restore` makes of the whole
    answer. What may be the beginning of a placeholder is held back until it is one, or is none.

    Args:
        session: knows what stands for what.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._held = ""

    def push(self, piece: str) -> str:
        """Take a piece; return what can be given out, which may be empty."""
        text = self._held + piece
        found = _BEGINNING.search(text)
        end = len(text) if found is None else found.start()
        self._held = text[end:]
        return self._session.restore(text[:end]).text

    def finish(self) -> str:
        """Return what is left."""
        last, self._held = self._held, ""
        return self._session.restore(last).text
