"""Signed JSON documents: what a manifest and an order have in common.

A document from elsewhere is bounded, its signature is checked before its text, it has exactly the
known keys, and it is canonical to the byte, so that one meaning has one digest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, NoReturn

from shared.canonical import sha256_hex
from shared.crypto import Signature
from shared.errors import AdapterCorrupt, AdapterUntrusted, InvalidValue

SCHEMA = 1
LARGEST_DOCUMENT = 1 << 18
LARGEST_NUMBER = 10**12

_HEX = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


def utc_now() -> str:
    """Return the time as documents write it."""
    return datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_digest(text: str) -> bool:
    """Tell whether a text is a SHA-256 digest, 64 lower-case hexadecimal digits."""
    return _HEX.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Tell whether a text is a plain label: letters, digits, '.', '_' and '-', at most 100."""
    return _LABEL.fullmatch(text) is not None


def check_signed(data: bytes, signature: Signature, *, domain: str, trusted: str) -> None:
    """Require a trusted key's signature over these bytes, for this purpose.

    Raises:
        AdapterUntrusted: if the signature is of another key, purpose or text.
        AdapterCorrupt: if the text is too long to be looked at.
    """
    if not len(data) <= LARGEST_DOCUMENT:
        msg = f"A document about adapters has {len(data)} bytes, expected {LARGEST_DOCUMENT}."
        raise AdapterCorrupt(msg)
    digest = sha256_hex(data)
    if signature.public_key != trusted:
        msg = f"adapter {digest[:12]}: its signature is not of the trusted key."
        raise AdapterUntrusted(msg, hint="Ask whoever runs the server which key signs adapters.")
    if signature.domain != domain or signature.sha256 != digest or not signature.holds():
        msg = f"adapter {digest[:12]}: its signature does not hold."
        raise AdapterUntrusted(msg, hint="It was changed on the way, or signed for another use.")


def load_object(data: bytes) -> Mapping[str, Any]:
    """Parse a JSON object; anything else has no keys.

    Raises:
        ValueError: for what is no JSON, RecursionError for what is too deep.
    """
    value = json.loads(data.decode("utf-8"))
    return value if isinstance(value, dict) else {}


def record(data: object, cls: type, what: str, *, versioned: bool = True) -> dict[str, Any]:
    """Return the fields of a dataclass from an object with exactly its keys.

    Args:
        data: a parsed JSON value.
        cls: the dataclass.
        what: names the document in the error.
        versioned: whether there is a key "schema" besides.

    Raises:
        InvalidValue: for other keys, or another schema than :data:`SCHEMA`.
    """
    names = {field.name for field in fields(cls)}
    expected = names | {"schema"} if versioned else names
    if not isinstance(data, Mapping) or set(data) != expected:
        msg = f"{what} has other keys than {', '.join(sorted(expected))}."
        raise InvalidValue(msg)
    if versioned and (isinstance(data["schema"], bool) or data["schema"] != SCHEMA):
        msg = f"{what} has another schema than {SCHEMA}."
        raise InvalidValue(msg)
    return {name: data[name] for name in names}


def digest_field(name: str, value: object) -> None:
    """Require 64 hexadecimal digits."""
    if not (isinstance(value, str) and is_digest(value)):
        refuse_field(name, "64 lower-case hexadecimal digits")


def label_field(name: str, value: object) -> None:
    """Require a plain label."""
    if not (isinstance(value, str) and is_label(value)):
        refuse_field(name, "letters, digits, '.', '_' and '-', at most 100")


def time_field(name: str, value: object) -> None:
    """Require a UTC time."""
    if not (isinstance(value, str) and _TIME.fullmatch(value)):
        refuse_field(name, "a time such as 2026-01-31T12:00:00Z")


def number_field(name: str, value: object, least: int, most: int = LARGEST_NUMBER) -> None:
    """Require an integer of a range; a boolean is none."""
    if not (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most):
        refuse_field(name, f"an integer from {least} to {most}")


def refuse_field(name: str, expected: str) -> NoReturn:
    """Raise the error of one field; what was found may be anything and is not shown.

    Raises:
        InvalidValue: always.
    """
    msg = f"{name} of an adapter is not as expected: {expected}."
    raise InvalidValue(msg)
