"""Files that are either whole or not there.

Everything a run writes goes through here: to a temporary name, flushed to disk, then renamed. A
full disk becomes :class:`shared.errors.OutOfDisk` and leaves what was there before.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import OutOfDisk, RunFolderError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors about one file into ours.

    Raises:
        OutOfDisk: when no space is left.
        RunFolderError: for any other failure to write.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            msg = f"No space left to write {path.name}."
            hint = "Free some space and start again, with --resume if the command has it; "
            raise OutOfDisk(msg, hint=f"{hint}nothing finished is lost.") from error
        msg = f"{path.name} cannot be written ({error.strerror})."
        raise RunFolderError(msg, hint="Check the folder and its permissions.") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably.

    Raises:
        OutOfDisk: when no space is left; the previous file, if any, is intact.
        RunFolderError: for any other failure to write.
    """
    temporary = path.with_name(f".{path.name}.partial")
    with disk_errors(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically and durably; errors as :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    """Write indented JSON with sorted keys atomically; errors as :func:`write_bytes`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append one line and flush it to disk.

    Raises:
        OutOfDisk: when no space is left.
        RunFolderError: for any other failure to write.
    """
    with disk_errors(path), path.open("ab") as stream:
        stream.write(line.encode("utf-8") + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
