"""How data are called in a ledger that several runs share."""

from __future__ import annotations

from pathlib import Path


def shared_scope(path: str, base_dir: Path) -> str:
    """Return the name of some data in a ledger that several runs share.

    A file has one name however its path is written, so that runs on it compose.
    """
    file = base_dir / path
    return str(file.resolve()) if file.exists() else path
