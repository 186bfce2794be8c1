"""The digest that names a checkpoint, from its files alone: nothing is loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shared.errors import ModelNotFound, UnsupportedModel

_CHUNK = 1 << 22


def base_digest(folder_or_files: str | Path | Iterable[str | Path]) -> str:
    """Return the SHA-256 that names a checkpoint, whatever it is quantised to later.

    It covers ``config.json`` byte for byte and every tensor's name, dtype, shape and bytes in the
    order of names; how tensors are dealt to files and the files' metadata do not matter.

    Args:
        folder_or_files: a model folder, or its ``config.json`` and safetensors files.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelNotFound: if a file is absent.
        UnsupportedModel: if a file is no safetensors file.
    """
    if isinstance(folder_or_files, str | Path):
        folder = Path(folder_or_files)
        paths = [folder / "config.json", *weight_files(folder, folder.name)]
    else:
        paths = [Path(file) for file in folder_or_files]
    digest = hashlib.sha256(b"fedslm base 1\n")
    tensors: dict[str, tuple[Path, str, list[int], int, int]] = {}
    for path in paths:
        if not path.is_file():
            msg = f"Model file {path.name!r} does not exist."
            raise ModelNotFound(msg)
        if path.suffix == ".safetensors":
            tensors.update(safetensors_index(path))
        else:
            feed(digest, path.name.encode())
            feed(digest, path.read_bytes())
    for name, (path, dtype, shape, start, stop) in sorted(tensors.items()):
        feed(digest, json.dumps([name, dtype, shape]).encode())
        digest.update(struct.pack("<Q", stop - start))
        with path.open("rb") as stream:
            stream.seek(start)
            left = stop - start
            while left > 0 and (chunk := stream.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the safetensors files of a folder, sorted; refuse pickles."""
    files = sorted(folder.glob("model*.safetensors"))
    if files:
        return files
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        msg = f"Model {name!r} has only pickled weights ({pickles[0].name}), which can run code."
        raise UnsupportedModel(
            msg, hint="Convert it: save_pretrained(..., safe_serialization=True)."
        )
    msg = f"Model folder {name!r} has no weights, expected model.safetensors."
    raise ModelNotFound(msg)


def safetensors_index(path: Path) -> dict[str, tuple[Path, str, list[int], int, int]]:
    """Return file, dtype, shape and byte range of every tensor of a safetensors file."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not length <= size:
                raise ValueError
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        index = {}
        for name, entry in header.items():
            start, stop = (int(offset) + 8 + length for offset in entry["data_offsets"])
            if not start <= stop <= size:
                raise ValueError
            index[name] = (path, str(entry["dtype"]), list(entry["shape"]), start, stop)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path.name} is damaged: no whole safetensors file."
        raise UnsupportedModel(msg, hint="Copy or download the model again.") from error
    return index


def feed(digest: Any, data: bytes) -> None:  # noqa: ANN401  (hashlib's type has no public name)
    """Add a piece with its length, so that pieces cannot run into one another."""
    digest.update(struct.pack("<Q", len(data)))
    digest.update(data)
