"""The folder in which a benchmark of many runs keeps what it has finished."""

from __future__ import annotations

from shared.errors import RunFolderExists
from shared.files import disk_errors
from simulations.benchmarks.protocol import Asked


def open_kept(asked: Asked, *, of: str) -> None:
    """Make the folder, or take up the one that is there.

    Args:
        asked: where it is, and whether what it holds may be kept.
        of: what it holds, in the plural.

    Raises:
        RunFolderExists: if it holds something and nobody said to go on with it.
        OutOfDisk: if it cannot be made for want of space.
        RunFolderError: if it cannot be made.
    """
    if asked.folder.is_dir() and any(asked.folder.iterdir()) and not asked.resume:
        msg = f"{asked.folder.name} holds {of} of an earlier benchmark."
        raise RunFolderExists(
            msg, hint="Add --resume to keep them and do the rest, or choose another --out."
        )
    with disk_errors(asked.folder):
        asked.folder.mkdir(parents=True, exist_ok=True)
