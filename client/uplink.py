"""From a client's update to the bytes that leave: after the clip, or after the noise.

What a code reads has passed what the privacy mode asks of a client. With ``topk`` the client adds
what its earlier updates left and cuts what it sends to the clip again: its part in the sum of any
round is within the clip, whatever it remembers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from client.residuals import Feedback, MemoryResiduals, Residuals
from shared.errors import InvalidValue
from shared.link import Coded, uplink
from shared.linkcodes import Largest
from shared.privacy.noise import SEEDED, NoiseSource
from shared.privacy.norms import norm_of

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.lora import Vector
    from shared.privacy.plan import PrivacyPlan
    from shared.wire import Instruction

_LONGEST = 1e6


class Uplink:
    """Codes the updates of a scenario.

    Args:
        config: the scenario.
        plan: says whether draws come from the operating system or, in a rehearsal, from the seed.
        residuals: where is kept what was not sent; in memory if not given.
    """

    def __init__(
        self, config: RunConfig, plan: PrivacyPlan, residuals: Residuals | None = None
    ) -> None:
        self._link = uplink(config.link)
        self._keep = config.link.keep
        self._seed = config.run.seed
        self._seeded = plan.mode == "none" or plan.noise_source == SEEDED
        self._feedback = Feedback(residuals or MemoryResiduals())

    def code(
        self, index: int, instruction: Instruction, vector: Vector, *, clipping_norm: float | None
    ) -> Coded | None:
        """Return an update's bytes; None where the scenario sends float32.

        Args:
            index: which client of the population.
            instruction: what the update answers.
            vector: the update, finite; clipped or noised as the mode asks.
            clipping_norm: the L2 bound that what is written keeps too; None without one.
        """
        if self._link is None:
            return None
        code = self._link.code
        source = self._source(index, instruction.server_round)
        if not isinstance(code, Largest):
            return self._link.encode(vector, source.uniform)
        asked = (index, instruction.run_id, instruction.server_round)
        wanted = vector + self._feedback.left_before(*asked, vector.size)
        if not np.isfinite(wanted).all():
            wanted = vector
        norm = norm_of(wanted[code.places(wanted)])
        limit = _LONGEST if clipping_norm is None else clipping_norm
        shrunk = wanted if norm <= limit else (wanted * (limit / norm)).astype(np.float32)
        coded = self._link.encode(shrunk, source.uniform)
        left = wanted - self._link.decode(coded, vector.size)
        self._feedback.keep(*asked, _bounded(left, 2.0 * limit / self._keep))
        return coded

    def _source(self, index: int, server_round: int) -> NoiseSource:
        """Return the draws of one update's rounding, from no stream of anything else."""
        if self._seeded:
            return NoiseSource.seeded(self._seed, "link-rounding", index, server_round)
        return NoiseSource.from_os()


def _bounded(vector: Vector, longest: float) -> Vector:
    """Return a vector, scaled down to a norm."""
    if not longest > 0:
        msg = f"longest={longest!r}, expected > 0."
        raise InvalidValue(msg)
    norm = norm_of(vector)
    if not np.isfinite(norm):
        return np.zeros_like(vector)
    return vector if norm <= longest else (vector * (longest / norm)).astype(np.float32)
