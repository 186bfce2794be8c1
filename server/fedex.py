"""The mean of clients' products, exactly: means of the factors and what they leave over.

Singhal et al., ACL 2025, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of
Foundation Models". The reference implementation sends the residual as a dense matrix; here it is
factors of its numerical rank from end to end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from server.aggregation import Aggregate
from server.factored import Matrix, decomposed
from server.flexlora import ProductMean, bounded_change
from shared.lora import AdapterSpec, Vector
from shared.privacy.plan import PrivacyPlan
from shared.residual import Residual

_KEPT = 1e-7
"""Share of the largest singular value below which a direction is rounding of float32."""


class ExactMean(ProductMean):
    """Sets A and B to their means, and adds to the residual what those leave over.

    Clients computed with ``L R + B_i A_i``. Afterwards they compute with ``L' R' + B' A'``, where
    ``B'`` and ``A'`` are the means and ``L' R' = L R + (1/n) sum_i B_i A_i - B' A'``: the mean of
    what they had, up to the rounding of float32. The residual is decomposed in every round, and
    directions below 1e-7 of the largest of it and of the mean product are dropped: its rank is at
    most the smaller width of the layer, whatever the number of rounds and clients.

    Guarantee:
        None of its own. In mode ``example`` every update is noised on its client, and this is
        post-processing; it is not linear, so noise on a sum would not cover it.

    Args:
        spec: names and shapes of the factors.
        vector: the factors that clients were sent, float32, of both kinds.
        plan: the privacy plan.
        residual: what clients were told lies beneath them; None is nothing.

    Raises:
        ConflictingSettings: in a client mode, whose noise or masks do not cover products.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        vector: Vector,
        *,
        plan: PrivacyPlan,
        residual: Residual | None = None,
    ) -> None:
        super().__init__(spec, vector, plan=plan)
        self._vector = vector.astype(np.float64)
        self._total = np.zeros(vector.size, dtype=np.float64)
        self._residual = residual

    def add(self, vector: Vector) -> float:
        """Take one client's change of its factors; return its norm as it came."""
        norm = super().add(vector)
        self._total += bounded_change(vector)[1]
        return norm

    def release(self) -> Aggregate | None:
        """Return the change to the mean factors, and the residual; None if nobody answered."""
        if self._count == 0:
            return None
        mean = self._total / self._count
        # As the server's optimizer rounds it: what that loses goes into the residual too.
        after = self._spec.unflatten((self._vector + mean).astype(np.float32))
        before = [] if self._residual is None else self._residual.factors(self._spec)
        pairs = []
        for number, (layer, total) in enumerate(self._sums.items()):
            products = total.decomposed()
            left = [products.left * (products.values / self._count), -_double(after[layer.b])]
            right = [products.right, _double(after[layer.a])]
            if before:
                left.append(_double(before[number][0]))
                right.append(_double(before[number][1]))
            largest = float(products.values.max(initial=0.0)) / self._count
            pairs.append(_thin(np.hstack(left), np.vstack(right), largest))
        return Aggregate(vector=mean, count=self._count, residual=Residual.of(pairs))


def _thin(left: Matrix, right: Matrix, largest: float) -> tuple[Matrix, Matrix]:
    """Return factors of numerical rank, each with the root of the singular values."""
    found = decomposed(left, right)
    kept = found.values > _KEPT * found.values.max(initial=largest)
    roots = np.sqrt(found.values[kept])
    return found.left[:, kept] * roots, roots[:, None] * found.right[kept]


def _double(array: NDArray[np.float32]) -> Matrix:
    return array.astype(np.float64)
