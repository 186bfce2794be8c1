"""What a summary says about the task beside the loss: perplexity, or accuracy and macro-F1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.configtask import TaskSection

BEFORE = "classified_before"
AFTER = "classified_after"


def task_summary(
    task: TaskSection,
    measured: Mapping[str, Mapping[str, float]],
    *,
    before: float | None,
    after: float | None,
) -> dict[str, Any]:
    """Return the summary's keys.

    Args:
        task: the scenario's section.
        measured: losses, and accuracy and macro-F1 under :data:`BEFORE` and :data:`AFTER`.
        before: mean loss before the first round; None if nobody was measured.
        after: mean loss after the last.
    """
    if not task.classifies:
        return {
            "perplexity_before": None if before is None else math.exp(before),
            "perplexity_after": None if after is None else math.exp(after),
        }
    first, last = measured.get(BEFORE, {}), measured.get(AFTER, {})
    return {
        "labels": list(task.labels),
        "perplexity_before": None,
        "perplexity_after": None,
        "accuracy_before": first.get("accuracy"),
        "accuracy_after": last.get("accuracy"),
        "macro_f1_before": first.get("macro_f1"),
        "macro_f1_after": last.get("macro_f1"),
    }


def task_rows(
    summary: Mapping[str, Any], change: Callable[[Any, Any], str]
) -> list[tuple[str, str]]:
    """Return the rows of the table that ends a run.

    Args:
        summary: of a run.
        change: writes two values, the second beside its change.
    """
    if not summary.get("labels"):
        return [("perplexity", change(summary["perplexity_before"], summary["perplexity_after"]))]
    found = []
    for name, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1")):
        before, after = summary[f"{key}_before"], summary[f"{key}_after"]
        measured = before is not None and after is not None
        found.append((name, f"{before:.3f} -> {after:.3f}" if measured else "not measured"))
    return found
