"""From two adapters to what a client may send, one function per mode.

An update that is not finite becomes the zero update in every mode: a failure then reveals nothing
and cannot spoil a mean.
"""

from __future__ import annotations

import numpy as np

from shared.errors import SensitivityError
from shared.lora import Vector
from shared.privacy.mechanism import AdapterDelta, ClippedDelta, clip_update


def plain_update(before: Vector, after: Vector) -> Vector:
    """Return a client's change of the adapter as it is (mode ``none``).

    Args:
        before: the trained factors as they were received, float32, shape ``(d,)``.
        after: the same factors after local training.

    Returns:
        ``after - before``, float32, finite.

    Raises:
        SensitivityError: if the two vectors do not have the same shape.
    """
    return _change(before, after).vector


def noised_update(before: Vector, after: Vector) -> Vector:
    """Return a change that DP-SGD made (mode ``example``).

    Every step was noised before it moved the factors, so the change is post-processing of released
    values and needs no bound of its own.

    Args:
        before: the trained factors as they were received, float32, shape ``(d,)``.
        after: the same factors after :func:`client.training.train_private`.

    Returns:
        ``after - before``, float32, finite.

    Raises:
        SensitivityError: if the two vectors do not have the same shape.
    """
    return _change(before, after).vector


def clipped_update(before: Vector, after: Vector, *, clipping_norm: float) -> ClippedDelta:
    """Return a change whose L2 norm over all coordinates is bounded (mode ``client-central``).

    Args:
        before: the trained factors as they were received, float32, shape ``(d,)``.
        after: the same factors after local training.
        clipping_norm: the bound, finite and > 0.

    Returns:
        The clipped change with its bound; the zero update if the change is not finite.

    Raises:
        SensitivityError: if the two vectors do not have the same shape.
        InvalidValue: if the clipping norm is not finite and positive.
    """
    return clip_update(_change(before, after), clipping_norm=clipping_norm)


def make_update(
    before: Vector, after: Vector, *, clipping_norm: float | None
) -> AdapterDelta | ClippedDelta:
    """Return a client's change as the stage that a clipping norm, or its absence, allows.

    Args:
        before: the trained factors as they were received, float32, shape ``(d,)``.
        after: the same factors after local training.
        clipping_norm: the bound on the whole update; None in modes that do not clip updates.

    Raises:
        SensitivityError: if the two vectors do not have the same shape.
        InvalidValue: if the clipping norm is not finite and positive.
    """
    if clipping_norm is None:
        return _change(before, after)
    return clipped_update(before, after, clipping_norm=clipping_norm)


def _change(before: Vector, after: Vector) -> AdapterDelta:
    """Return ``after - before``, or zero if any coordinate is not finite."""
    if before.shape != after.shape:
        msg = f"An update runs from shape {before.shape} to {after.shape}, expected one shape."
        raise SensitivityError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        change = np.subtract(after, before, dtype=np.float32)
    if not np.isfinite(change).all():
        change = np.zeros_like(change)
    return AdapterDelta(vector=change)
