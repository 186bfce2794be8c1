"""What each round released, kept so that an auditor can look at the noise.

A release is the noised mean of a round, before the server's optimizer. The guarantee is about just
this: whoever sees all releases learns no more than epsilon allows, and the adapters that clients
are sent are computed from them. So keeping them costs nothing in the modes whose mean is noised
(client-central in all its forms, client-distributed, and example, where it is a mean of updates
that were noised before they were sent). In mode none a release is a mean of plain updates and as
unprotected as the adapter.

A round's release is written before its checkpoint under a name that nobody reads, and gets its
name after the checkpoint, which makes the round final. Whatever is left of a round that was not
finished is deleted before the round is repeated: under correlated noise the repeated round may add
the same noise to another sum.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from server.audit.runrecord import Releases
from server.setup import RunSetup
from shared.config import RunConfig
from shared.errors import AuditError, InvalidValue
from shared.files import disk_errors, write_bytes
from shared.seeding import data_rng

FOLDER = "releases"
COORDINATES = "coordinates.safetensors"
FIRST_KIND = "B"
"""What is released first where factors take turns, and what audits of the noise read."""
MOST_BYTES = 64 * 2**20
"""Bytes that the releases of a run may take; above, some coordinates are kept and not all."""

_FORMAT = 1
_NAME = re.compile(r"round-(\d{5,})\.safetensors")
_PENDING = re.compile(r"pending-(\d{5,})\.safetensors")

logger = logging.getLogger("fedslm.server")


class ReleaseRecorder:
    """Keeps the releases of a run in its folder, if the scenario asks so.

    Args:
        setup: the run; ``audit.releases`` of its scenario switches recording off.
    """

    def __init__(self, setup: RunSetup) -> None:
        self._wanted = setup.config.audit.releases
        self._folder = setup.folder / FOLDER
        self._digest = setup.config.digest()
        self._policy = setup.config.policy_facts
        self._sizes = {kinds: setup.spec.size(kinds) for kinds in self._policy.cycle}
        self._seed = setup.config.run.seed
        self._rounds = setup.config.run.rounds
        self._coordinates: dict[str, NDArray[np.int64]] = {}

    def begin(self, finished_rounds: int) -> None:
        """Make ready for the round after ``finished_rounds``; unfinished rounds are forgotten.

        Raises:
            AuditError: if the coordinates of a run that goes on cannot be read.
            RunFolderError: if the folder cannot be written.
        """
        if not self._wanted:
            return
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self._folder.iterdir()):
                self._settle(path, finished_rounds)
        for kinds, size in self._sizes.items():
            if kept_coordinates(size, rounds=self._rounds) < size:
                self._coordinates[kinds] = self._chosen(kinds)

    def keep(self, server_round: int, mean: NDArray[np.float64]) -> None:
        """Write a round's release, before the checkpoint that makes it final.

        Args:
            server_round: from 1.
            mean: the noised mean, shape ``(d,)``; stored as float32.

        Raises:
            RunFolderError: if it cannot be written.
        """
        if not self._wanted:
            return
        kinds = self._policy.sent(server_round)
        chosen = self._coordinates.get(kinds)
        values = mean if chosen is None else mean[chosen]
        header = {
            "format": _FORMAT,
            "round": server_round,
            "size": self._sizes[kinds],
            "config_digest": self._digest,
        }
        if self._policy.alternates:
            header["kinds"] = kinds
        data = save(
            {"values": np.ascontiguousarray(values, dtype=np.float32)},
            metadata={"fedslm": json.dumps(header)},
        )
        write_bytes(self._path("pending", server_round), data)

    def publish(self, server_round: int) -> None:
        """Give a round's release its name, after its checkpoint.

        Raises:
            RunFolderError: if it cannot be renamed.
        """
        pending = self._path("pending", server_round)
        if self._wanted and pending.exists():
            with disk_errors(pending):
                pending.replace(self._path("round", server_round))

    def _path(self, state: str, server_round: int) -> Path:
        """Return the file of a round."""
        return self._folder / f"{state}-{server_round:05d}.safetensors"

    def _settle(self, path: Path, finished_rounds: int) -> None:
        """Name, keep or delete what an earlier process left."""
        named, pending = _NAME.fullmatch(path.name), _PENDING.fullmatch(path.name)
        found = named or pending
        if found is None:
            return
        server_round = int(found.group(1))
        if server_round > finished_rounds:
            path.unlink()
        elif pending is not None:
            path.replace(self._path("round", server_round))

    def _chosen(self, kinds: str) -> NDArray[np.int64]:
        """Return the coordinates that are kept: those on disk, else chosen by the run's seed."""
        first, size = kinds == self._policy.cycle[0], self._sizes[kinds]
        path = self._folder / _coordinates_name(None if first else kinds)
        kept = kept_coordinates(size, rounds=self._rounds)
        if path.exists():
            return _read_coordinates(path, size=size, kept=kept)
        # Public like the seed: who knows them in advance gains nothing, as no noise depends on it.
        labels = ("kept-coordinates",) if first else ("kept-coordinates", kinds)
        rng = data_rng(self._seed, *labels)
        chosen = np.sort(rng.choice(size, size=kept, replace=False)).astype(np.int64)
        header = {"format": _FORMAT, "size": size, "seed": self._seed}
        data = save({"coordinates": chosen}, metadata={"fedslm": json.dumps(header)})
        write_bytes(path, data)
        logger.info("keeping %d of %d coordinates of each release", kept, size)
        return chosen


