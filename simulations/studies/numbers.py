"""Estimates over seeds: mean, standard deviation, and over how many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A measurement repeated over seeds.

    Attributes:
        mean: over seeds; None where no seed has a value.
        sd: sample standard deviation (``n - 1``); None for fewer than two values.
        n: seeds with a value.
    """

    mean: float | None
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Estimate:
        """Summarise one value per seed; those that were not measured are left out."""
        found = np.array([v for v in values if v is not None and math.isfinite(v)], dtype=float)
        return cls(
            mean=float(found.mean()) if found.size else None,
            sd=float(found.std(ddof=1)) if found.size > 1 else None,
            n=int(found.size),
        )

    def text(self, digits: int) -> str:
        """Return ``mean ± sd``; the mean alone for one seed, a dash for none."""
        if self.mean is None:
            return "-"
        mean = f"{self.mean:,.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:,.{digits}f}"

    def to_dict(self) -> dict[str, float | int | None]:
        """Return the JSON form, rounded to six digits after the point."""
        return {"mean": _rounded(self.mean), "sd": _rounded(self.sd), "n": self.n}


def rank_correlation(x: Iterable[float], y: Iterable[float]) -> float | None:
    """Return Spearman's rank correlation of pairs.

    Returns:
        None for fewer than three pairs, or where either side has only one value.
    """
    left, right = (np.asarray(list(side), dtype=float) for side in (x, y))
    if left.size < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    return float(stats.spearmanr(left, right).statistic)


def _rounded(value: float | None) -> float | None:
    """Round for JSON."""
    return None if value is None else round(value, 6)
