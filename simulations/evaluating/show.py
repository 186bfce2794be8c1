"""One table of an evaluation: before, after, and what the adapter changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from simulations.evaluating.paired import TWO_SIDED_95

COLUMNS = ("what", "unit", "before", "after", "difference", "95 % interval", "p")
_MIB = 2**20
_NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the table; numbers in the unit that is named.

    Attributes:
        name: what was measured.
        unit: of the numbers.
        digits: that are shown after the point.
        before: of the base alone.
        after: with the adapter; None without one.
        difference: after minus before; a mean of paired differences where there are pairs.
        ci95: its 95 % interval; None where there is none.
        widths: half the 95 % interval of before and of after; None where there is none.
        p: exact p-value of no change; of a group, corrected for the number of groups.
        note: what a reader must know about it.
    """

    name: str
    unit: str
    digits: int
    before: float | None
    after: float | None = None
    difference: float | None = None
    ci95: tuple[float, float] | None = None
    widths: tuple[float | None, float | None] = (None, None)
    p: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    def cells(self) -> list[str]:
        """Return it as text, under :data:`COLUMNS`."""

        def shown(value: float | None, *, sign: str = "") -> str:
            return _NONE if value is None else f"{value:{sign}.{self.digits}f}"

        def around(value: float | None, width: float | None) -> str:
            return shown(value) if width is None else f"{shown(value)} ±{shown(width)}"

        interval = _NONE
        if self.ci95 is not None:
            interval = f"{shown(self.ci95[0], sign='+')} to {shown(self.ci95[1], sign='+')}"
        p_value = _NONE if self.p is None else f"{self.p:.3f}" if self.p >= 0.001 else "<0.001"
        return [
            self.name,
            self.unit,
            around(self.before, self.widths[0]),
            around(self.after, self.widths[1]),
            shown(self.difference, sign="+"),
            interval,
            p_value,
        ]


def lines(result: Mapping[str, Any]) -> list[Line]:
    """Return the lines of an evaluation, in the order of its tasks."""
    readers = {
        "questions": _questions,
        "perplexity": _perplexity,
        "speed": _speed,
        "size": _size,
    }
    found: list[Line] = []
    for name, task in result["tasks"].items():
        found += readers[task["kind"]](name, task)
    return found


def notes(result: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know beside the table."""
    said = [line.note for line in lines(result) if line.note]
    for name, task in result["tasks"].items():
        if task.get("cut"):
            said.append(f"{name}: {task['cut']} choices were longer than the model's window.")
    if result["adapter"] is not None:
        said += result["adapter"]["warnings"]
    return list(dict.fromkeys(said))


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return table and notes in Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(line.cells() for line in lines(result))]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    said = "".join(f"- {note}\n" for note in notes(result))
    return f"{table}\n{said}" if said else table


def _questions(name: str, task: Mapping[str, Any]) -> Iterator[Line]:
    """Yield a task's score, its score per character, and its groups."""
    best = ""
    if task["neutral"] is not None:
        best = f"{name}: {100 * task['neutral']:.0f} % is no preference."
    yield _percent(f"{name} ({task['questions']} questions)", task, note=best)
    if "per_character" in task:
        yield _percent(f"{name}, per character", task["per_character"])
    for group, found in task.get("groups", {}).items():
        line = _percent(f"{name}: {group} ({found['questions']})", found)
        yield Line(**{**asdict(line), "p": found.get("p_holm")})


def _percent(name: str, found: Mapping[str, Any], *, note: str = "") -> Line:
    """Return a line of scores in percent."""
    change = found.get("difference", {})
    interval = change.get("ci95")
    return Line(
        name=name,
        unit="%",
        digits=1,
        before=100 * found["before"]["score"],
        after=100 * found["after"]["score"] if "after" in found else None,
        difference=100 * change["mean"] if change else None,
        ci95=None if interval is None else (100 * interval[0], 100 * interval[1]),
        widths=(_width(found["before"]), _width(found.get("after"))),
        p=found.get("p"),
        note=note,
    )


def _width(found: Mapping[str, Any] | None) -> float | None:
    """Return half the 95 % interval of a score in percent."""
    if found is None or found["se"] is None:
        return None
    return 100 * TWO_SIDED_95 * float(found["se"])


def _perplexity(name: str, task: Mapping[str, Any]) -> Iterator[Line]:
    """Yield mean, worst tenth and pooled perplexity of clients."""
    change, clients = task.get("difference", {}), task["clients"]
    yield _line(
        f"{name}, mean of {clients} clients",
        "per token",
        3,
        task,
        "mean",
        ci95=change.get("ci95"),
        p=task.get("p"),
        note="perplexity: p is of the sign test over clients." if change else "",
    )
    yield _line(
        f"{name}, worst tenth",
        "per token",
        3,
        task,
        "worst_decile",
        ci95=task.get("worst_decile_ci95"),
    )
    yield _line(f"{name}, all tokens", "per token", 3, task, "pooled")


def _speed(name: str, task: Mapping[str, Any]) -> Iterator[Line]:
    """Yield latency, memory and energy."""
    del name
    yield _line("time to first token", "ms", 1, task, "first_token_seconds", factor=1000)
    yield _line("tokens per second", "1/s", 1, task, "tokens_per_second")
    yield _line("peak of loading", "MiB", 1, task, "load_peak_bytes", factor=1 / _MIB)
    yield _line("peak of answering", "MiB", 1, task, "peak_bytes", factor=1 / _MIB)
    yield _line("peak of the process", "MiB", 1, task, "peak_rss_bytes", factor=1 / _MIB)
    method = task["before"]["energy"]["method"]
    says = f"energy: method {method}"
    if method == "none":
        says += "; no counter or battery can be read here, so no number is given"
    yield _line("energy", "J/token", 4, task, "joules_per_token", note=f"{says}.")


def _size(name: str, task: Mapping[str, Any]) -> Iterator[Line]:
    """Yield bytes, and the ratio to float32."""
    del name
    yield _line("size on disk", "MiB", 2, task, "disk_bytes", factor=1 / _MIB)
    yield _line("size in memory", "MiB", 2, task, "memory_bytes", factor=1 / _MIB)
    yield _line("smaller than float32, disk", "times", 2, task, "disk_compression")
    yield _line("smaller than float32, memory", "times", 2, task, "memory_compression")


def _line(
    name: str,
    unit: str,
    digits: int,
    task: Mapping[str, Any],
    key: str,
    *,
    factor: float = 1.0,
    ci95: list[float] | None = None,
    p: float | None = None,
    note: str = "",
) -> Line:
    """Return a line of plain numbers."""
    before, after = (
        None if task.get(view, {}).get(key) is None else factor * task[view][key]
        for view in ("before", "after")
    )
    change = None if before is None or after is None else after - before
    return Line(
        name=name,
        unit=unit,
        digits=digits,
        before=before,
        after=after,
        difference=change,
        ci95=None if ci95 is None else (ci95[0], ci95[1]),
        p=p,
        note=note,
    )
