"""Clients of one federation with adapters of different ranks, nested in the largest.

A client of rank ``r_i`` holds the first ``r_i`` rows of every A and the first ``r_i`` columns of
every B; a head is held whole by all. Everybody has the scale ``s = alpha / r`` of the largest rank:
``s B A``, a sum over columns, is then one function for all, and no mean mixes scales.

Guarantee:
    Who has which rank follows from the scenario alone (shares, population and seed). It depends on
    no record and is known to everybody who knows the scenario; the length of an update tells it to
    whoever sees the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from shared.baseshape import with_rank
from shared.config import RunConfig
from shared.deviceshares import assigned
from shared.errors import ConflictingSettings, InvalidValue, SchemaMismatch
from shared.lora import AdapterSpec, Factor, Vector


class MixedRanks:
    """The ranks of a population, and vectors of one rank cut out of those of the largest.

    Args:
        spec: the adapter of the largest rank.
        ranks: of each client of the population, ``(population,)``, each in ``1..spec.r``.

    Attributes:
        counts: number of clients of each rank, ascending by rank.

    Raises:
        InvalidValue: for a rank out of range, or an empty population.
    """

    def __init__(self, spec: AdapterSpec, ranks: NDArray[np.int64]) -> None:
        if not (ranks.ndim == 1 and ranks.size and ranks.min() >= 1 and ranks.max() <= spec.r):
            msg = f"Found ranks outside of 1 to {spec.r}, or of nobody."
            raise InvalidValue(msg)
        self.spec = spec
        self._ranks = ranks
        found, counts = np.unique(ranks, return_counts=True)
        self.counts: Mapping[int, int] = MappingProxyType(
            dict(zip(found.tolist(), counts.tolist(), strict=True))
        )
        self._specs = {spec.r: spec}
        self._places: dict[tuple[int, str], NDArray[np.int64]] = {}

    def of(self, client: int) -> int:
        """Return a client's rank; the largest for an invented one, after the population."""
        return int(self._ranks[client]) if client < self._ranks.size else self.spec.r

    def spec_at(self, r: int) -> AdapterSpec:
        """Return the adapter of a rank, with the scale of the largest."""
        if r not in self._specs:
            self._specs[r] = with_rank(self.spec, r)
        return self._specs[r]

    def size(self, r: int, kinds: str) -> int:
        """Return the number of parameters that a client of a rank has of some kinds."""
        return self.spec_at(r).size(kinds)

    def spec_of(self, vector: Vector, kinds: str) -> AdapterSpec:
        """Return the adapter of the rank that a vector is of, by its length.

        Raises:
            SchemaMismatch: for a length that is no client's.
        """
        for r in self.counts:
            if vector.shape == (self.size(r, kinds),):
                return self.spec_at(r)
        _require(vector, self.spec.size(kinds))
        return self.spec

    def narrow(self, vector: Vector, r: int, kinds: str) -> Vector:
        """Return what a client of rank r holds of a vector of the largest rank.

        Args:
            vector: ``spec.size(kinds)`` elements, in canonical order.
            r: rank.
            kinds: of the factors in the vector.

        Raises:
            SchemaMismatch: for a vector of another length.
        """
        _require(vector, self.spec.size(kinds))
        return vector if r == self.spec.r else vector[self._held(r, kinds)]

    def widen(self, vector: Vector, r: int, kinds: str) -> Vector:
        """Return a vector of rank r among zeros: the inverse of :meth:`narrow` on what is held.

        Its norm is that of the vector, so a clip of one is a clip of the other.

        Raises:
            SchemaMismatch: for a vector of another length.
        """
        _require(vector, self.size(r, kinds))
        if r == self.spec.r:
            return vector
        found = np.zeros(self.spec.size(kinds), dtype=vector.dtype)
        found[self._held(r, kinds)] = vector
        return found

    def per_holder(self, kinds: str) -> NDArray[np.float64]:
        """Return by what a mean over the cohort is multiplied to be one over expected holders.

        That is the population over the clients whose rank reaches the coordinate; constants of the
        scenario. Applied after noise it is post-processing, and the noise on a coordinate grows
        with it. Applied before, the sensitivity would be that of the largest of them.

        Args:
            kinds: of the factors in the vector.

        Returns:
            Shape ``(spec.size(kinds),)``, each at least 1; 1 for a column that nobody holds.
        """
        holders = np.array([np.count_nonzero(self._ranks > j) for j in range(self.spec.r)])
        weights = self._ranks.size / np.maximum(holders, 1)
        weights[holders == 0] = 1.0
        parts = [self._by_column(f, weights) for f in self.spec.of_kind(kinds)]
        return np.concatenate(parts)

    def _by_column(self, factor: Factor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight of each coordinate of a factor, flat."""
        if not self._nested(factor):
            return np.ones(factor.size)
        along = weights[:, None] if factor.kind == "A" else weights[None, :]
        return np.ascontiguousarray(np.broadcast_to(along, factor.shape)).reshape(-1)

    def _held(self, r: int, kinds: str) -> NDArray[np.int64]:
        """Return the places of rank r's coordinates in a vector of the largest rank."""
        if (r, kinds) not in self._places:
            parts, start = [], 0
            for factor in self.spec.of_kind(kinds):
                places = np.arange(start, start + factor.size).reshape(factor.shape)
                start += factor.size
                if self._nested(factor):
                    places = places[:r] if factor.kind == "A" else places[:, :r]
                parts.append(places.reshape(-1))
            self._places[r, kinds] = np.concatenate(parts)
        return self._places[r, kinds]

    def _nested(self, factor: Factor) -> bool:
        """Tell whether a factor has a column (a row of A) for each rank."""
        return factor.low_rank or not self.spec.head


def mixed_ranks(config: RunConfig, spec: AdapterSpec) -> MixedRanks | None:
    """Return the ranks of a scenario's clients; None where all have ``lora.r``.

    Args:
        config: the scenario, checked.
        spec: its adapter, of rank ``lora.r``.

    Raises:
        ConflictingSettings: if the population is not said.
    """
    if not config.devices.ranks:
        return None
    population = config.clients.population
    if population is None:
        msg = "devices.ranks needs clients.population."
        raise ConflictingSettings(msg)
    names = assigned(config.devices.shares, population=population, seed=config.run.seed)
    ranks = config.devices.ranks_within(config.lora.r)
    return MixedRanks(spec, np.array([ranks[name] for name in names], dtype=np.int64))


def _require(vector: Vector, size: int) -> None:
    """Refuse a vector of another length."""
    if vector.shape != (size,):
        msg = f"Found a vector of shape {vector.shape}, expected ({size},)."
        raise SchemaMismatch(msg)
