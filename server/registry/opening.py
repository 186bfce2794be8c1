"""Opening a registry with the keys that belong to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from server.registry.store import AdapterRegistry
from shared.crypto import SigningKey
from shared.sealingkeys import find_sealer

if TYPE_CHECKING:
    from server.home import ServerHome

SEALING_KEYS = "sealing.keys"


def server_registry(home: ServerHome) -> AdapterRegistry:
    """Open the registry of a server, with its signing key and, if there are any, sealing keys.

    Files are encrypted at rest as soon as ``keys/sealing.keys`` exists or the environment holds
    keys (:data:`shared.sealingkeys.VARIABLE`).

    Raises:
        FleetError: if a key file may be read by others, or the folder is of another schema.
        InvalidValue: if a key is malformed.
    """
    return AdapterRegistry(
        home.adapters,
        signer=SigningKey.load_or_create(home.adapter_key),
        sealer=find_sealer(sealing_keys(home.path), os.environ),
    )


def sealing_keys(server: Path) -> Path:
    """Return where a server's folder keeps the keys that encrypt files at rest."""
    return server / "keys" / SEALING_KEYS
