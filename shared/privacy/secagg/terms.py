"""What all parties of one aggregation must agree on before a key is made."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from typing import Self

from shared import validate
from shared.errors import ConflictingSettings, InvalidValue
from shared.privacy.events import MAX_DIMENSION
from shared.privacy.secagg.codec import (
    Reader,
    require_width,
    seal,
    unseal,
    write_integer,
    write_text,
)

SESSION_BYTES = 32
MIN_COHORT = 3

_KIND = 1
_HEX = frozenset(string.hexdigits.lower())
_MAX_TEXT = 256
_DIGEST_CHARS = 64
_MAX_COUNT = 2**32 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SecAggTerms:
    """The public terms of one session; every signature and key of the session depends on them.

    A client builds them from the plan it has accepted and from its own policy, never from what the
    server says they are: other terms give another digest, and no signature fits.

    Attributes:
        run_id: name of the run, 1 to 256 bytes of UTF-8.
        server_round: number of the round, >= 0.
        session: 32 bytes that the server draws afresh for every attempt at a round.
        config_digest: 64 hexadecimal digits, of the run's configuration.
        plan_digest: 64 hexadecimal digits, of the privacy plan.
        honest_fraction: h in ``(0, 1]``: at most ``floor((1 - h) * n)`` of the n announced clients
            collude with the server.
        survivor_fraction: s in ``(0, 1]``: nothing is revealed unless ``ceil(s * n)`` of the n
            announced clients are in the sum.
        min_cohort: least n that a client takes part in, >= 3: a sum over fewer hides too little.
        dimension: length of the vectors, 1 to ``2**31 - 1``.

    Raises:
        InvalidValue: for a value out of range.
        SchemaMismatch: if ``session`` is not 32 bytes.
        ConflictingSettings: if no cohort, however large, could be both safe and live.
    """

    run_id: str
    server_round: int
    session: bytes
    config_digest: str
    plan_digest: str
    honest_fraction: float
    survivor_fraction: float
    min_cohort: int
    dimension: int

    def __post_init__(self) -> None:
        if not (isinstance(self.run_id, str) and 1 <= len(self.run_id.encode()) <= _MAX_TEXT):
            msg = f"run_id={self.run_id!r}, expected 1 to {_MAX_TEXT} bytes of text."
            raise InvalidValue(msg)
        require_width("session", self.session, SESSION_BYTES)
        _require_digest("config_digest", self.config_digest)
        _require_digest("plan_digest", self.plan_digest)
        validate.probability(
            honest_fraction=self.honest_fraction, survivor_fraction=self.survivor_fraction
        )
        _require_whole("server_round", self.server_round, 0, _MAX_COUNT)
        _require_whole("min_cohort", self.min_cohort, MIN_COHORT, _MAX_COUNT)
        _require_whole("dimension", self.dimension, 1, MAX_DIMENSION)
        if not 2 * self.survivor_fraction + self.honest_fraction > 2:
            raise ConflictingSettings(_never(self.honest_fraction, self.survivor_fraction))

    def digest(self) -> bytes:
        """Return the SHA-256 digest of the canonical bytes, 32 bytes."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return seal(
            _KIND,
            b"".join(
                (
                    write_text(self.run_id),
                    write_integer(self.server_round),
                    self.session,
                    write_text(self.config_digest),
                    write_text(self.plan_digest),
                    # Python's shortest text that reads back to the same float64.
                    write_text(repr(float(self.honest_fraction))),
                    write_text(repr(float(self.survivor_fraction))),
                    write_integer(self.min_cohort),
                    write_integer(self.dimension),
                )
            ),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read terms.

        Raises:
            SchemaMismatch: if the bytes are damaged or of another kind or version.
            InvalidValue, ConflictingSettings: as the constructor.
        """
        reader = unseal(_KIND, data)
        terms = cls(
            run_id=reader.text(),
            server_round=reader.integer(),
            session=reader.take(SESSION_BYTES),
            config_digest=reader.text(),
            plan_digest=reader.text(),
            honest_fraction=_read_fraction(reader),
            survivor_fraction=_read_fraction(reader),
            min_cohort=reader.integer(),
            dimension=reader.integer(),
        )
        reader.end()
        return terms


def _read_fraction(reader: Reader) -> float:
    """Read a float from its canonical text."""
    text = reader.text()
    try:
        value = float(text)
    except ValueError as error:
        msg = f"fraction={text!r}, expected a number."
        raise InvalidValue(msg) from error
    if repr(value) != text:
        msg = f"fraction={text!r}, expected the canonical text {value!r}."
        raise InvalidValue(msg)
    return value


def _require_whole(name: str, value: int, low: int, high: int) -> None:
    """Require an integer in a closed range."""
    if not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high):
        msg = f"{name}={value!r}, expected an integer from {low} to {high}."
        raise InvalidValue(msg)


def _require_digest(name: str, value: str) -> None:
    """Require 64 lower-case hexadecimal digits."""
    if not (isinstance(value, str) and len(value) == _DIGEST_CHARS and set(value) <= _HEX):
        msg = f"{name}={value!r}, expected {_DIGEST_CHARS} lower-case hexadecimal digits."
        raise InvalidValue(msg)


def _never(h: float, s: float) -> str:
    """Say why no cohort can do with these fractions."""
    return (
        f"honest_fraction={h!r} and survivor_fraction={s!r}: expected 2 * survivor_fraction + "
        "honest_fraction > 2. Otherwise colluding clients and too few survivors could be led to "
        "reveal two different sums."
    )
