"""The file that says what stands for what: personal data, which only its owner can read."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from client.redaction.placeholders import Session
from shared.errors import DataError, DataFileNotFound
from shared.files import disk_errors


def read_map(path: Path) -> Session:
    """Read a conversation.

    Raises:
        DataFileNotFound: if the file cannot be read.
        DataError: if it is not a map of placeholders.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{path.name} cannot be read."
        raise DataFileNotFound(
            msg, hint="Give the file that `fedslm client redact --map` wrote."
        ) from error
    except ValueError as error:
        msg = f"{path.name} is not JSON."
        raise DataError(
            msg, hint="Give the file that `fedslm client redact --map` wrote."
        ) from error
    return Session.from_dict(data)


def write_map(path: Path, session: Session) -> None:
    """Write a conversation as a whole, mode 600.

    Raises:
        OutOfDisk: when no space is left; the previous file, if any, is intact.
        RunFolderError: for any other failure to write.
    """
    text = json.dumps(session.to_dict(), ensure_ascii=False, indent=2) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with disk_errors(path):
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
