"""Checks of what a request asks for, the same in every service."""

from __future__ import annotations

import re
from collections.abc import Sequence

from server.control.refusals import Malformed

_DIGEST = re.compile(r"[0-9a-f]{64}")


def page_size(asked: int, most: int) -> int:
    """Return how many items a page has; 0 asks for as many as there may be."""
    return min(asked or most, most)


def page_after(names: Sequence[str], after: str, size: int) -> tuple[list[str], bool]:
    """Return a page of ascending names that comes after one, and whether there are more."""
    rest = [name for name in names if name > after]
    return rest[:size], len(rest) > size


def digest(text: str) -> str:
    """Return a SHA-256 digest.

    Raises:
        Malformed: unless it is 64 lower-case hexadecimal digits.
    """
    if _DIGEST.fullmatch(text) is None:
        msg = "the digest is not 64 lower-case hexadecimal digits."
        raise Malformed(msg)
    return text
