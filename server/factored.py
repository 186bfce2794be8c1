"""The mean of products of factors, without ever making a product: stacks, QR and a small SVD.

``sum_i B_i A_i = L R`` with the ``B_i`` beside each other in ``L (d_out, k)`` and the ``A_i`` below
each other in ``R (k, d_in)``. With thin QR decompositions ``L = Q_L T_L`` and ``R^T = Q_R T_R`` the
singular values of the sum are those of the core ``T_L T_R^T``, which is at most ``k`` by ``k``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import SchemaMismatch

Matrix = NDArray[np.float64]

_ZERO = 1e-13
"""Share of the largest singular value below which a direction is rounding of float64."""
_FIRST = 64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triple:
    """``left @ diag(values) @ right``: orthonormal columns and rows, values descending, > 0."""

    left: Matrix
    values: Matrix
    right: Matrix


class ProductSum:
    """A running sum of products ``B_i A_i`` of one layer, kept as factors.

    The stack is decomposed again whenever it has doubled; only directions whose singular value is
    rounding of float64 are dropped, so that the sum stays exact to that rounding. The rank of a sum
    is at most ``min(d_out, d_in)``: memory is bounded by that many columns and as many again,
    however many clients there are.

    Args:
        d_out: rows of the products.
        d_in: columns of the products.
    """

    def __init__(self, d_out: int, d_in: int) -> None:
        self._left: list[Matrix] = []
        self._right: list[Matrix] = []
        self._shape = (d_out, d_in)
        self._rank = 0
        self._limit = _FIRST

    @property
    def rank(self) -> int:
        """Number of columns that are held."""
        return self._rank

    def add(self, b: NDArray[np.float32], a: NDArray[np.float32]) -> None:
        """Add ``b @ a``.

        Args:
            b: shape ``(d_out, r)``, finite.
            a: shape ``(r, d_in)``, finite.

        Raises:
            SchemaMismatch: if the shapes do not belong together.
        """
        if not ((b.shape[0], a.shape[1]) == self._shape and b.shape[1] == a.shape[0]):
            msg = f"Found factors of shapes {b.shape} and {a.shape}, expected {self._shape}."
            raise SchemaMismatch(msg)
        self._left.append(b.astype(np.float64))
        self._right.append(a.astype(np.float64))
        self._rank += a.shape[0]
        if self._rank > self._limit:
            self._compress()

    def decomposed(self) -> Triple:
        """Return the singular value decomposition of the sum, without its zero directions."""
        d_out, d_in = self._shape
        left = np.hstack([np.zeros((d_out, 0)), *self._left])
        right = np.vstack([np.zeros((0, d_in)), *self._right])
        return decomposed(left, right)

    def _compress(self) -> None:
        """Replace the stack by its decomposition."""
        found = self.decomposed()
        self._left, self._right = [found.left * found.values], [found.right]
        self._rank = found.values.size
        self._limit = max(_FIRST, 2 * self._rank)


def decomposed(left: Matrix, right: Matrix) -> Triple:
    """Return the singular value decomposition of ``left @ right``.

    The sign of each pair of directions is chosen so that the entry of the right one that is largest
    in magnitude is positive: the same input gives the same factors.

    Args:
        left: shape ``(d_out, k)``.
        right: shape ``(k, d_in)``.

    Returns:
        At most ``min(k, d_out, d_in)`` directions, those with a singular value above rounding.
    """
    q_left, t_left = np.linalg.qr(left)
    q_right, t_right = np.linalg.qr(right.T)
    u, values, vt = np.linalg.svd(t_left @ t_right.T, full_matrices=False)
    # What rounding makes of zero is as large as the parts that cancelled in it.
    scale = np.linalg.norm(t_left) * np.linalg.norm(t_right)
    kept = values > _ZERO * scale
    u, values, right_rows = q_left @ u[:, kept], values[kept], vt[kept] @ q_right.T
    if values.size:
        largest = np.abs(right_rows).argmax(axis=1)
        signs = np.where(right_rows[np.arange(values.size), largest] < 0, -1.0, 1.0)
        u, right_rows = u * signs, right_rows * signs[:, None]
    return Triple(left=u, values=values, right=right_rows)


def balanced_at_a(found: Triple, scale: float, before: Matrix) -> tuple[Matrix, Matrix]:
    """Return B and A with ``B A`` the best rank-r approximation of a scaled sum.

    A has orthonormal rows, by falling singular value, like the A that a run starts from; B carries
    the singular values. Where the sum has fewer than r directions, A's other rows span what is left
    of the rows of the A before (as an orthonormal complement), and B is zero there: the product is
    the same, and training may use those rows.

    Args:
        found: the decomposition of the sum.
        scale: what the sum is multiplied by, such as one over the number of clients.
        before: the A of the round, ``(r, d_in)``, with ``r <= d_in``.

    Returns:
        B ``(d_out, r)`` and A ``(r, d_in)``.
    """
    r = before.shape[0]
    used = min(r, found.values.size)
    b = np.zeros((found.left.shape[0], r))
    b[:, :used] = found.left[:, :used] * (scale * found.values[:used])
    return b, completed(found.right[:used], before)


def completed(rows: Matrix, before: Matrix) -> Matrix:
    """Fill orthonormal rows up to as many as ``before`` has, from its row space, then from axes.

    Args:
        rows: shape ``(k, d)``, orthonormal.
        before: shape ``(r, d)``, ``k <= r <= d``.

    Returns:
        Shape ``(r, d)``, orthonormal; the first k rows are those given.
    """
    found = [row.copy() for row in rows]
    candidates = [*before, *np.eye(before.shape[1])[: 2 * before.shape[0] + 1]]
    for candidate in candidates:
        if len(found) == before.shape[0]:
            break
        length = float(np.linalg.norm(candidate))
        rest = np.array(candidate, dtype=np.float64)
        for _ in range(2):  # once is not enough where little is left
            for row in found:
                rest -= row * float(row @ rest)
        if length > 0 and float(np.linalg.norm(rest)) > 1e-6 * length:
            found.append(rest / np.linalg.norm(rest))
    return np.array(found).reshape(before.shape)
