"""The released product written as other factors: an orthonormal A, its best directions first.

Under ``ffa`` A never moves, and the columns of B may become very unlike in length. FedSVD (NeurIPS
2025, "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA") decomposes the
product ``B A`` now and then: ``B A = U S V^T``, of which ``V^T`` is the next A and ``U S`` the next
B. Here nothing of the size of the product is made: ``A^T = Q T`` and ``B T^T = U S W^T`` give
``V^T = W^T Q^T``, and all of it is one change of basis, ``B M`` and ``M^-1 A`` with ``M = T^T W``.

Guarantee:
    Post-processing of what was released: the ledger is charged nothing for it. The product is the
    same up to the rounding of float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from shared.lora import AdapterSpec, Factors

Matrix = NDArray[np.float64]
_FIRST, _SECOND = "B.first", "B.second"


def refactored(spec: AdapterSpec, factors: Factors) -> tuple[Factors, dict[str, Matrix]]:
    """Write every layer's product with an orthonormal A by falling singular value.

    Args:
        spec: names and shapes; a head's tensors stay as they are.
        factors: every A and B, finite; each A has full row rank.

    Returns:
        The factors, float32, and by name of each B the ``M^-T (r, r)`` that its gradient turns by.
    """
    found, turns = dict(factors), {}
    for a, b in spec.pairs():
        new_b, new_a, turn = change_of_basis(
            factors[b.name].astype(np.float64), factors[a.name].astype(np.float64)
        )
        found[a.name] = new_a.astype(np.float32)
        found[b.name] = new_b.astype(np.float32)
        turns[b.name] = turn
    return found, turns


def change_of_basis(b: Matrix, a: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return ``B M``, ``M^-1 A`` and ``M^-T``, with orthonormal rows and falling columns.

    Args:
        b: shape ``(d_out, r)``.
        a: shape ``(r, d_in)``, of full row rank, ``r <= d_in``.

    Returns:
        B, A and the matrix that gradients of B are multiplied by on the right. The entry of each
        row of A that is largest in magnitude is positive: the same input gives the same factors.
    """
    q, t = np.linalg.qr(a.T)
    core = np.linalg.qr(b @ t.T, mode="r")
    _, _, w_rows = np.linalg.svd(core, full_matrices=True)
    rows = w_rows @ q.T
    largest = np.abs(rows).argmax(axis=1)
    signs = np.where(rows[np.arange(rows.shape[0]), largest] < 0, -1.0, 1.0)
    rows, w = rows * signs[:, None], w_rows.T * signs
    return b @ t.T @ w, rows, np.linalg.solve(t, w)


def turned(
    spec: AdapterSpec, state: Mapping[str, NDArray[np.float64]], turns: Mapping[str, Matrix]
) -> dict[str, NDArray[np.float64]]:
    """Return the moments of B in a new basis; a head's stay as they are.

    Momentum is a sum of updates of B, which are multiplied by ``M^-T``: exactly what it would be,
    had the run had the new basis from the start. Adam's second moment holds one number a coordinate
    and not what coordinates have in common; it becomes the diagonal of the turned moment of
    coordinates that have nothing in common, which keeps it positive and the sum over a row of B.

    Args:
        spec: names and shapes of the factors.
        state: the moments by name, flat.
        turns: as :func:`refactored` gives them.
    """
    found = dict(state)
    for name, power in ((_FIRST, 1), (_SECOND, 2)):
        if name not in state:
            continue
        parts, start = [], 0
        for factor in spec.of_kind("B"):
            part = state[name][start : start + factor.size]
            start += factor.size
            if factor.name in turns:
                part = (part.reshape(factor.shape) @ turns[factor.name] ** power).reshape(-1)
            parts.append(part)
        found[name] = np.concatenate(parts)
    return found
