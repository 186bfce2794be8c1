"""An adapter's files on a device: copied in by their hashes, and loaded from checked bytes alone.

What is loaded is parsed from the very bytes that were hashed, so nothing can be exchanged between
the check and the use. Nothing is unpickled, no path of a manifest is followed but plain names, and
nothing larger than the manifest says is ever read or written.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

from shared.documents import is_digest, load_object
from shared.errors import AdapterCorrupt
from shared.files import disk_errors
from shared.lora import Factors
from shared.loraconfig import LoraTerms, check_factors, read_lora_config
from shared.manifest import PEFT_CONFIG, RUN_MANIFEST, WEIGHTS, AdapterManifest, FileEntry
from shared.regularfile import open_regular
from shared.tensorfile import Tensor, read_tensor_header

PIECE = 1 << 20
_NUMBERS: Mapping[str, np.dtype[np.floating[Any]]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_AGAIN = "Fetch it again; nothing of it was used."

Source = Path | Mapping[str, bytes | Path]
"""One file with everything in the manifest's order, or each file by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAdapter:
    """An adapter that may be used.

    Attributes:
        digest: of its manifest.
        manifest: what the server signed.
        terms: rank, scale and layers.
        factors: float32, by PEFT's names; finite.
        config_digest: of the scenario of its run, as its signed files say; None if they do not.
    """

    digest: str
    manifest: AdapterManifest
    terms: LoraTerms
    factors: Factors
    config_digest: str | None = None


def copy_files(manifest: AdapterManifest, source: Source, folder: Path) -> None:
    """Copy an adapter's files into a new folder, each compared with its size and hash.

    Args:
        manifest: says which files, how large, and their hashes.
        source: where they come from; more or less than the manifest says is refused.
        folder: an empty folder.

    Raises:
        AdapterCorrupt: if a file is missing, is no regular file, or is another one.
        OutOfDisk: if no space is left.
    """
    if isinstance(source, Path):
        with open_regular(source) as stream:
            for entry in manifest.files:
                _copy(entry, stream, folder)
            if stream.read(1):
                _corrupt(source.name, "is longer than the manifest says")
        return
    for entry in manifest.files:
        found = source.get(entry.name)
        if found is None:
            _corrupt(entry.name, "is missing")
        elif isinstance(found, bytes):
            _copy_whole(entry, io.BytesIO(found), folder)
        else:
            with open_regular(found) as stream:
                _copy_whole(entry, stream, folder)


def load_files(manifest: AdapterManifest, folder: Path) -> VerifiedAdapter:
    """Load an adapter from its folder; every file is compared with its hash first.

    Raises:
        AdapterCorrupt: if a file is missing, damaged, or has numbers that are not finite.
        AdapterIncompatible: if it is no plain LoRA.
    """
    if folder.is_symlink():
        _corrupt("the adapter's folder", "is a link")
    contents = {}
    for entry in manifest.files:
        data = _read(entry, folder)
        if entry.name in {PEFT_CONFIG, WEIGHTS, RUN_MANIFEST}:
            contents[entry.name] = data
    terms = read_lora_config(contents[PEFT_CONFIG])
    weights = contents[WEIGHTS]
    tensors = read_tensor_header(io.BytesIO(weights), len(weights))
    check_factors(tensors, terms)
    factors = {tensor.name: _factor(tensor, weights) for tensor in tensors}
    return VerifiedAdapter(
        digest=manifest.digest,
        manifest=manifest,
        terms=terms,
        factors=factors,
        config_digest=_config_digest(contents.get(RUN_MANIFEST)),
    )


def read_bounded(path: Path, largest: int) -> bytes:
    """Read a small regular file whole; links are not followed.

    Raises:
        AdapterCorrupt: if it is missing, no regular file, or too long.
    """
    with open_regular(path) as stream:
        data = stream.read(largest + 1)
    if not len(data) <= largest:
        _corrupt(path.name, f"has more than {largest} bytes")
    return data


def _config_digest(said: bytes | None) -> str | None:
    """Return the scenario's digest out of a run's manifest; None for anything else."""
    try:
        found = load_object(said or b"").get("config_digest")
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, str) and is_digest(found) else None


def _factor(tensor: Tensor, weights: bytes) -> NDArray[np.float32]:
    """Return one factor; its values must be finite."""
    numbers = np.frombuffer(weights[tensor.start : tensor.stop], dtype=_NUMBERS[tensor.dtype])
    values = numbers.astype(np.float32).reshape(tensor.shape)
    if not bool(np.isfinite(values).all()):
        _corrupt(WEIGHTS, "has a value that is not finite")
    return values


def _read(entry: FileEntry, folder: Path) -> bytes:
    """Read a file whole and compare it with its entry."""
    with open_regular(folder / entry.name) as stream:
        data = stream.read(entry.size + 1)
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        _corrupt(entry.name, "is not the file that the manifest names")
    return data


def _copy_whole(entry: FileEntry, stream: BinaryIO, folder: Path) -> None:
    """Copy a file that must end where the manifest says."""
    _copy(entry, stream, folder)
    if stream.read(1):
        _corrupt(entry.name, "is longer than the manifest says")


def _copy(entry: FileEntry, stream: BinaryIO, folder: Path) -> None:
    """Copy one file's bytes from a stream, a piece at a time."""
    path, digest, left = folder / entry.name, hashlib.sha256(), entry.size
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk_errors(path), os.fdopen(os.open(path, flags, 0o600), "wb") as target:
        while left > 0 and (piece := stream.read(min(PIECE, left))):
            digest.update(piece)
            target.write(piece)
            left -= len(piece)
        target.flush()
        os.fsync(target.fileno())
    if left or digest.hexdigest() != entry.sha256:
        _corrupt(entry.name, "is not the file that the manifest names")


def _corrupt(name: str, how: str) -> NoReturn:
    """Raise the error of a file that is not used."""
    msg = f"{name} of the adapter {how}."
    raise AdapterCorrupt(msg, hint=_AGAIN)
