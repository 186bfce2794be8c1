"""What a client did not send yet: kept between its rounds where the link sends the largest alone.

A residual is made of the client's own updates and is as sensitive as they are before they leave: it
stays where the client's text is. Two of them are kept, of the last two rounds that the client
answered, because a round that is asked again, after a crash, must start from what was left before
it and not from what its first answer left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.files import disk_errors, write_bytes
from shared.lora import Vector

FOLDER = "residuals"
_KEPT = 2

logger = logging.getLogger("fedslm.client")

Rounds = Mapping[int, Vector]


@dataclass(frozen=True, slots=True)
class Known:
    """The residuals of one client in one run, by the round that left them."""

    run_id: str
    rounds: Rounds


class Residuals(Protocol):
    """Keeps one :class:`Known` for each client."""

    def read(self, client: int) -> Known | None:
        """Return what is known of a client; None if nothing is."""

    def write(self, client: int, known: Known) -> None:
        """Replace what is known of a client, whole or not at all."""


class MemoryResiduals:
    """Residuals of a process that is never continued, such as an audit's."""

    def __init__(self) -> None:
        self._known: dict[int, Known] = {}

    def read(self, client: int) -> Known | None:
        """Return what is known of a client."""
        return self._known.get(client)

    def write(self, client: int, known: Known) -> None:
        """Replace what is known of a client."""
        self._known[client] = known


class StoredResiduals:
    """Residuals in a folder that only the owner of the text may read, one file a client.

    A file that cannot be read counts as none: what it held is not sent, which costs accuracy and
    promises nothing less.

    Args:
        folder: made when the first residual is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, client: int) -> Known | None:
        """Return what is known of a client."""
        path = self._path(client)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="np") as stream:
                facts = json.loads(stream.metadata()["fedslm"])
                found = {int(n): _row(stream.get_tensor(n)) for n in stream.keys()}  # noqa: SIM118
            return Known(str(facts["run_id"]), found)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            logger.warning("%s cannot be read; what it held is not sent", path.name)
            return None

    def write(self, client: int, known: Known) -> None:
        """Replace what is known of a client.

        Raises:
            OutOfDisk: when no space is left; the previous file is intact.
            RunFolderError: for any other failure to write.
        """
        path = self._path(client)
        with disk_errors(path):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tensors = {str(number): vector for number, vector in known.rounds.items()}
        facts = {"fedslm": json.dumps({"run_id": known.run_id})}
        write_bytes(path, save(tensors, metadata=facts))

    def _path(self, client: int) -> Path:
        return self._folder / f"client-{client}.safetensors"


class Feedback:
    """Adds to an update what earlier ones left, and keeps what this one leaves.

    Args:
        residuals: where it is kept.
    """

    def __init__(self, residuals: Residuals) -> None:
        self._residuals = residuals

    def left_before(self, client: int, run_id: str, server_round: int, size: int) -> Vector:
        """Return what the rounds of a run before one have left; zeros if nothing."""
        earlier = self._earlier(client, run_id, server_round, size)
        return earlier[max(earlier)] if earlier else np.zeros(size, dtype=np.float32)

    def keep(self, client: int, run_id: str, server_round: int, left: Vector) -> None:
        """Keep what a round leaves, and forget all but the round before it.

        Rounds from this one on are forgotten too: they are asked again.
        """
        earlier = self._earlier(client, run_id, server_round, left.size)
        kept = sorted(earlier)[-(_KEPT - 1) :]
        rounds = {number: earlier[number] for number in kept} | {server_round: left}
        self._residuals.write(client, Known(run_id, rounds))

    def _earlier(self, client: int, run_id: str, server_round: int, size: int) -> dict[int, Vector]:
        """Return what earlier rounds of the same run left, of the right size."""
        known = self._residuals.read(client)
        if known is None or known.run_id != run_id:
            return {}
        return {
            number: vector
            for number, vector in known.rounds.items()
            if number < server_round and vector.shape == (size,)
        }


def _row(array: np.ndarray) -> Vector:
    """Return a stored residual, if it is one.

    Raises:
        ValueError: if it is no flat vector of finite float32.
    """
    if array.dtype != np.float32 or array.ndim != 1 or not np.isfinite(array).all():
        msg = "not a residual"
        raise ValueError(msg)
    return array
