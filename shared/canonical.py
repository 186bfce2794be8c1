"""One text for one value: the JSON that digests and hash chains are taken over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from shared.errors import InvalidValue


def canonical_json(value: object) -> str:
    """Write a JSON value so that equal values give equal text.

    Keys are sorted, there is no white space, everything is ASCII, and floats are written with
    Python's shortest form that reads back to the same float64.

    Args:
        value: ``None``, booleans, integers, finite floats, strings, lists, tuples, and mappings
            with string keys, nested at will.

    Returns:
        The text, always one line.

    Raises:
        InvalidValue: for NaN, infinity, a key that is not a string, or a type that JSON lacks.

    >>> canonical_json({"b": 1.0, "a": (True, None)})
    '{"a":[true,null],"b":1.0}'
    """
    _require_string_keys(value)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        msg = f"value of type {type(value).__name__} has no canonical JSON: {error}."
        raise InvalidValue(msg) from error


def sha256_hex(data: str | bytes) -> str:
    """Return the SHA-256 digest of text (as UTF-8) or bytes, as 64 hexadecimal digits.

    >>> sha256_hex("")[:16]
    'e3b0c44298fc1c14'
    """
    raw = data.encode() if isinstance(data, str) else data
    return hashlib.sha256(raw).hexdigest()


def _require_string_keys(value: object) -> None:
    """Refuse keys that ``json`` would turn into strings silently (``1`` and ``"1"`` collide)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                msg = f"key={key!r} has no canonical JSON, expected a string key."
                raise InvalidValue(msg)
            _require_string_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_string_keys(item)
