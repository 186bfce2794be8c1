"""Reading small stored records: exactly the fields of a dataclass, or nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from shared.errors import SchemaMismatch


def stored_fields(kind: type, value: object) -> dict[str, Any]:
    """Return the fields of a stored record.

    Args:
        kind: the dataclass that it is to become.
        value: what was stored.

    Raises:
        SchemaMismatch: for other fields than those of this version.
    """
    names = {field.name for field in fields(kind)}
    if not (isinstance(value, dict) and set(value) == names):
        msg = f"a stored {kind.__name__} does not have the fields of this version."
        raise SchemaMismatch(msg, hint="A newer fedslm may have written it.")
    return dict(value)
