"""Opening files of an adapter that somebody else may have put there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shared.errors import AdapterCorrupt

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHOWN = 20


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading: never through a link, never waiting for a pipe.

    Links are refused in the last component alone; the folder is the caller's choice.

    Raises:
        AdapterCorrupt: if it is missing, cannot be read, or is no regular file.
    """
    name = path.name[:_SHOWN]
    try:
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its name is no file name"
        msg = f"{name!r} of an adapter cannot be read ({why})."
        raise AdapterCorrupt(msg, hint="Links are not followed; take it from its source.") from (
            error
        )
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        msg = f"{name!r} of an adapter is no regular file."
        raise AdapterCorrupt(msg, hint="Take it from its source.")
    with os.fdopen(descriptor, "rb") as stream:
        yield stream
