"""What would have left a client after one step, at each stage of its protection.

The steps, the clip and the shares are those of the client's own code; the texts are given as
tokens. The model is left with the factors that it had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.clipping import make_clipper
from client.losses import collate
from client.training import Example, TrainSettings, train_plain, train_private
from client.update import clipped_update
from server.audit.inverter import Tokens
from shared.errors import AuditError
from shared.lora import Vector
from shared.privacy.distributed import to_signed
from shared.privacy.noise import NoiseSource
from shared.seeding import data_rng

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.privacy.mechanism import ClippedDelta


class OneStep:
    """Takes one step on some texts from the factors that the model has.

    Args:
        runtime: whose scenario, plan and model it is.
    """

    def __init__(self, runtime: ClientRuntime) -> None:
        self._runtime, self._model, self._plan = runtime, runtime.model, runtime.plan
        config = runtime.config
        self._kinds = config.sent_kinds(config.policy_facts.probed_round)

    @property
    def sent(self) -> str:
        """Return the stage that the server sees."""
        if self._plan.mode == "client-central" and self._plan.example is not None:
            return "noised"
        return {"none": "plain", "client-central": "clipped", "example": "noised"}.get(
            self._plan.mode, "summed"
        )

    def makers(self) -> dict[str, Callable[[Sequence[Sequence[Tokens]], int], Vector]]:
        """Return what makes the update of each arm, from the texts of each client."""
        return {
            "plain": lambda groups, number: self.step(groups[0]),
            "clipped": lambda groups, number: self._clipped(groups[0]),
            "noised": lambda groups, number: self._noised(groups[0], number),
            "summed": self._summed,
        }

    def step(self, texts: Sequence[Tokens]) -> Vector:
        """Return the change of one plain step on all of some texts."""
        return self._changed(
            lambda: train_plain(
                self._model,
                _examples(texts),
                self._settings_of(len(texts)),
                rng=data_rng(0, "inversion-batches"),
            )
        )

    def _changed(self, train: Callable[[], object]) -> Vector:
        """Return what training changes, and undo it."""
        before = self._model.read_vector(self._kinds)
        train()
        change = self._model.read_vector(self._kinds) - before
        self._model.load_vector(before, self._kinds)
        return change

    def _settings_of(self, texts: int) -> TrainSettings:
        """Return one step on so many texts."""
        rate = self._runtime.config.clients.learning_rate
        return TrainSettings(local_steps=1, batch_size=texts, learning_rate=rate)

    def _clipped(self, texts: Sequence[Tokens]) -> Vector:
        """Clip as the plan does: the update, or each text's gradient in mode example."""
        if self._plan.mode != "example":
            return self._clip(self.step(texts)).vector
        norm = self._plan.max_grad_norm or 1.0
        with make_clipper("fused", self._model) as engine:
            batch = collate(_examples(texts), 0).to(self._model.device)
            gradients = engine.clipped_sum(batch, norm)
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).cpu().numpy()
        return np.asarray(-flat, dtype=np.float32)

    def _clip(self, change: Vector) -> ClippedDelta:
        """Clip a whole update."""
        norm = self._plan.clipping_norm
        if norm is None:
            msg = f"mode={self._plan.mode!r} clips no update."
            raise AuditError(msg)
        return clipped_update(np.zeros_like(change), change, clipping_norm=norm)

    def _noised(self, texts: Sequence[Tokens], number: int) -> Vector:
        """Add the plan's noise: inside the steps, or all the noise of a sum to one update.

        The latter is what someone has who knows every other update of the sum.
        """
        steps = self._plan if self._plan.mode == "example" else self._plan.example
        if steps is not None:
            change = self._changed(
                lambda: train_private(
                    self._model,
                    _examples(texts),
                    self._settings_of(len(texts)),
                    max_grad_norm=steps.max_grad_norm or 1.0,
                    noise_multiplier=steps.noise_multiplier or 1.0,
                    sampling_probability=1.0,
                    source=self._source(number, len(texts)),
                )
            )
            return change if self._plan.mode == "example" else self._clip(change).vector
        clipped = self._clip(self.step(texts))
        stddev = (self._plan.noise_multiplier or 0.0) * clipped.bound
        noise = self._source(number, len(texts)).normal(clipped.vector.size)
        return np.asarray(clipped.vector + stddev * noise, dtype=np.float32)

    def _summed(self, groups: Sequence[Sequence[Tokens]], number: int) -> Vector:
        """Sum what clients send: with its noise where each of them adds some."""
        total = np.zeros(self._model.spec.size(self._kinds), dtype=np.float64)
        for place, texts in enumerate(groups):
            if self._plan.mode == "client-distributed":
                mechanism = self._plan.distributed_mechanism
                share = mechanism.share(
                    self._clip(self.step(texts)),
                    cohort=len(groups),
                    source=self._source(number, place),
                )
                total += to_signed(share.words) * (mechanism.clipping_norm / mechanism.grid)
            else:
                total += self.makers()[self.sent](
                    [texts], number * len(groups) + place if self.sent == "noised" else number
                )
        return np.asarray(total, dtype=np.float32)

    def _source(self, number: int, place: int) -> NoiseSource:
        """Return the noise of one update; the same again in the same audit."""
        return NoiseSource.seeded(self._runtime.config.run.seed, "inversion", number, place)


def _examples(texts: Sequence[Tokens]) -> list[Example]:
    """Return texts as training sees them, with a loss on every token."""
    rows = [np.array(text, dtype=np.int64) for text in texts]
    return [Example(ids=row, labels=row.copy()) for row in rows]
