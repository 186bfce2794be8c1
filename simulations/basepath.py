"""Where a base model lies: the embedded one, a folder, or a hub id as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shared.errors import ModelNotFound

ASSETS: Final = Path(__file__).parent / "assets"
DEMO: Final = "demo"


def base_path(base: str, *, base_dir: Path) -> str:
    """Resolve ``model.base``: the embedded model, a folder, or a hub id as it is.

    Raises:
        ModelNotFound: for something that looks like a path and is no folder.
    """
    if base == DEMO:
        return str(ASSETS / DEMO)
    folder = base_dir / base
    if folder.is_dir():
        return str(folder)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        msg = f"model.base={base!r} is not a folder."
        raise ModelNotFound(
            msg, hint='Give a transformers folder, a hub id like "org/name", or "demo".'
        )
    return base
