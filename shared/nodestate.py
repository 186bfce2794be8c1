"""What a node keeps for itself between two messages, in Flower's own state of the node."""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict


def keep_state(state: RecordDict, name: str, data: bytes) -> None:
    """Keep some bytes in a node's own state until its next message."""
    state[name] = ConfigRecord({name: data})


def take_state(state: RecordDict, name: str) -> bytes | None:
    """Take bytes out of a node's own state; None if there are none."""
    known = state.pop(name, None)
    data = known.get(name) if isinstance(known, ConfigRecord) else None
    return data if isinstance(data, bytes) else None
