"""What a run left behind that an audit of the mechanism may read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.audit.protocol import Floats
from shared.errors import InvalidValue
from shared.lora import Vector
from shared.privacy.plan import PrivacyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """One finished round, as ``metrics.jsonl`` has it.

    Args:
        server_round: from 1.
        cohort: clients that were sampled.
        answered: clients whose update went in.
        aborted: whether nothing was released.
        clipping_norm: the clip in force; None in modes without one.
    """

    server_round: int
    cohort: int
    answered: int
    aborted: bool
    clipping_norm: float | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Releases:
    """What each round released: the noised mean update, before the server's optimizer.

    Args:
        rounds: numbers of the rounds that released something, ascending.
        values: shape ``(len(rounds), m)``, float64.
        coordinates: which of the adapter's ``d`` trained parameters were kept, ascending, chosen by
            a public seed before the run; None where all were kept (``m = d``).
        others: rounds whose releases were kept too but are of other factors; not in ``values``.
    """

    rounds: tuple[int, ...]
    values: Floats
    coordinates: NDArray[np.int64] | None = None
    others: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shapes that do not belong together.

        Raises:
            InvalidValue: if rows or columns do not match, or a value is not finite.
        """
        wide = None if self.coordinates is None else self.coordinates.size
        if self.values.ndim != 2 or self.values.shape[0] != len(self.rounds):
            msg = f"releases.shape={self.values.shape}, expected ({len(self.rounds)}, m)."
            raise InvalidValue(msg)
        if wide is not None and self.values.shape[1] != wide:
            msg = f"releases.shape={self.values.shape}, expected {wide} columns."
            raise InvalidValue(msg)
        if not np.isfinite(self.values).all():
            msg = "a release is not finite, expected finite values."
            raise InvalidValue(msg)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunRecord:
    """What a run left behind: plan, rounds, releases and the adapter before and after.

    Args:
        plan: the frozen privacy plan.
        population: clients that could be sampled, canary clients included.
        rounds: every finished round, ascending.
        initial: the trained factors before the first round, shape ``(d,)``.
        released: the trained factors of the released adapter, shape ``(d,)``.
        releases: what each round released; None for a run that did not keep it.
        replayed: the adapter that the releases give when the server's optimizer is run over them
            again; None without all coordinates of all releases.
    """

    plan: PrivacyPlan
    population: int
    rounds: tuple[RoundRecord, ...]
    initial: Vector
    released: Vector
    releases: Releases | None = None
    replayed: Vector | None = None

    @property
    def dimension(self) -> int:
        """Number of trained parameters."""
        return int(self.released.size)
