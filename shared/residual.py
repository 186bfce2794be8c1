"""What lies beneath an adapter: a sum of products that its own rank cannot hold, as factors.

Under policy ``fedex`` clients compute with ``W0 + s (L R + B A)``. ``L R`` is what the means of A
and B left over of the mean of products in all rounds so far. It is kept, sent and released as
factors ``L (d_out, k)`` and ``R (k, d_in)`` of each layer, never as a matrix of the layer's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import AdapterIncompatible, SchemaMismatch
from shared.lora import AdapterSpec, Factor, Factors, Vector

VECTOR: Final = "residual"
RANKS: Final = "residual-ranks"


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Factors of every adapted layer.

    Attributes:
        ranks: the k of each layer, in the order of :meth:`shared.lora.AdapterSpec.pairs`.
        vector: flat float32: of each layer ``L (d_out, k)``, then ``R (k, d_in)``, row-major.
    """

    ranks: tuple[int, ...]
    vector: Vector

    @classmethod
    def of(cls, pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Residual:
        """Join ``L`` and ``R`` of each layer."""
        parts = [np.asarray(part, dtype=np.float32).reshape(-1) for pair in pairs for part in pair]
        return cls(tuple(left.shape[1] for left, _ in pairs), np.concatenate(parts))

    def factors(self, spec: AdapterSpec) -> list[tuple[Vector, Vector]]:
        """Return ``L`` and ``R`` of each layer.

        Raises:
            SchemaMismatch: if it is not one of the adapter, or not finite; no layer needs more
                directions than its smaller width.
        """
        pairs = spec.pairs()
        widths = [(b.shape[0], a.shape[1]) for a, b in pairs]
        fits = len(self.ranks) == len(pairs) and all(
            0 <= k <= min(width) for k, width in zip(self.ranks, widths, strict=True)
        )
        size = (
            sum(k * sum(width) for k, width in zip(self.ranks, widths, strict=True)) if fits else 0
        )
        if not (fits and self.vector.shape == (size,) and np.isfinite(self.vector).all()):
            msg = f"Found a residual of {self.vector.size} values that is none of this adapter."
            raise SchemaMismatch(msg, hint="All values must be finite.")
        found, start = [], 0
        for k, (d_out, d_in) in zip(self.ranks, widths, strict=True):
            middle, end = start + d_out * k, start + (d_out + d_in) * k
            left = self.vector[start:middle].reshape(d_out, k)
            found.append((left, self.vector[middle:end].reshape(k, d_in)))
            start = end
        return found

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return what a checkpoint keeps."""
        return {VECTOR: self.vector, RANKS: np.array(self.ranks, dtype=np.int64)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, NDArray[Any]]) -> Residual | None:
        """Read what a checkpoint kept; None if it kept none."""
        if VECTOR not in tensors:
            return None
        ranks = tuple(int(k) for k in tensors[RANKS])
        return cls(ranks, np.array(tensors[VECTOR], dtype=np.float32))


def same(one: Residual | None, other: Residual | None) -> bool:
    """Tell whether two residuals are the same, bit for bit."""
    if one is None or other is None:
        return one is other
    return one is other or (one.ranks == other.ranks and np.array_equal(one.vector, other.vector))


def stacked(
    spec: AdapterSpec, factors: Factors, residual: Residual | None
) -> tuple[AdapterSpec, Factors]:
    """Return one adapter that computes what a residual and the adapter above it do.

    ``[B L] [A; R]`` is ``B A + L R``. Layers whose k is smaller than the largest are filled with
    zeros, so that all have one rank, and ``alpha`` is chosen so that the scale stays what it was.

    Args:
        spec: names and shapes of the adapter.
        factors: its A and B.
        residual: what lies beneath; None gives spec and factors back.
    """
    if residual is None or max(residual.ranks) == 0:
        return spec, factors
    extra = max(residual.ranks)
    wide = widened(spec, stacked_rank(spec, residual))
    found = dict(factors)
    for (a, b), (left, right) in zip(spec.pairs(), residual.factors(spec), strict=True):
        missing = extra - right.shape[0]
        found[a.name] = np.vstack([factors[a.name], np.pad(right, ((0, missing), (0, 0)))])
        found[b.name] = np.hstack([factors[b.name], np.pad(left, ((0, 0), (0, missing)))])
    return wide, found


def stacked_rank(spec: AdapterSpec, residual: Residual) -> int:
    """Return the rank of an adapter and what lies beneath it as one."""
    return spec.r + max(residual.ranks)


def unstacked(
    spec: AdapterSpec, wide: AdapterSpec, factors: Factors
) -> tuple[Factors, Residual | None]:
    """Take apart what :func:`stacked` joined; directions of zeros are kept.

    Args:
        spec: the adapter above.
        wide: the spec of the factors, from :func:`widened`.
        factors: of the larger rank.

    Raises:
        AdapterIncompatible: if a layer has more directions beneath than its smaller width.
    """
    r = spec.r
    if wide.r == r:
        return factors, None
    found, pairs = dict(factors), []
    for a, b in spec.pairs():
        left, right = factors[b.name][:, r:], factors[a.name][r:]
        used = int(np.flatnonzero(left.any(axis=0) | right.any(axis=1)).max(initial=-1)) + 1
        if used > min(b.shape[0], a.shape[1]):
            msg = f"Found {used} directions beneath {a.name}, more than the layer has."
            raise AdapterIncompatible(msg)
        pairs.append((left[:, :used], right[:used]))
        found[a.name], found[b.name] = factors[a.name][:r], factors[b.name][:, :r]
    return found, Residual.of(pairs)


def widened(spec: AdapterSpec, r: int) -> AdapterSpec:
    """Return the same layers at a larger rank and the same scale; ``alpha`` is divided by r."""

    def wide(factor: Factor) -> Factor:
        if not factor.low_rank:
            return factor
        a, b = factor.shape
        return replace(factor, shape=(r, b) if factor.kind == "A" else (a, r))

    factors = tuple(wide(factor) for factor in spec.factors)
    return replace(spec, factors=factors, r=r, lora_alpha=spec.scale * r, rslora=False)