def kept_coordinates(size: int, *, rounds: int) -> int:
    """Return how many coordinates of a release are kept: all, or what :data:`MOST_BYTES` allow."""
    return min(size, max(1, MOST_BYTES // (4 * rounds)))


def read_releases(folder: Path, *, kinds: str = FIRST_KIND) -> Releases | None:
    """Read what the finished rounds of a run released.

    Args:
        folder: the run folder.
        kinds: which rounds are read where factors take turns; others are named, not read.

    Returns:
        The releases in ascending order; None if the run kept none.

    Raises:
        AuditError: if a file is damaged, or belongs to another run or another round.
    """
    home = folder / FOLDER
    if not home.is_dir():
        return None
    files = {int(m.group(1)): p for p in home.iterdir() if (m := _NAME.fullmatch(p.name))}
    everything = {number: _read_round(files[number], number) for number in sorted(files)}
    read = {n: one for n, one in everything.items() if one[0].get("kinds", kinds) == kinds}
    if not read:
        return None
    digests = {header["config_digest"] for header, _ in everything.values()}
    if len({header["size"] for header, _ in read.values()}) != 1 or len(digests) != 1:
        msg = "the releases belong to different runs."
        raise AuditError(msg, hint=_HINT)
    header, first = next(iter(read.values()))
    if any(values.size != first.size for _, values in read.values()):
        msg = "the releases have different numbers of coordinates."
        raise AuditError(msg, hint=_HINT)
    coordinates, size = None, header["size"]
    if first.size != size:
        turns = "kinds" in header and kinds != FIRST_KIND
        path = home / _coordinates_name(kinds if turns else None)
        coordinates = _read_coordinates(path, size=size, kept=first.size)
    try:
        return Releases(
            rounds=tuple(read),
            values=np.stack([values for _, values in read.values()]).astype(np.float64),
            coordinates=coordinates,
            others=tuple(number for number in everything if number not in read),
        )
    except InvalidValue as error:
        raise AuditError(error.message, hint=_HINT) from error


def read_all_releases(folder: Path, config: RunConfig) -> dict[str, Releases]:
    """Read the releases of a run by the kinds of factors that they are of.

    Raises:
        AuditError: if a file is damaged, or belongs to another run or another round.
    """
    cycle = dict.fromkeys(config.policy_facts.cycle)
    found = {kinds: read_releases(folder, kinds=kinds) for kinds in cycle}
    return {kinds: releases for kinds, releases in found.items() if releases is not None}


def _coordinates_name(kinds: str | None) -> str:
    """Return the file that names the kept coordinates; the first kinds have the plain name."""
    return COORDINATES if kinds is None else f"coordinates-{kinds}.safetensors"


_HINT = "Copy the whole run folder again; the releases of one run cannot be mixed."


def _read_round(path: Path, server_round: int) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Read one release and check that it is this round's."""
    header, tensors = _read(path)
    values = tensors.get("values")
    if values is None or values.ndim != 1 or values.dtype != np.float32 or values.size < 1:
        msg = f"{path.name} holds no release."
        raise AuditError(msg, hint=_HINT)
    size, digest = header.get("size"), header.get("config_digest")
    good = type(size) is int and size >= values.size and isinstance(digest, str)
    if not (good and header.get("round") == server_round):
        msg = f"{path.name} does not describe the release of round {server_round}."
        raise AuditError(msg, hint=_HINT)
    if not np.isfinite(values).all():
        msg = f"{path.name} holds values that are not finite."
        raise AuditError(msg, hint=_HINT)
    return header, values


def _read_coordinates(path: Path, *, size: int, kept: int) -> NDArray[np.int64]:
    """Read which coordinates were kept."""
    _, tensors = _read(path)
    found = tensors.get("coordinates")
    good = found is not None and found.dtype == np.int64 and found.shape == (kept,)
    if found is None or not good or found[0] < 0 or found[-1] >= size:
        msg = f"{path.name} does not name {kept} of {size} coordinates."
        raise AuditError(msg, hint=_HINT)
    if not (np.diff(found) > 0).all():
        msg = f"{path.name} is not in ascending order."
        raise AuditError(msg, hint=_HINT)
    return found


def _read(path: Path) -> tuple[dict[str, Any], Mapping[str, NDArray[Any]]]:
    """Read the header and the tensors of a file."""
    try:
        with safe_open(path, framework="np") as stream:
            header = json.loads((stream.metadata() or {})["fedslm"])
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{path.name} cannot be read."
        raise AuditError(msg, hint=_HINT) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        msg = f"{path.name} was written in another format."
        raise AuditError(msg, hint=_HINT)
    return header, tensors
