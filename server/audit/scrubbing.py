"""Whether a client whose data make it fail sends anything of them along with the failure.

A record with a random marker is made to fail where a client reads, tokenises or trains. Every
byte that the client would send, and every line that it would log, is searched for the marker, for
any eight characters of it in a row, and for both in the encodings that bytes travel in.
"""

from __future__ import annotations

import base64
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.audit.conformance import Check, Test, exact
from server.audit.evidence import boolean, mapping, text

NAME = "error-scrubbing"
PIECE = 8
"""Characters of a marker that count as having leaked."""

_MARKER = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAnswer:
    """What a client that failed lets out.

    Args:
        sent: every byte of the messages that it sends; never logged or printed.
        logged: every line that it logs.
        failed: whether it really failed, as it was meant to.
    """

    sent: bytes = field(repr=False)
    logged: tuple[str, ...] = field(repr=False)
    failed: bool


class FailureProbe(ABC):
    """What a client answers when its data make it fail."""

    @property
    @abstractmethod
    def places(self) -> tuple[str, ...]:
        """Return where a client can be made to fail, in words ("reading", "training")."""

    @abstractmethod
    def answer(self, place: str, marker: str) -> FailedAnswer:
        """Make a client fail on a record that holds the marker, with an error that quotes it.

        Args:
            place: one of :attr:`places`.
            marker: random letters and digits.
        """


def measure_scrubbing(probe: FailureProbe) -> dict[str, Any]:
    """Return where a marker got out; neither markers nor answers are kept."""
    found: dict[str, Any] = {}
    for place in probe.places:
        marker = random_marker()
        answer = probe.answer(place, marker)
        logged = "\n".join(answer.logged).encode("utf-8", errors="replace")
        found[place] = {
            "failed": answer.failed,
            "sent": holds(answer.sent, marker),
            "logged": holds(logged, marker),
        }
    marker = random_marker()
    quoted = f"ValueError: cannot encode 'patient {marker[10:30]}'".encode()
    return {"places": found, "control": holds(quoted, marker)}


def check_scrubbing(evidence: Mapping[str, Any]) -> Check:
    """Require that no marker got out anywhere.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if "missing" in evidence:
        return Check(name=NAME, doubts=(text(evidence, "missing"),))
    places = mapping(evidence, "places")
    tests: list[Test] = []
    doubts = []
    for place in sorted(places):
        answer = mapping(places, place)
        tests += (
            exact(
                f"sent when {place} fails",
                holds=not boolean(answer, "sent"),
                broken=f"A client whose {place} fails sends a part of the record.",
            ),
            exact(
                f"logged when {place} fails",
                holds=not boolean(answer, "logged"),
                broken=f"A client whose {place} fails logs a part of the record.",
            ),
        )
        if not boolean(answer, "failed"):
            doubts.append(f"The client did not fail when its {place} was made to.")
    if not places:
        doubts.append("There is no place where the client could be made to fail.")
    fact = f"A client was made to fail at: {', '.join(sorted(places)) or 'nothing'}."
    return Check(name=NAME, tests=tuple(tests), doubts=tuple(doubts), facts=(fact,))


def random_marker() -> str:
    """Return a marker that nothing else contains."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(_MARKER))


def holds(data: bytes, marker: str) -> bool:
    """Tell whether bytes hold any eight characters of a marker, plain or encoded.

    Looked for are UTF-8, UTF-16, hexadecimal and base64 at each of its three alignments, in any
    case. The marker is random, so eight of its characters are there by chance with a probability
    below 1e-9 per kilobyte.
    """
    lowered = data.lower()
    pieces = [marker[i : i + PIECE] for i in range(len(marker) - PIECE + 1)]
    return any(form.lower() in lowered for piece in pieces for form in _forms(piece))


def _forms(piece: str) -> Sequence[bytes]:
    """Return how some characters may stand in bytes."""
    plain = piece.encode()
    forms = [plain, piece.encode("utf-16-le"), plain.hex().encode()]
    for before in range(3):
        found = base64.b64encode(b"\0" * before + plain)
        # Characters that depend on what stands before or after the piece are left out.
        end = len(found) - 4 if found.endswith(b"=") else len(found)
        forms.append(found[(0, 2, 3)[before] : end])
    return forms
