"""Robust aggregation: a few clients that send what they like cannot pull the result anywhere.

Every rule needs all updates of a round at once. They are kept as float32: ``4 n d`` bytes for n
updates of d parameters, where the mean keeps ``8 d``. All rules read them in blocks of coordinates,
so that nothing else grows with both.

Guarantee:
    What a rule returns depends on the set of updates and not on the order in which they came, bit
    for bit: rows are put in the order of their digests first. In mode ``example`` the updates are
    noised on the clients, and a rule over them is post-processing.

Sources: Yin et al. 2018 (median, trimmed mean); Blanchard et al. 2017 (Krum, multi-Krum); Pillutla
et al. 2022 (geometric median by smoothed Weiszfeld).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.configrobust import RobustKeys, RobustName, attackers_among, fewest_updates
from shared.errors import QuorumNotReached, SchemaMismatch
from shared.lora import Vector
from shared.privacy.norms import norm_of

Rows = Sequence[Vector]
Block = NDArray[np.float64]

_AT_ONCE = 1 << 20  # float64 numbers of a block
_ITERATIONS = 200
_TOLERANCE = 1e-6
_SMOOTHING = 1e-8


class RobustAggregator(Protocol):
    """One rule: many updates in, one out."""

    def __call__(self, rows: Rows, attackers: int) -> NDArray[np.float64]:
        """Return what a rule makes of a round's updates.

        Args:
            rows: n finite vectors of shape ``(d,)``, at least what
                :func:`shared.configrobust.fewest_updates` says for this many attackers.
            attackers: f, how many rows may be anything.

        Returns:
            Shape ``(d,)``.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustRule:
    """What a scenario says about attackers.

    Attributes:
        name: of the rule; not ``"mean"``.
        attackers: a count (int) or a share (float) of a round's updates; None assumes nothing.
    """

    name: RobustName
    attackers: float | None = None

    def combine(self, rows: Rows) -> NDArray[np.float64]:
        """Return what the rule makes of a round's updates.

        Args:
            rows: at least one finite vector.

        Raises:
            QuorumNotReached: if the rule needs more updates for what is assumed of attackers; what
                it would return could be theirs.
        """
        attackers = attackers_among(self.attackers, len(rows))
        needed = fewest_updates(self.name, attackers)
        if len(rows) < needed:
            found = f"found {len(rows)}"
            msg = f"{self.name} needs {needed} updates against {attackers} attackers, {found}."
            raise QuorumNotReached(msg, hint="Raise clients.cohort.")
        return RULES[self.name](sorted(rows, key=_digest), attackers)


def rule_of(said: RobustKeys) -> RobustRule | None:
    """Return the rule that a scenario asks for; None for the mean."""
    if said.robust == "mean":
        return None
    return RobustRule(name=said.robust, attackers=said.attackers)


class BoundedRows:
    """The updates of a round, each scaled down to a bound on its norm.

    An update that is not finite counts as the zero update, as in the mean.

    Args:
        size: number of parameters d.
        bound: L2 norm, > 0.
    """

    def __init__(self, size: int, *, bound: float) -> None:
        self.rows: list[Vector] = []
        self.shortened = 0
        self._size = size
        self._bound = bound

    def add(self, vector: Vector) -> float:
        """Keep a copy of one client's update; return its norm as it came."""
        if vector.shape != (self._size,):
            msg = f"Found an update of shape {vector.shape}, expected ({self._size},)."
            raise SchemaMismatch(msg)
        norm = norm_of(vector)
        if not math.isfinite(norm):
            self.rows.append(np.zeros(self._size, dtype=np.float32))
            return norm
        longer = norm > self._bound
        scaled = vector.astype(np.float64) * (self._bound / norm) if longer else vector
        self.rows.append(np.array(scaled, dtype=np.float32))
        self.shortened += longer
        return norm


