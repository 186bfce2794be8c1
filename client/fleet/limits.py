"""How much a node takes from a server, and from its own worker, before it stops reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one message.

    Attributes:
        message_bytes: of all its objects together.
        object_bytes: of one object; Flower cuts arrays into pieces of 5 MiB.
        objects: how many objects a message may be made of.
        records: how many records a message may hold, and arrays or values a record.
        dimensions: of one array.
    """

    message_bytes: int = 256 * MIB
    object_bytes: int = 8 * MIB
    objects: int = 4096
    records: int = 1024
    dimensions: int = 8


DEFAULT_LIMITS: Final = Limits()
