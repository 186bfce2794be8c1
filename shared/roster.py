"""The file of enrolled clients: who may be in a cohort, and by which key each is known."""

from __future__ import annotations

import json
from collections.abc import Mapping

from shared.errors import SchemaMismatch
from shared.privacy.secagg.keys import Roster

SCHEMA = 1


def read_roster(contents: bytes) -> Roster:
    """Read a roster: ``{"schema": 1, "clients": {"0": "<64 hex digits>", ...}}``.

    Raises:
        SchemaMismatch: for anything else.
        SecureAggregationError: if a key is no key, or two clients have one.
    """
    try:
        value = json.loads(contents)
        if value["schema"] != SCHEMA or set(value) != {"schema", "clients"}:
            raise ValueError
        keys = {int(client): bytes.fromhex(key) for client, key in value["clients"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"The roster is not one of schema {SCHEMA}."
        raise SchemaMismatch(msg, hint="docs/device-policy.md shows the form.") from error
    return Roster(keys)


def write_roster(keys: Mapping[int, bytes]) -> str:
    """Return the contents of a roster file.

    Args:
        keys: Ed25519 public key (32 bytes) by client.
    """
    clients = {str(client): key.hex() for client, key in sorted(keys.items())}
    return json.dumps({"schema": SCHEMA, "clients": clients}, indent=2) + "\n"