def coordinate_median(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the median of every coordinate; the middle two's mean for an even number.

    With a majority of honest rows, every coordinate is between two honest ones.
    """
    del attackers
    return _by_block(rows, lambda block: np.median(block, axis=0))


def trimmed_mean(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the mean of every coordinate without its ``attackers`` largest and smallest.

    With at most so many attackers, every coordinate is within the range of the honest ones.
    """
    kept = slice(attackers, len(rows) - attackers)
    return _by_block(rows, lambda block: np.mean(np.sort(block, axis=0)[kept], axis=0))


def krum(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the row that is nearest to its ``n - f - 2`` nearest others, by squared distances."""
    best = int(np.argmin(_krum_scores(rows, attackers)))
    return np.asarray(rows[best], dtype=np.float64)


def multi_krum(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the mean of the ``n - f - 2`` rows that score best by Krum's measure."""
    order = np.argsort(_krum_scores(rows, attackers), kind="stable")
    chosen = sorted(order[: len(rows) - attackers - 2].tolist())
    return _by_block([rows[i] for i in chosen], lambda block: np.mean(block, axis=0))


def geometric_median(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the point whose summed distance to the rows is least, by Weiszfeld's iteration.

    It starts at the coordinates' median and ends once a step is shorter than a millionth of the
    start's median distance to the rows, or after 200 steps: lengths that a minority cannot stretch.
    Distances count as at least a hundred-millionth of it, which keeps the iteration defined at a
    row. Where more than half of the rows are one point, it is that point.
    """
    del attackers
    point = coordinate_median(rows, 0)
    distances = _distances(rows, point)
    scale = float(np.median(distances))
    if scale == 0.0:
        return point
    for _ in range(_ITERATIONS):
        weights = 1.0 / np.maximum(distances, _SMOOTHING * scale)
        moved = _by_block(rows, partial(np.matmul, weights / weights.sum()))
        step = float(np.linalg.norm(moved - point))
        point = moved
        if step <= _TOLERANCE * scale:
            break
        distances = _distances(rows, point)
    return point


RULES: Final[Mapping[RobustName, RobustAggregator]] = {
    "median": coordinate_median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
}


class _Reduce(Protocol):
    """Turns ``(n, w)`` into ``(w,)``."""

    def __call__(self, block: Block, /) -> Block:
        """Reduce the rows of a block to one."""


def _by_block(rows: Rows, reduce: _Reduce) -> NDArray[np.float64]:
    """Return what a function makes of every column, a block of columns at a time."""
    found = np.empty(rows[0].size, dtype=np.float64)
    for columns, block in _blocks(rows):
        found[columns] = reduce(block)
    return found


def _blocks(rows: Rows) -> Iterator[tuple[slice, Block]]:
    """Yield blocks of columns, float64, shape ``(n, w)``."""
    width = max(_AT_ONCE // len(rows), 1)
    for start in range(0, rows[0].size, width):
        columns = slice(start, start + width)
        yield columns, np.stack([row[columns] for row in rows]).astype(np.float64)


def _distances(rows: Rows, point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance of every row from a point, shape ``(n,)``."""
    squares = np.zeros(len(rows), dtype=np.float64)
    for columns, block in _blocks(rows):
        squares += np.square(block - point[columns]).sum(axis=1)
    return np.sqrt(squares)


def _krum_scores(rows: Rows, attackers: int) -> NDArray[np.float64]:
    """Return the summed squared distances of every row to its nearest others, shape ``(n,)``."""
    count = len(rows)
    gram = np.zeros((count, count), dtype=np.float64)
    for _, block in _blocks(rows):
        gram += block @ block.T
    own = np.diag(gram)
    squares = np.maximum(own[:, None] + own[None, :] - 2.0 * gram, 0.0)
    np.fill_diagonal(squares, np.inf)
    nearest = np.sort(squares, axis=1)[:, : count - attackers - 2]
    return np.asarray(nearest.sum(axis=1), dtype=np.float64)


def _digest(row: Vector) -> bytes:
    """Return what puts rows in an order that does not depend on who came first."""
    return hashlib.sha256(row.tobytes()).digest()
