"""What an exported step is: its files, its terms, and the digest that pins all of it.

A folder holds the program (``step.onnx``, or ``step.pte`` for ExecuTorch), the frozen weights
(``base.bin``, or ``base.ptd``), ``tokenizer.json``, ``chat.json`` where the tokenizer has a chat
template, and ``step.json``, which names the others by
size and SHA-256. The digest of ``step.json`` is what an owner writes down. Nothing here needs
torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, get_args

from shared.canonical import canonical_json, sha256_hex
from shared.documents import is_digest
from shared.errors import AdapterIncompatible, BaseModelMismatch, ModelNotFound
from shared.lora import AdapterSpec

Runtime = Literal["onnx", "executorch"]
Quantization = Literal["none", "int8", "int4"]
RUNTIMES: Final[tuple[str, ...]] = get_args(Runtime)
QUANTIZATIONS: Final[tuple[str, ...]] = get_args(Quantization)

MANIFEST: Final = "step.json"
PROGRAM: Final = "step.onnx"
BASE: Final = "base.bin"
PTE: Final = "step.pte"
PTD: Final = "base.ptd"
TOKENIZER: Final = "tokenizer.json"
CHAT: Final = "chat.json"

PROGRAMS: Final[Mapping[str, str]] = {"onnx": PROGRAM, "executorch": PTE}
WEIGHTS: Final[Mapping[str, str]] = {"onnx": BASE, "executorch": PTD}

SCHEMA: Final = 1
LARGEST_MANIFEST: Final = 1 << 22
LONGEST: Final = 1 << 16
_PIECE = 1 << 20
_LARGEST_FILE = 1 << 40
_KEYS = frozenset(
    "schema runtime quantization length max_grad_norm trained vocabulary bos eos base_digest "
    "adapter files deviation".split()
)
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}\.(?:onnx|pte|bin|ptd|json)")
_AGAIN = "Export the step again, or copy its folder again."


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFile:
    """A file of a step: its plain name, bytes, and SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepManifest:
    """An exported step.

    Attributes:
        runtime: what runs the program.
        quantization: of the frozen weights.
        length: T; every example is padded to it.
        max_grad_norm: the clip inside the program; None for gradients as they are. Sensitivity
            never rests on it: whoever runs the program clips again.
        trained: the kinds of factors whose gradients it returns, ``"A"``, ``"B"`` or ``"AB"``.
        vocabulary: number of token ids.
        bos: id that begins a text, or None.
        eos: id that ends one, or None.
        base_digest: of the checkpoint (:func:`client.model.base_digest`).
        adapter: every factor, in the order in which the program takes them.
        files: what the folder holds besides, sorted by name.
        deviation: largest relative error of a gradient against PyTorch, measured at the export.
    """

    runtime: str
    quantization: str
    length: int
    max_grad_norm: float | None
    trained: str
    vocabulary: int
    bos: int | None
    eos: int | None
    base_digest: str
    adapter: AdapterSpec
    files: tuple[StepFile, ...]
    deviation: float

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            BaseModelMismatch: naming the first that is not as it must be.
        """
        names = [file.name for file in self.files]
        clip = self.max_grad_norm
        checks = {
            "runtime": self.runtime in RUNTIMES,
            "quantization": self.quantization in QUANTIZATIONS,
            "length": _whole(self.length, 2, LONGEST),
            "max_grad_norm": clip is None or _positive(clip),
            "trained": self.trained in {"A", "B", "AB"},
            "vocabulary": _whole(self.vocabulary, 1, 1 << 31),
            "bos": self.bos is None or _whole(self.bos, 0, self.vocabulary - 1),
            "eos": self.eos is None or _whole(self.eos, 0, self.vocabulary - 1),
            "base_digest": is_digest(self.base_digest),
            "files": self.runtime in RUNTIMES
            and names == sorted(file_names(self.runtime) | ({CHAT} & set(names))),
            "deviation": self.deviation == 0 or _positive(self.deviation),
        }
        for file in self.files:
            checks[f"file {file.name[:40]}"] = (
                _NAME.fullmatch(file.name) is not None
                and _whole(file.size, 0, _LARGEST_FILE)
                and is_digest(file.sha256)
            )
        for name, holds in checks.items():
            if not holds:
                _refuse(f"says something else about {name} than a step can")

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON form: the name of the step."""
        return sha256_hex(canonical_json(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :func:`parse_manifest` reads."""
        return {
            "schema": SCHEMA,
            "runtime": self.runtime,
            "quantization": self.quantization,
            "length": self.length,
            "max_grad_norm": self.max_grad_norm,
            "trained": self.trained,
            "vocabulary": self.vocabulary,
            "bos": self.bos,
            "eos": self.eos,
            "base_digest": self.base_digest,
            "adapter": self.adapter.to_json(),
            "files": [[file.name, file.size, file.sha256] for file in self.files],
            "deviation": self.deviation,
        }


def file_names(runtime: str) -> set[str]:
    """Return the names of the files of a runtime's step besides its manifest."""
    return {PROGRAMS[runtime], WEIGHTS[runtime], TOKENIZER}


def parse_manifest(data: bytes) -> StepManifest:
    """Read a manifest that may come from anywhere.

    Raises:
        BaseModelMismatch: unless it has exactly the known keys, each as it must be, and is
            canonical to the byte.
    """
    if not len(data) <= LARGEST_MANIFEST:
        _refuse(f"has more than {LARGEST_MANIFEST} bytes")
    try:
        found = json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        _refuse("is no JSON")
    if not isinstance(found, dict) or set(found) != _KEYS or found["schema"] != SCHEMA:
        _refuse(f"has other keys than a step of schema {SCHEMA}")
    manifest = _of(found)
    if canonical_json(manifest.to_json()).encode() != data.strip():
        _refuse("is not in canonical form")
    return manifest


def load_step(folder: Path, *, digest: str | None = None) -> StepManifest:
    """Read a step's manifest and compare every file with it.

    The files are compared where they lie and opened again by the runtime: a folder that somebody
    else may write to is no place for them.

    Args:
        folder: of the step.
        digest: the SHA-256 of the manifest that is expected; None for any.

    Raises:
        ModelNotFound: if the folder or a file is missing.
        BaseModelMismatch: if anything is not what the digests say.
    """
    data = _read(folder / MANIFEST)
    manifest = parse_manifest(data)
    if digest is not None and manifest.digest != digest:
        msg = f"The step in {folder.name!r} is {manifest.digest[:12]}, expected {digest[:12]}."
        raise BaseModelMismatch(msg, hint=_AGAIN)
    for file in manifest.files:
        if hash_file(folder / file.name) != (file.size, file.sha256):
            msg = f"{file.name} is not the file that {MANIFEST} names."
            raise BaseModelMismatch(msg, hint=_AGAIN)
    return manifest


def step_of(folder: Path) -> StepManifest | None:
    """Return the manifest of the step that a folder holds; None if it holds none.

    Raises:
        BaseModelMismatch: if there is a manifest, and it or a file is not as it must be.
    """
    return load_step(folder) if (folder / MANIFEST).exists() else None


def hash_file(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a regular file; links are not followed.

    Raises:
        ModelNotFound: if it cannot be read or is no regular file.
    """
    digest, size = hashlib.sha256(), 0
    with os.fdopen(_open(path), "rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def _of(found: Mapping[str, Any]) -> StepManifest:
    """Make a manifest of parsed JSON with the right keys."""
    try:
        files = tuple(
            StepFile(name=str(name), size=size, sha256=str(digest))
            for name, size, digest in found["files"]
        )
        fields = {name: value for name, value in found.items() if name != "schema"}
        fields |= {"files": files, "adapter": AdapterSpec.from_json(found["adapter"])}
        return StepManifest(**fields)
    except (AdapterIncompatible, TypeError, ValueError):
        _refuse("is malformed")


def _read(path: Path) -> bytes:
    """Read a small regular file."""
    with os.fdopen(_open(path), "rb") as stream:
        return stream.read(LARGEST_MANIFEST + 1)


def _open(path: Path) -> int:
    """Open a regular file: never through a link, never waiting for a pipe."""
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        msg = f"{path.name} of an exported step cannot be read ({error.strerror})."
        raise ModelNotFound(msg, hint="Make it with fedslm export step.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{path.name} of an exported step is no regular file."
        raise ModelNotFound(msg, hint="Make it with fedslm export step.")
    return descriptor


def _whole(value: object, least: int, most: int) -> bool:
    """Tell whether a value is an integer of a range; a boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _positive(value: object) -> bool:
    """Tell whether a value is a finite number above zero."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and isfinite(value) and value > 0  # type: ignore[arg-type, operator]


def _refuse(what: str) -> NoReturn:
    """Raise the error of a manifest."""
    msg = f"{MANIFEST} of an exported step {what}."
    raise BaseModelMismatch(msg, hint=_AGAIN)
