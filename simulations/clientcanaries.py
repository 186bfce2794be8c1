"""Canary clients: participants without text that answer every round in a fixed random direction.

They come after the real clients and take part under the same sampling, clip, noise and secure
aggregation. How far a release leans towards their directions is what the ``client-canary`` audit
measures. They are real participants of the mechanism and nobody's data: k of them among N clients
add at most k clips to a sum, in random directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.data import ClientData
from server.audit.canaryrehearsal import LONG
from server.audit.directions import unit_direction
from shared import validate
from shared.config import RunConfig
from shared.errors import ConflictingSettings
from shared.lora import Vector
from simulations.dataset import FederatedDataset, require_index


@dataclass(frozen=True, slots=True, kw_only=True)
class WithClientCanaries:
    """A dataset with canary clients after its own.

    Attributes:
        dataset: the real clients, indices 0 to N - 1.
        count: k >= 1 canary clients, indices N to N + k - 1.
        seed: the run's seed; draws the directions.
        norm: length of a canary's update, > 0, in parameter units. Beyond the clip wherever there
            is one, so that the clip is put to work.

    Raises:
        InvalidValue: if a number is out of range.
    """

    dataset: FederatedDataset
    count: int
    seed: int
    norm: float

    def __post_init__(self) -> None:
        """Refuse a count or a length that is none."""
        validate.positive_integer(count=self.count)
        validate.positive(norm=self.norm)

    @property
    def population(self) -> int:
        """Number of clients, canary clients included."""
        return self.dataset.population + self.count

    def client(self, index: int) -> ClientData:
        """Return the records of one client; a canary client has none."""
        require_index(index, self.population)
        canary = self._canary(index)
        if canary is None:
            return self.dataset.client(index)
        return ClientData(name=f"canary:{canary}", train=[], holdout=[])

    def direction(self, index: int, dimension: int) -> Vector | None:
        """Return what a canary client answers with, float32 ``(dimension,)``; None for the others.

        Args:
            index: which client of the population.
            dimension: number of trained parameters that are aggregated.
        """
        require_index(index, self.population)
        canary = self._canary(index)
        if canary is None:
            return None
        found = self.norm * unit_direction(self.seed, canary, dimension)
        return np.asarray(found, dtype=np.float32)

    def describe(self) -> dict[str, object]:
        """Return the dataset's public facts and how many canary clients there are."""
        return {**self.dataset.describe(), "client_canaries": self.count}

    def _canary(self, index: int) -> int | None:
        """Return which canary a client is, from 0; None for a real client."""
        canary = int(index) - self.dataset.population
        return canary if canary >= 0 else None


def with_client_canaries(dataset: FederatedDataset, config: RunConfig) -> FederatedDataset:
    """Return the dataset with the canary clients that a scenario asks for, or as it was.

    Their updates are 10,000 clips long, so that every one is clipped. Where nothing is clipped
    (mode none) they are one clip long, or 1 without a clip: longer ones would destroy the adapter.

    Args:
        dataset: the real clients, with their canary records if there are any.
        config: the scenario, with ``audit.client_canaries``.

    Raises:
        ConflictingSettings: in mode example, where a client's update is what its noised steps made
            and nothing clips it.
    """
    count = config.audit.client_canaries
    if count == 0:
        return dataset
    privacy = config.privacy
    if privacy.mode == "example":
        msg = "audit.client_canaries cannot be used together with mode example: no update of a "
        msg += "whole client is clipped there."
        raise ConflictingSettings(msg, hint="Use audit.canaries, which plants records.")
    clip = privacy.clipping_norm or 1.0
    norm = clip if privacy.mode == "none" else LONG * clip
    return WithClientCanaries(dataset=dataset, count=count, seed=config.run.seed, norm=norm)
