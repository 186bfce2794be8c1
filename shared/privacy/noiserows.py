"""The rows of one run's noise matrix: drawn again by whoever holds the run's key, never stored.

Correlated noise needs the rows of earlier rounds in later ones, also after a crash. Rows are
therefore derived from one key of 256 bits: from the seed in a simulation, else from the operating
system, kept in a file that only its owner can read. Whoever has that file and the released
adapters can subtract the noise: it is as secret as the un-noised updates, leaves the server no
more than they do, and is deleted when the run is over.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shared import validate
from shared.errors import InvalidValue, NotResumable, PrivacyError
from shared.files import disk_errors
from shared.privacy.noise import OS_ENTROPY, SEEDED, NoiseKind, NoiseSource
from shared.seeding import encode_labels

KEY_NAME = "noise.key"
_KEY_BYTES = 32
_DOMAIN = "fedslm-noise-rows-v1"


class NoiseRows:
    """One independent noise source for each row; the same ones whenever the key is the same.

    Build one with :meth:`seeded` or :meth:`of_run`.

    Attributes:
        kind: ``"os-entropy"`` or ``"seeded-simulation"``.

    Args:
        key: 32 secret bytes.
        kind: where the key came from.

    Raises:
        InvalidValue: for a key of another length.
    """

    __slots__ = ("_key", "kind")

    def __init__(self, key: bytes, *, kind: NoiseKind) -> None:
        if len(key) != _KEY_BYTES:
            msg = f"key has {len(key)} bytes, expected {_KEY_BYTES}."
            raise InvalidValue(msg)
        self._key = key
        self.kind: NoiseKind = kind

    @classmethod
    def seeded(cls, seed: int) -> NoiseRows:
        """Return the rows of a simulation; they protect nobody from a reader of the seed.

        Raises:
            InvalidValue: if the seed is not an integer.
        """
        return cls(_derive(encode_labels(_DOMAIN, seed)), kind=SEEDED)

    @classmethod
    def of_run(cls, folder: Path, *, begun: bool) -> NoiseRows:
        """Return the rows of a real run, making its key (mode 600) if the run has just begun.

        Args:
            folder: the run folder.
            begun: whether a round was released already; its key must then be there, because
                rounds under two keys are two matrices, and no one release accounts for both.

        Raises:
            NotResumable: if the key of a begun run is missing.
            PrivacyError: if others may read the key, or it is damaged.
            RunFolderError: if it cannot be read or written.
        """
        path = folder / KEY_NAME
        if not path.exists():
            if begun:
                msg = f"{KEY_NAME} of a run with released rounds is missing."
                raise NotResumable(msg, hint="Restore it, or start a new run in another folder.")
            _create(path)
        with disk_errors(path), path.open("rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            key = stream.read(_KEY_BYTES + 1)
        if mode & 0o077:
            msg = f"{KEY_NAME} has mode={mode:03o}, expected 600."
            raise PrivacyError(msg, hint="Who read it can subtract the noise. Start a new run.")
        if len(key) != _KEY_BYTES:
            msg = f"{KEY_NAME} has another length than {_KEY_BYTES} bytes."
            raise PrivacyError(msg, hint="Restore it, or start a new run in another folder.")
        return cls(key, kind=OS_ENTROPY)

    def source(self, row: int) -> NoiseSource:
        """Return the source of one row, at the beginning of its stream.

        Args:
            row: >= 1, the round.

        Raises:
            InvalidValue: if the row is not an integer >= 1.
        """
        validate.positive_integer(row=row)
        return NoiseSource(_derive(self._key, encode_labels(_DOMAIN, 0, row)), kind=self.kind)

    def __repr__(self) -> str:
        """Return the kind alone; the key never appears."""
        return f"NoiseRows(kind={self.kind!r})"


def forget_rows(folder: Path) -> None:
    """Delete a finished run's key; nothing happens if there is none.

    The file system or a backup may keep a copy, against which only its own encryption helps.

    Raises:
        RunFolderError: if the file cannot be deleted.
    """
    path = folder / KEY_NAME
    with disk_errors(path):
        path.unlink(missing_ok=True)


def _create(path: Path) -> None:
    """Write a new key durably, readable by its owner alone; never over an existing one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with disk_errors(path):
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(os.urandom(_KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _derive(material: bytes, info: bytes = b"") -> bytes:
    """Derive a 256-bit key with HKDF-SHA256."""
    return HKDF(hashes.SHA256(), _KEY_BYTES, salt=_DOMAIN.encode(), info=info).derive(material)
