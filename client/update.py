"""From two adapters to what a client may send."""

from __future__ import annotations

import numpy as np

from shared.errors import SensitivityError
from shared.lora import Vector
from shared.privacy.mechanism import AdapterDelta, ClippedDelta, clip_update


def make_update(
    before: Vector, after: Vector, *, clipping_norm: float | None
) -> AdapterDelta | ClippedDelta:
    """Return a client's change of the adapter as the stage that its mode allows.

    Guarantee:
        With a ``clipping_norm``, the result's L2 norm over all coordinates is at most that. An
        update that is not finite becomes the zero update, in every mode, so that a failure reveals
        nothing and cannot spoil a mean.

    Args:
        before: the trained factors as they were received, float32, shape ``(d,)``.
        after: the same factors after local training.
        clipping_norm: the bound on the whole update; None in modes that do not clip updates.

    Returns:
        A :class:`ClippedDelta`, or without a clipping norm an :class:`AdapterDelta`.

    Raises:
        SensitivityError: if the two vectors do not have the same shape.
        InvalidValue: if the clipping norm is not finite and positive.
    """
    if before.shape != after.shape:
        msg = f"An update runs from shape {before.shape} to {after.shape}, expected one shape."
        raise SensitivityError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        change = np.subtract(after, before, dtype=np.float32)
    if not np.isfinite(change).all():
        change = np.zeros_like(change)
    delta = AdapterDelta(vector=change)
    return delta if clipping_norm is None else clip_update(delta, clipping_norm=clipping_norm)
