"""Numbers, times and states as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LARGEST = 1e300
NOTHING = "\u2013"
_NARROW, _FIXED = "\u202f", "\u00a0"


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST else None


def figure(value: object, digits: int = 4) -> str:
    """Return a number with so many significant digits; a dash for none, a word for infinity."""
    if value == math.inf:
        return "infinite"
    found = number(value)
    if found is None:
        return NOTHING
    if found == int(found) and abs(found) < 1e15:
        return f"{found:,.0f}".replace(",", _NARROW)
    if abs(found) < 1e-3 or abs(found) >= 1e6:
        mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{found:#.{digits}g}".rstrip(".")


def setting(value: object) -> str:
    """Return a number that somebody chose, without zeros that nobody wrote."""
    found = number(value)
    return figure(value) if found is None or abs(found) < 1e-3 else f"{found:.6g}"


def size(value: object) -> str:
    """Return bytes in decimal units: ``12.3 kB``."""
    found = number(value)
    if found is None:
        return NOTHING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(found) >= scale:
            return f"{found / scale:.3g}{_FIXED}{unit}"
    return f"{found:.0f}{_FIXED}B"


def duration(value: object) -> str:
    """Return seconds as days, hours, minutes and seconds, the two largest of them."""
    found = number(value)
    if found is None or found < 0:
        return NOTHING
    if found < 60:
        return f"{found:.3g}{_FIXED}s"
    minutes, seconds = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    first = next(index for index, part in enumerate(parts) if part[0])
    kept = [part for part in parts[first : first + 2] if part[0]]
    return " ".join(f"{count}{_FIXED}{unit}" for count, unit in kept)


def ago(then: object, now: float) -> str:
    """Return how long ago something was, in one unit."""
    found = number(then)
    if found is None:
        return "never"
    seconds = now - found
    if seconds < -60:
        return f"in {duration(-seconds)}"
    if seconds < 10:
        return "just now"
    for unit, scale in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= scale:
            return f"{int(seconds // scale)}{_FIXED}{unit} ago"
    return f"{int(seconds)}{_FIXED}s ago"


def moment(value: object) -> str:
    """Return seconds since 1970 as a date and time in UTC."""
    found = number(value)
    if found is None or not 0 <= found < 253402300800:
        return NOTHING
    return f"{datetime.fromtimestamp(found, tz=UTC):%Y-%m-%d %H:%M} UTC"


def clock(value: object) -> str:
    """Return seconds since 1970 as a time of day in UTC."""
    found = number(value)
    return NOTHING if found is None else f"{datetime.fromtimestamp(found, tz=UTC):%H:%M:%S} UTC"


def stamp(value: object) -> str:
    """Return seconds since 1970 for a ``datetime`` attribute."""
    found = number(value)
    if found is None or not 0 <= found < 253402300800:
        return ""
    return f"{datetime.fromtimestamp(found, tz=UTC):%Y-%m-%dT%H:%M:%SZ}"


def short(digest: object) -> str:
    """Return the beginning of a digest."""
    return str(digest)[:12]


def plural(count: int, one: str, many: str | None = None) -> str:
    """Return ``1 node``, ``2 nodes``."""
    return f"{count:,}".replace(",", _NARROW) + f" {one if count == 1 else many or one + 's'}"


FILTERS: Mapping[str, Callable[..., str]] = {
    "figure": figure,
    "setting": setting,
    "size": size,
    "duration": duration,
    "moment": moment,
    "clock": clock,
    "stamp": stamp,
    "short": short,
    "plural": plural,
}
