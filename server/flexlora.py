"""The mean of clients' products, as factors: the aggregator of policy ``flexlora``.

Bai et al. 2024, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and
Client Resources" (arXiv:2402.11505), with the decomposition of a small core in place of that of the
dense product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.aggregation import LONGEST_UPDATE, Aggregate
from server.factored import ProductSum, balanced_at_a
from shared.errors import ConflictingSettings, SchemaMismatch
from shared.lora import AdapterSpec, Factors, Vector
from shared.privacy.norms import norm_of
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True)
class _Layer:
    """The names of a layer's two factors."""

    a: str
    b: str


class ProductMean:
    """Sets the adapter to the best rank-r factors of the mean of the clients' products.

    Every client's update is a change of A and of B; with the factors that it was sent it gives the
    client's own ``A_i`` and ``B_i``. What is released is the change from the factors of the round
    to those of ``(1/n) sum_i B_i A_i``, cut to rank r. The scale ``s = alpha / r`` is one for all
    clients and stays outside: ``s B A`` is the best rank-r approximation of the mean of
    ``s B_i A_i``. Weights are uniform.

    Guarantee:
        None of its own. In mode ``example`` every update is noised on its client, and this is
        post-processing; it is not linear, so noise on a sum would not cover it.

    Args:
        spec: names and shapes of the factors.
        vector: the factors that clients were sent, float32, of both kinds.
        plan: the privacy plan.
        start_of: where ranks differ, what a client trains from: its factors among zeros.

    Raises:
        ConflictingSettings: in a client mode, whose noise or masks do not cover products.
    """

    def __init__(
        self,
        spec: AdapterSpec,
        vector: Vector,
        *,
        plan: PrivacyPlan,
        start_of: Callable[[int], Vector] | None = None,
    ) -> None:
        if plan.mode not in {"none", "example"}:
            msg = f"mode={plan.mode!r}: the mean of products is no sum of clipped updates."
            raise ConflictingSettings(msg, hint='Use policy "ffa" or "rolora".')
        self._spec = spec
        self._before: Factors = spec.unflatten(vector)
        self._start = self._before
        self._start_of = start_of
        self._size = vector.size
        self._count = 0
        shapes = {factor.name: factor.shape for factor in spec.factors}
        self._sums: dict[_Layer, ProductSum] = {}
        for layer in _layers(spec):
            self._sums[layer] = ProductSum(shapes[layer.b][0], shapes[layer.a][1])

    def of(self, client: int) -> None:
        """Be told whose update comes next."""
        if self._start_of is not None:
            self._start = self._spec.unflatten(self._start_of(client))

    def add(self, vector: Vector) -> float:
        """Take one client's change of its factors; return its norm as it came.

        A change that is not finite counts as none, and one longer than
        :data:`server.aggregation.LONGEST_UPDATE` is scaled down to that.
        """
        if vector.shape != (self._size,):
            msg = f"Found an update of shape {vector.shape}, expected ({self._size},)."
            raise SchemaMismatch(msg)
        norm, bounded = bounded_change(vector)
        change = self._spec.unflatten(bounded)
        for layer, total in self._sums.items():
            total.add(
                self._start[layer.b] + change[layer.b], self._start[layer.a] + change[layer.a]
            )
        self._count += 1
        return norm

    def release(self) -> Aggregate | None:
        """Return the change to the factors of the mean product; None if nobody answered."""
        if self._count == 0:
            return None
        moved: dict[str, NDArray[np.float64]] = {}
        for layer, total in self._sums.items():
            before = self._before[layer.a].astype(np.float64)
            b, a = balanced_at_a(total.decomposed(), 1.0 / self._count, before)
            moved[layer.a] = a - before
            moved[layer.b] = b - self._before[layer.b]
        parts = [moved[factor.name].reshape(-1) for factor in self._spec.factors]
        return Aggregate(vector=np.concatenate(parts), count=self._count)


def bounded_change(vector: Vector) -> tuple[float, Vector]:
    """Return a change's norm as it came, and the change within the bound; zero if not finite."""
    norm = norm_of(vector)
    if not math.isfinite(norm):
        return norm, np.zeros_like(vector)
    return norm, np.float32(min(1.0, LONGEST_UPDATE / max(norm, 1.0))) * vector


def _layers(spec: AdapterSpec) -> list[_Layer]:
    """Return the pairs of factors of each layer; sorted names put each A right before its B."""
    return [
        _Layer(a=a.name, b=b.name)
        for a, b in zip(spec.of_kind("A"), spec.of_kind("B"), strict=True)
    ]
