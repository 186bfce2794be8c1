"""What the server needs to go on after being killed: one file a round, whole or not there.

The checkpoint of a round is the release of that round: it is written after the ledger was charged
and before the charge is marked committed, so that a crash in between over-counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from shared.errors import NotResumable
from shared.files import write_bytes
from shared.lora import Vector
from shared.residual import Residual

NAME = "checkpoint.safetensors"
_FORMAT = 1
_WAITING = "waiting."
_REFERENCE = "reference"
_BENEATH = "beneath."


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a run after a finished round.

    Attributes:
        server_round: the last finished round; 0 before the first.
        config_digest: the scenario it belongs to.
        vector: the global adapter's trained factors.
        average: running mean of the last rounds' adapters (zeros when unused).
        averaged: how many rounds went into ``average``.
        optimizer: the server optimizer's moments.
        optimizer_steps: how many updates it applied.
        record: the metrics line of the round.
        clip: the clip of the next round under quantile clipping, else None. It was released with
            the round, so keeping it costs nothing. Files from before it existed read as None.
        asynchronous: who is at work, in an asynchronous run; empty in a synchronous one.
        waiting: updates of an asynchronous run that no step has counted yet.
        reference: the adapter that the next vote compares with, where clients vote, else None.
        residual: what lies beneath the adapter, under policy ``fedex``.
    """

    server_round: int
    config_digest: str
    vector: Vector
    average: NDArray[np.float64]
    averaged: int
    optimizer: Mapping[str, NDArray[np.float64]]
    optimizer_steps: int
    record: Mapping[str, Any] = field(default_factory=dict)
    clip: float | None = None
    asynchronous: Mapping[str, Any] = field(default_factory=dict)
    waiting: Mapping[str, Vector] = field(default_factory=dict)
    reference: Vector | None = None
    residual: Residual | None = None


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint atomically.

    Raises:
        OutOfDisk: when no space is left; the previous checkpoint is intact.
    """
    header = {
        "format": _FORMAT,
        "server_round": checkpoint.server_round,
        "config_digest": checkpoint.config_digest,
        "averaged": checkpoint.averaged,
        "optimizer_steps": checkpoint.optimizer_steps,
        "record": dict(checkpoint.record),
    }
    if checkpoint.clip is not None:
        header["clip"] = checkpoint.clip
    tensors: dict[str, NDArray[Any]] = {
        "vector": checkpoint.vector,
        "average": checkpoint.average,
    }
    if checkpoint.reference is not None:
        tensors[_REFERENCE] = checkpoint.reference
    if checkpoint.asynchronous:
        header["asynchronous"] = dict(checkpoint.asynchronous)
    tensors |= {f"optimizer.{name}": value for name, value in checkpoint.optimizer.items()}
    tensors |= {_WAITING + name: value for name, value in checkpoint.waiting.items()}
    if checkpoint.residual is not None:
        tensors |= {_BENEATH + k: v for k, v in checkpoint.residual.tensors().items()}
    write_bytes(folder / NAME, save(tensors, metadata={"fedslm": json.dumps(header)}))


def read_checkpoint(folder: Path, *, config_digest: str) -> Checkpoint | None:
    """Read the folder's checkpoint.

    Args:
        folder: the run folder.
        config_digest: the scenario that wants to go on.

    Returns:
        The checkpoint, or None if no round was finished.

    Raises:
        NotResumable: if it is damaged or belongs to another scenario.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            header = json.loads(stream.metadata()["fedslm"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        waiting = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_WAITING)}
        beneath = {k: tensors.pop(k) for k in list(tensors) if k.startswith(_BENEATH)}
        found = Checkpoint(
            server_round=int(header["server_round"]),
            config_digest=str(header["config_digest"]),
            reference=tensors.pop(_REFERENCE, None),
            vector=tensors.pop("vector"),
            average=tensors.pop("average"),
            averaged=int(header["averaged"]),
            optimizer={k.removeprefix("optimizer."): v for k, v in tensors.items()},
            optimizer_steps=int(header["optimizer_steps"]),
            record=header["record"],
            clip=None if header.get("clip") is None else float(header["clip"]),
            asynchronous=dict(header.get("asynchronous", {})),
            waiting={k.removeprefix(_WAITING): v for k, v in waiting.items()},
            residual=Residual.of_tensors({k.removeprefix(_BENEATH): v for k, v in beneath.items()}),
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{NAME} cannot be read."
        raise NotResumable(msg, hint="Start a new run in another folder.") from error
    if header.get("format") != _FORMAT or found.config_digest != config_digest:
        msg = "The run folder belongs to another scenario than the one given."
        raise NotResumable(
            msg, hint="Resume with the folder's own config.toml, or choose another --out."
        )
    return found
