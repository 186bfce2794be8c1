"""What the processes of these tests do; imports little, because each process starts afresh."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from server.registry import AdapterRegistry
from shared.crypto import SigningKey
from shared.errors import AdapterError

SECRET = b"\x07" * 32
BASE = "ba" * 32


def add_and_promote(root: Path, adapters: list[Path], rounds: int, ready: Path) -> None:
    """Add and promote adapters, roll back and collect, again and again."""
    registry = AdapterRegistry(root, signer=SigningKey(SECRET))
    ready.touch()
    for turn in range(rounds):
        for folder in adapters:
            version = registry.add(folder, name="small", base_digest=BASE)
            registry.promote(version.digest, unaudited=True)
        if turn % 2:
            # Another process may have left nothing to go back to.
            with suppress(AdapterError):
                registry.rollback()
        registry.collect()
