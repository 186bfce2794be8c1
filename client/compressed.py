"""The manifest of a compressed base: what it was made from, how, and that it is still that.

``compression.json`` lies beside the weights of a base that ``fedslm base compress`` made. It names
the digest of the folder's checkpoint; a folder that has a manifest and another digest is refused
when it is loaded. This finds damage and mix-ups. It is no signature: whoever can write the weights
can write the manifest too. Against that, a device's policy pins the digest itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from shared.errors import BaseModelMismatch, UnsupportedModel

MANIFEST = "compression.json"
FORMAT = "fedslm compression 1"
_LARGEST = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a compressed base; None if there is none.

    Raises:
        UnsupportedModel: if it is no manifest of this format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        if not path.stat().st_size <= _LARGEST:
            raise ValueError
        found = json.loads(path.read_text(encoding="utf-8"))
        digest = found["result"]["digest"]
        if found["format"] != FORMAT or not _DIGEST.fullmatch(digest):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{MANIFEST} of model {folder.name!r} is no manifest of format {FORMAT!r}."
        raise UnsupportedModel(msg, hint="Compress the model again with this version.") from error
    return dict(found)


def check_manifest(folder: Path, digest: str) -> None:
    """Require that a folder holds the checkpoint that its manifest, if any, names.

    Args:
        folder: of the base.
        digest: of the checkpoint in it (:func:`client.basedigest.base_digest`).

    Raises:
        BaseModelMismatch: if the checkpoint is another one.
        UnsupportedModel: if the manifest cannot be read.
    """
    found = read_manifest(folder)
    if found is None or found["result"]["digest"] == digest:
        return
    named = found["result"]["digest"]
    msg = f"Model {folder.name!r} has digest {digest[:12]!r}, its manifest names {named[:12]!r}."
    raise BaseModelMismatch(msg, hint="The folder was changed: fetch or compress it again.")
