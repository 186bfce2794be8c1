"""Several audit reports side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def compare(reports: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per audit that any of the reports ran.

    Args:
        reports: parsed reports by name.

    Returns:
        Rows with ``audit``, ``metric``, ``findings`` (value, interval, verdict by report; None
        where a report did not run it) and ``cells`` (the same as text, in the order given).
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, report in reports.items():
        for finding in report["findings"]:
            row = rows.setdefault(
                finding["audit"],
                {
                    "audit": finding["audit"],
                    "metric": str(finding["metric"]).replace("_", " "),
                    "findings": dict.fromkeys(reports),
                },
            )
            row["findings"][name] = {
                key: finding[key] for key in ("value", "interval", "ceiling", "verdict")
            }
    for row in rows.values():
        row["cells"] = [_cell(found) for found in row["findings"].values()]
    return list(rows.values())


def as_markdown(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    head = ["audit", "metric", *names]
    lines = [head, ["---"] * len(head), *([r["audit"], r["metric"], *r["cells"]] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(found: Mapping[str, Any] | None) -> str:
    """Return a finding in one cell."""
    if found is None:
        return "not run"
    value, interval = found["value"], found["interval"]
    text = "-" if value is None else f"{value:.3g}"
    if interval is not None:
        text += f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    return f"{text} {found['verdict']}"
