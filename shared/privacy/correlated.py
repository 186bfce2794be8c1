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
from collections import deque
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from shared import validate
from shared.errors import SensitivityError
from shared.privacy.accountant import relation_of
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.mechanism import ClippedSum, NoisedMean
from shared.privacy.noise import NoiseKind
from shared.privacy.noiserows import NoiseRows
from shared.privacy.stored import stored_fields


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

    def inverse(self, rows: int) -> npt.NDArray[np.float64]:
        """Return the first column of C^-1, float64 ``(rows,)``: what each row of Z adds later.

        Row t of ``C^-1 Z`` is ``sum(inverse[i] * Z[t - i])``.

        Raises:
            InvalidValue: if ``rows`` is not an integer >= 1.
        """
        validate.positive_integer(rows=rows)
        column = self.coefficients
        found = np.zeros(rows, dtype=np.float64)
        found[0] = 1.0
        for row in range(1, rows):
            reach = min(column.size - 1, row)
            found[row] = -(column[1 : reach + 1] @ found[row - reach : row][::-1])
        return found

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
        return cls(**stored_fields(cls, value))


class CorrelatedNoise:
    """The rows of ``C^-1 Z`` one after the other; memory for ``bands - 1`` of them.

    Row t is ``Z[t] - sum(c[i] * row[t - i])`` over the bands, which needs no inverse.

    Guarantee:
        Every row comes out at most once in the life of this object, and a new object with the
        same key and dimension gives the same rows. A round that was not checkpointed was not
        released: a run that is resumed computes its sum again and adds the same row. Nothing that
        depends on the row may leave before the checkpoint is on disk, and one run folder must
        never go on twice (from a copy or an older checkpoint): two different sums under one row
        are a release that nobody accounted for.

    Args:
        terms: the factorisation.
        dimension: d >= 1.
        rows: where the rows of Z come from.
        used: rounds of a resumed run that were released; their rows never come out again.

    Raises:
        InvalidValue: if the dimension or ``used`` is out of range.
    """

    __slots__ = ("_column", "_dimension", "_earlier", "_next", "_rows", "_used", "terms")

    def __init__(
        self, terms: CorrelatedTerms, *, dimension: int, rows: NoiseRows, used: int = 0
    ) -> None:
        validate.positive_integer(dimension=dimension)
        if used:
            validate.positive_integer(used=used)
        self.terms = terms
        self._column = terms.coefficients
        self._dimension = dimension
        self._rows = rows
        self._earlier: deque[npt.NDArray[np.float64]] = deque(maxlen=self._column.size - 1)
        self._next = 1
        self._used = used

    @property
    def kind(self) -> NoiseKind:
        """Return ``"os-entropy"`` or ``"seeded-simulation"``."""
        return self._rows.kind

    @property
    def dimension(self) -> int:
        """Return the length of a row."""
        return self._dimension

    def row(self, server_round: int) -> npt.NDArray[np.float64]:
        """Return one round's row; rows that were passed over are computed on the way.

        Args:
            server_round: from 1 to ``terms.rounds``, above every round asked for before.

        Returns:
            Float64 ``(d,)``, in units of the noise on a row of Z. The caller owns it.

        Raises:
            InvalidValue: for a round that is not an integer >= 1.
            SensitivityError: for a round beyond the run, or one whose row was handed out.
        """
        validate.positive_integer(server_round=server_round)
        first = max(self._next, self._used + 1)
        if not first <= server_round <= self.terms.rounds:
            msg = (
                f"server_round={server_round!r}, expected {first} to {self.terms.rounds}: "
                "the noise of a round is added once, and calibrated for so many rounds."
            )
            raise SensitivityError(msg, hint="Resume the run from its checkpoint.")
        while True:
            row = self._rows.source(self._next).normal(self._dimension)
            for weight, earlier in zip(self._column[1:], self._earlier, strict=False):
                row -= weight * earlier
            self._earlier.appendleft(row)
            self._next += 1
            if self._next > server_round:
                return row.copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedGaussian:
    """Adds correlated noise to the clipped sums of a whole run, which is one Gaussian release.

    Participation is public and bounded: a client takes part at most once in any
    ``terms.min_separation`` rounds. One that does not answer contributes zero, which is within the
    bound. Updates may depend on what was released before: for Gaussian noise and a lower
    triangular C the guarantee is the same (Denisov et al. 2022, arXiv:2202.08312, Theorem 2.1).

    Attributes:
        noise_multiplier: z > 0 of the run, noise on a row of Z over the sensitivity of ``C G``.
        clipping_norm: C > 0 of one client's update in one round.
        terms: factorisation and participation.

    Raises:
        InvalidValue: if a value is out of range.
    """

    noise_multiplier: float
    clipping_norm: float
    terms: CorrelatedTerms

    def __post_init__(self) -> None:
        validate.positive(noise_multiplier=self.noise_multiplier, clipping_norm=self.clipping_norm)

    @property
    def event(self) -> GaussianEvent:
        """Return what the whole run costs, however many of its rounds are released."""
        return GaussianEvent(noise_multiplier=self.noise_multiplier)

    @property
    def row_stddev(self) -> float:
        """Return the standard deviation of each entry of Z, in units of the sum."""
        return self.noise_multiplier * self.terms.sensitivity * self.clipping_norm

    def noise_stddev(self, server_round: int) -> float:
        """Return the standard deviation of the noise on each coordinate of one round's sum.

        Raises:
            InvalidValue: if the round is not an integer >= 1.
        """
        return self.row_stddev * float(np.linalg.norm(self.terms.inverse(server_round)))

    def sensitivity(self, relation: NeighboringRelation) -> float:
        """Return how far one client moves ``C G`` over the run; twice as far under replace-one."""
        doubled = relation_of(relation) is NeighboringRelation.REPLACE_ONE
        return self.terms.sensitivity * self.clipping_norm * (2.0 if doubled else 1.0)

    def release(
        self,
        total: ClippedSum,
        *,
        expected_count: float,
        server_round: int,
        noise: CorrelatedNoise,
    ) -> NoisedMean:
        """Release ``(sum + z * sensitivity * C * row) / expected_count``.

        Guarantee:
            All rounds of the run together cost the event attached, once.

        Args:
            total: the clipped sum of the round; it can be released only once.
            expected_count: public, such as the largest size of a cyclic cohort.
            server_round: from 1; its row of the noise must not have been used.
            noise: the run's rows, made for the same terms.

        Returns:
            The noised mean.

        Raises:
            InvalidValue: if ``expected_count`` is not finite and positive.
            SensitivityError: if the sum has another bound or was already released, if the noise
                was made for other terms or another dimension, or if the row was used.
        """
        validate.positive(expected_count=expected_count)
        if total.clipping_norm != self.clipping_norm:
            msg = f"the sum has bound={total.clipping_norm!r}, expected {self.clipping_norm!r}."
            raise SensitivityError(msg, hint="Noise must be calibrated to the clip in force.")
        if noise.terms != self.terms or noise.dimension != total.dimension:
            msg = "the rows of noise were made for other terms or another dimension."
            raise SensitivityError(msg, hint="Make them from the plan of this run.")
        values = total.take()
        values += self.row_stddev * noise.row(server_round)
        values /= expected_count
        return NoisedMean(
            vector=values.astype(np.float32),
            noise_stddev=self.noise_stddev(server_round) / expected_count,
            event=self.event,
            noise_source=noise.kind,
        )
