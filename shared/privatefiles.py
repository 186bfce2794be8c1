"""Folders and files that only their owner may read: keys, certificates, a device's settings.

A file appears whole or not at all, is never replaced by accident, and is on the disk when the call
returns. What is read back must still be private, and is never longer than it may be.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shared.errors import AlreadyRunning, FleetError, OutOfDisk

FILE_MODE = 0o600
FOLDER_MODE = 0o700
MAX_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def make_private_folder(path: Path) -> None:
    """Make a folder of mode 700, with its parents; an empty folder that is there becomes one.

    Raises:
        FleetError: if it cannot be made, or holds files already and others may look into it.
        OutOfDisk: if no space is left.
    """
    with _translated(path, "made"):
        path.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and not any(path.iterdir()):
            path.chmod(FOLDER_MODE)
            return
    if mode & 0o077:
        msg = f"The folder {path.name!r} has mode {mode:03o}, expected 700."
        raise FleetError(msg, hint="Others may look into it: chmod 700, or give another folder.")


def create_private(path: Path, data: bytes) -> None:
    """Create a file of mode 600; of several processes that try, one succeeds.

    Raises:
        FleetError: if the file exists, or its folder cannot be written.
        OutOfDisk: if no space is left; nothing is there then.
    """
    with _translated(path, "written"):
        temporary = _write_beside(path, data)
        try:
            # A link never replaces a file; a rename would.
            os.link(temporary, path)
        except FileExistsError as error:
            msg = f"{path.name} exists already."
            raise FleetError(msg, hint="It is not overwritten; move it away first.") from error
        finally:
            temporary.unlink()
        _sync_folder(path.parent)


def replace_private(path: Path, data: bytes) -> None:
    """Put a file of mode 600 in the place of what is there, if anything.

    Raises:
        FleetError: if the folder cannot be written.
        OutOfDisk: if no space is left; what was there is intact then.
    """
    with _translated(path, "written"):
        temporary = _write_beside(path, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise
        _sync_folder(path.parent)


def read_private(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Read a file that nobody else may read.

    Raises:
        FleetError: if it is missing, is no regular file, is too long, or others may read it.
    """
    with _translated(path, "read"), os.fdopen(_open_at_once(path), "rb") as stream:
        found = os.fstat(stream.fileno())
        data = stream.read(max_bytes + 1) if stat.S_ISREG(found.st_mode) else b""
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path.name} is not a file."
        raise FleetError(msg, hint="Restore it from a copy.")
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        msg = f"{path.name} has mode {mode:03o}, expected 600."
        raise FleetError(msg, hint="Others may have read it: replace it, or run chmod 600.")
    if len(data) > max_bytes:
        msg = f"{path.name} is longer than {max_bytes} bytes."
        raise FleetError(msg, hint="It is not what it should be; restore it from a copy.")
    return data


def remove_file(path: Path) -> bool:
    """Remove a file, or a link to one; tell whether it was there.

    Raises:
        FleetError: if it cannot be removed.
    """
    with _translated(path, "removed"):
        try:
            path.unlink()
        except FileNotFoundError:
            return False
    return True


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock file while something runs; the lock goes with the process, however that ends.

    Raises:
        AlreadyRunning: if another process holds it.
        FleetError: if the file cannot be opened.
    """
    with _translated(path, "opened"):
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"Another process holds {path.name}."
            raise AlreadyRunning(msg, hint="Stop it first, or wait until it is done.") from error
        yield
    finally:
        os.close(descriptor)


def _open_at_once(path: Path) -> int:
    """Open for reading, without waiting for the other end of a pipe that was put there."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _write_beside(path: Path, data: bytes) -> Path:
    """Write a hidden file of mode 600 beside a path and flush it; leave nothing on failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(path: Path, done: str) -> Iterator[None]:
    """Turn the operating system's errors about one file into ours, without its whole path."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            msg = f"No space is left: {path.name!r} cannot be {done}."
            raise OutOfDisk(msg, hint="Free some space and do it again.") from error
        msg = f"{path.name!r} cannot be {done} ({error.strerror})."
        raise FleetError(msg, hint="Check the folder and its permissions.") from error
