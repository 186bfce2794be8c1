"""Correlated noise: later rounds take back a part of what earlier rounds added.

Training adds up rounds, so what matters is the noise on the sums over rounds. Let A be the matrix
of prefix sums (lower triangular ones). Its square root C is lower triangular and Toeplitz, with
entries ``binom(2k, k) / 4**k``; the banded one keeps the first ``bands`` of them. Releasing the
rounds ``G + C^-1 Z`` with independent normal Z is post-processing of ``C G + Z``, one Gaussian
release whose sensitivity follows from how often and how far apart a client takes part. No secret
sampling of clients is needed, so the figure holds also against who knows who took part
(Kalinin & Lampert 2024, arXiv:2405.13763; Choquette-Choo et al. 2023, arXiv:2306.08153).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import SchemaMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedTerms:
    """The factorisation and the participation that it is calibrated for.

    Attributes:
        bands: p >= 1, rounds over which noise is correlated; 1 is independent noise.
        min_separation: b >= 1; a client that took part in round t is not asked before t + b.
        rounds: n >= 1, rounds of the whole run, which is one release.

    Raises:
        InvalidValue: for a value that is not an integer >= 1.
    """

    bands: int
    min_separation: int
    rounds: int

    def __post_init__(self) -> None:
        validate.positive_integer(
            bands=self.bands, min_separation=self.min_separation, rounds=self.rounds
        )

    @property
    def coefficients(self) -> npt.NDArray[np.float64]:
        """Return the first column of C without its zeros, float64 ``(min(bands, rounds),)``."""
        found = np.ones(min(self.bands, self.rounds), dtype=np.float64)
        for k in range(1, found.size):
            found[k] = found[k - 1] * (2 * k - 1) / (2 * k)
        return found

    @property
    def max_participations(self) -> int:
        """Return the most rounds that one client can take part in."""
        return math.ceil(self.rounds / self.min_separation)

    @property
    def sensitivity(self) -> float:
        """Return how far one client of clip 1 can move ``C G`` in Frobenius norm, exactly.

        The entries of C are not negative, so the worst client sends the same unit vector each
        time. They fall down a column, so the worst pattern is the earliest and densest one: rounds
        0, b, 2b, ... (Kalinin & Lampert 2024, Theorem 2). With ``bands <= min_separation`` the
        columns do not overlap, and with none cut off by the last round this is
        ``sqrt(max_participations) * norm(coefficients)``.
        """
        column = self.coefficients
        moved = np.zeros(self.rounds, dtype=np.float64)
        for start in range(0, self.rounds, self.min_separation):
            moved[start : start + column.size] += column[: self.rounds - start]
        return float(np.sqrt(np.sum(np.square(moved))))

    def to_json(self) -> dict[str, object]:
        """Return the stored form."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> CorrelatedTerms:
        """Read the stored form.

        Raises:
            SchemaMismatch: for other fields.
            InvalidValue: for a value out of range.
        """
        names = {field.name for field in fields(cls)}
        if not (isinstance(value, dict) and set(value) == names):
            msg = "stored correlated terms do not have the fields of this version."
            raise SchemaMismatch(msg, hint="A newer fedslm may have written them.")
        return cls(**value)
