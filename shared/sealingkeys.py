"""Where the keys that seal files come from: a file of mode 600, or the environment.

A key file has one key per line, 64 hexadecimal digits, the newest first; empty lines and lines that
begin with ``#`` are skipped. Losing a key loses what it sealed: keep a copy elsewhere.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shared.errors import FleetError, InvalidValue
from shared.locks import exclusive
from shared.sealing import Sealer, SealingKey

VARIABLE = "FEDSLM_SEALING_KEYS"
MOST_KEYS = 32
_LARGEST = 1 << 16
_KEY = re.compile(r"[0-9a-f]{64}")


def sealer_from_file(path: Path) -> Sealer:
    """Read a key file.

    Raises:
        FleetError: if it cannot be read, or may be read by others.
        InvalidValue: if a line is no key, none is there, or one is there twice.
    """
    return Sealer(_read(path))


def sealer_from_environment(environment: Mapping[str, str]) -> Sealer | None:
    """Read the keys of :data:`VARIABLE`, newest first, with commas or spaces between them.

    Returns:
        None if the variable is not set or empty.

    Raises:
        InvalidValue: as :func:`sealer_from_file`.
    """
    words = environment.get(VARIABLE, "").replace(",", " ").split()
    return Sealer(_keys(words, VARIABLE)) if words else None


def find_sealer(path: Path | None, environment: Mapping[str, str]) -> Sealer | None:
    """Return the sealer of the environment, else that of a key file if it exists, else None.

    Raises:
        FleetError: as :func:`sealer_from_file`.
        InvalidValue: as :func:`sealer_from_file`.
    """
    found = sealer_from_environment(environment)
    if found is None and path is not None and path.exists():
        found = sealer_from_file(path)
    return found


def rotate_key_file(path: Path) -> SealingKey:
    """Put a new key in front of a key file; a missing file is made, mode 600.

    Several processes may do this at once; no key is lost.

    Returns:
        The new key. Files that older keys sealed are still read until those lines are taken out.

    Raises:
        FleetError: if the file cannot be read or written, or may be read by others.
        InvalidValue: if it holds something else, or :data:`MOST_KEYS` already.
    """
    with _errors(path), exclusive(path.with_name(f".{path.name}.lock")):
        keys = _read(path) if path.exists() else []
        if not len(keys) < MOST_KEYS:
            msg = f"{path.name} holds {len(keys)} keys, expected fewer than {MOST_KEYS}."
            raise InvalidValue(msg, hint="Seal again, then take out the oldest lines.")
        new = SealingKey.new()
        lines = [key.secret.hex() for key in (new, *keys)]
        _replace(path, "".join(f"{line}\n" for line in lines).encode())
    return new


def _read(path: Path) -> list[SealingKey]:
    """Read the keys of a file that only its owner can read."""
    with _errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            data = stream.read(_LARGEST + 1)
    if mode & 0o077:
        msg = f"the sealing keys {path.name} have mode {mode:03o}, expected 600."
        raise FleetError(msg, hint="Others may have read them: rotate, or run chmod 600.")
    if not len(data) <= _LARGEST:
        msg = f"{path.name} has more than {_LARGEST} bytes, expected a few lines of keys."
        raise InvalidValue(msg)
    lines = [line.strip() for line in data.decode("latin-1").splitlines()]
    return _keys((line for line in lines if line and not line.startswith("#")), path.name)


def _keys(words: Iterable[str], source: str) -> list[SealingKey]:
    """Read keys; what is no key is counted and never shown."""
    found = list(words)
    if not (0 < len(found) <= MOST_KEYS and all(_KEY.fullmatch(word) for word in found)):
        bad = sum(_KEY.fullmatch(word) is None for word in found)
        msg = f"{source} holds {len(found)} keys, {bad} of them malformed."
        raise InvalidValue(msg, hint="Expected 64 lower-case hexadecimal digits for each key.")
    return [SealingKey(bytes.fromhex(word)) for word in found]


def _replace(path: Path, data: bytes) -> None:
    """Write a file of mode 600 atomically and durably."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        msg = f"the sealing keys {path.name} cannot be read or written: {error.strerror}."
        raise FleetError(msg, hint="Check the file, its folder and their permissions.") from error
