"""Personal data stays on the device: found in a query, replaced, and restored in the answer.

``default_redactor().redact(query, session)`` gives what may leave; ``session.restore(answer)`` puts
everything back. Needs the extra ``query``.
"""

from __future__ import annotations

from client.redaction.engine import KINDS, Redactor, default_redactor
from client.redaction.mapfile import read_map, write_map
from client.redaction.placeholders import Redacted, Restored, Session
from client.redaction.restoring import RestoringStream
from client.redaction.spans import Finder, Span

__all__ = [
    "KINDS",
    "Finder",
    "Redacted",
    "Redactor",
    "Restored",
    "RestoringStream",
    "Session",
    "Span",
    "default_redactor",
    "read_map",
    "write_map",
]
