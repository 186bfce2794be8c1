"""Numbers, units and lists of the run report, as a reader wants them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulations.plots import byte_scale

Table = Mapping[str, Any]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMED_CLIENTS = 10
_LARGEST = 1e300
_NOTHING, _MINUS = "\u2013", "\u2212"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Held-out loss of every measured client, nats per token, clients in the same order.

    ``worst`` names clients of the worst tenth after training, with both losses; ``worst_count`` is
    how many there are, ``worse`` how many clients lost by taking part.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    worst: tuple[tuple[str, float, float], ...]
    worst_count: int
    worst_before: float
    worst_after: float
    worse: int

    @property
    def median_before(self) -> float:
        """Median loss with the base model."""
        return float(np.median(self.before))

    @property
    def median_after(self) -> float:
        """Median loss with the adapter."""
        return float(np.median(self.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One clause of the privacy statement; ``alarm`` marks what must be shown in red."""

    title: str
    text: str
    alarm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes of all clients together: up and down for each round, and their sums."""

    rounds: tuple[tuple[float, float], ...]
    up: float
    down: float


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST <= value <= _LARGEST else None  # JSON has longer integers


def find(summary: Table, key: str) -> object:
    """Return a value from the ``privacy`` section of a summary, else from its top, else None."""
    privacy = summary.get("privacy") or {}
    return privacy[key] if key in privacy else summary.get(key)


def client_spread(evaluation: Table) -> Spread | None:
    """Compare the clients that were measured before and after; None if there is none."""
    before, after = evaluation.get("before") or {}, evaluation.get("after") or {}
    rows = [
        (str(name), float(before[name]), float(loss))
        for name, loss in after.items()
        if number(loss) is not None and number(before.get(name)) is not None
    ]
    if not rows:
        return None
    ranked = sorted(rows, key=lambda row: (-row[2], row[0]))
    count = math.ceil(len(rows) / 10)
    return Spread(
        before=tuple(row[1] for row in rows),
        after=tuple(row[2] for row in rows),
        worst=tuple(ranked[: min(count, _NAMED_CLIENTS)]),
        worst_count=count,
        worst_before=sum(row[1] for row in ranked[:count]) / count,
        worst_after=sum(row[2] for row in ranked[:count]) / count,
        worse=sum(row[2] > row[1] for row in rows),
    )


def traffic(metrics: Sequence[Table], ranks: Sequence[Table] = ()) -> Traffic | None:
    """Add up what the cohorts sent and received; None without rounds.

    Where ranks differ, a cohort is taken to have as many clients of each as the population has.
    """
    if not metrics:
        return None
    rounds = []
    for record in metrics:
        cohort = number(record.get("cohort")) or 0.0
        up, down = (cohort * _per_client(record, ranks, way) for way in ("up", "down"))
        rounds.append((up, down))
    return Traffic(
        rounds=tuple(rounds),
        up=sum(row[0] for row in rounds),
        down=sum(row[1] for row in rounds),
    )


def _per_client(record: Table, ranks: Sequence[Table], way: str) -> float:
    """Return the bytes of a client in a round, on average over the ranks of the population."""
    largest = number(record.get(f"bytes_{way}_per_client")) or 0.0
    known = record.get("bytes_by_rank")
    if not (ranks and isinstance(known, Mapping)):
        return largest
    sizes = [(row["clients"], known.get(str(row["rank"]), {}).get(way)) for row in ranks]
    # A round in which nobody of a rank answered says nothing of its bytes.
    told = [(count, largest if size is None else size) for count, size in sizes]
    return float(sum(count * size for count, size in told) / sum(count for count, _ in told))


def clauses(statement: object) -> list[Clause]:
    """Return the privacy statement as clauses.

    A statement is the JSON form of :class:`shared.privacy.statement.PrivacyStatement`, or a list
    of ``{"title", "text"}`` or of strings.
    """
    if isinstance(statement, Mapping):
        statement = statement.get("clauses")
    if isinstance(statement, str) or not isinstance(statement, Sequence):
        return []
    found = []
    for item in statement:
        if isinstance(item, Mapping):
            title = _title(str(item.get("topic") or item.get("title") or "").replace("-", " "))
            alarm = item.get("alarm") is True
            found.append(Clause(title=title, text=str(item.get("text", "")), alarm=alarm))
        else:
            found.append(Clause(title="", text=str(item), alarm=False))
    return found


def facts(values: object) -> list[tuple[str, str]]:
    """Return a mapping as rows of a table."""
    if not isinstance(values, Mapping):
        return []
    return [(_title(key), _sentence(value)) for key, value in values.items()]


def size(value: object) -> str:
    """Return bytes in decimal units: ``12.3 kB``."""
    found = number(value)
    if found is None:
        return "not measured"
    scale, unit = byte_scale(abs(found))
    return f"{found / scale:.0f}\u00a0{unit}" if scale == 1 else f"{found / scale:.3g}\u00a0{unit}"


def duration(value: object) -> str:
    """Return seconds as hours, minutes and seconds."""
    found = number(value)
    if found is None:
        return "not measured"
    if found < 60:
        return f"{found:.3g} s"
    minutes, seconds = divmod(round(found), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def figure(value: object, digits: int = 4) -> str:
    """Return a number with so many significant digits, or a dash."""
    found = number(value)
    if found is None:
        return _NOTHING
    if found == int(found) and abs(found) < 1e15:
        return f"{found:,.0f}".replace(",", "\u202f")
    if abs(found) < 1e-3 or abs(found) >= 1e6:
        mantissa, exponent = f"{found:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
    return f"{found:#.{digits}g}".rstrip(".")


def setting(value: object) -> str:
    """Return a number that somebody chose, without zeros that nobody wrote."""
    found = number(value)
    return figure(value) if found is None or abs(found) < 1e-3 else f"{found:.6g}"


def prose(text: object) -> str:
    """Return a sentence in which no line breaks between a number and its percent sign."""
    return str(text).replace(" %", "\u00a0%")


def change(before: object, after: object) -> str:
    """Return the relative change in percent with its sign, or nothing."""
    first, last = number(before), number(after)
    if first is None or last is None or first <= 0:
        return ""
    percent = 100 * (last / first - 1)
    return f"{'+' if percent > 0 else _MINUS}{abs(percent):.1f}\u00a0%"


def _title(key: object) -> str:
    """Return a key as words."""
    text = str(key).replace("_", " ")
    return text[:1].upper() + text[1:]


def _sentence(value: object) -> str:
    """Return a value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(value)
    if isinstance(value, list | tuple):
        return ", ".join(_sentence(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_sentence(item)}" for key, item in value.items())
    return _NOTHING if value is None else str(value)


FILTERS: Mapping[str, Callable[..., str]] = {
    "size": size,
    "duration": duration,
    "figure": figure,
    "setting": setting,
    "prose": prose,
    "change": change,
    "sentence": _sentence,
}


def loss_unit(summary: Mapping[str, Any]) -> str:
    """Return what a held-out loss is a mean over."""
    return "nats per text" if summary.get("labels") else "nats per token"
