"""The scenarios that a device took part in, so that its owner can go on from what came of them.

A scenario is public to whoever takes part; which ones a device took part in is its own affair, and
stays in its state folder.
"""

from __future__ import annotations

import logging
from pathlib import Path

from shared.config import RunConfig
from shared.configfile import parse_json
from shared.documents import is_digest
from shared.errors import FedSLMError
from shared.privatefiles import make_private_folder, read_private, remove_file, replace_private

FOLDER = "scenarios"
MOST = 8

logger = logging.getLogger("fedslm.client")


def remember_scenario(state: Path, config: RunConfig) -> None:
    """Keep a scenario that the owner's policy allows; the oldest of more than eight goes.

    What cannot be written is not kept: the round goes on.

    Args:
        state: the device's state folder.
        config: the scenario, as the server sent it.
    """
    folder = state / FOLDER
    path = folder / f"{config.digest()}.json"
    try:
        if path.exists():
            return
        make_private_folder(folder)
        replace_private(path, config.model_dump_json().encode("utf-8"))
        kept = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        for old in kept[:-MOST]:
            remove_file(old)
    except (FedSLMError, OSError) as error:
        logger.warning("a scenario was not kept: %s", type(error).__name__)


def known_scenario(state: Path, digest: str | None) -> RunConfig | None:
    """Return a scenario by its digest; None if it is not known, or not what it was.

    Args:
        state: the device's state folder.
        digest: as the adapter names it.
    """
    if digest is None or not is_digest(digest):
        return None
    path = state / FOLDER / f"{digest}.json"
    if not path.exists():
        return None
    try:
        found = parse_json(read_private(path).decode("utf-8"))
    except (FedSLMError, UnicodeDecodeError):
        return None
    return found if found.digest() == digest else None
