"""Pictures of an evaluation: scores with their intervals, and perplexity client by client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from simulations.evaluating.paired import TWO_SIDED_95
from simulations.svg import BLUE, GREY, INK, VERMILLION, as_file, legend, plain_numbers, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VIEWS = {"before": (GREY, "before"), "after": (BLUE, "after the adapter")}


def score_plot(result: Mapping[str, Any]) -> str | None:
    """Return an SVG file: every score in percent with its 95 % interval; None without questions."""
    rows = list(_scores(result))
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        for place, (_, found, chance) in enumerate(rows):
            axes.plot(
                [100 * chance] * 2, [place - 0.38, place + 0.38], color=VERMILLION, linewidth=1.2
            )
            views = [view for view in _VIEWS if view in found]
            for offset, view in enumerate(views):
                at = place + (0.3 * offset - 0.15 if len(views) > 1 else 0.0)
                score, error = found[view]["score"], found[view]["se"] or 0.0
                axes.errorbar(
                    [100 * score],
                    [at],
                    xerr=[100 * TWO_SIDED_95 * error],
                    fmt="o",
                    color=_VIEWS[view][0],
                    label=_VIEWS[view][1] if place == 0 else None,
                    linewidth=1.6,
                    markersize=5,
                )
        axes.plot([], [], color=VERMILLION, linewidth=1.2, label="chance")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("score (%), 95 % interval of each")
        legend(axes)

    return as_file(
        render(draw, size=(6.4, 1.3 + 0.34 * len(rows))),
        title="Scores before and after the adapter",
    )


def perplexity_plot(result: Mapping[str, Any]) -> str | None:
    """Return an SVG file: clients' perplexity in ascending order; None if not measured."""
    found = next((t for t in result["tasks"].values() if t["kind"] == "perplexity"), None)
    if found is None:
        return None

    def draw(axes: Axes) -> None:
        for view, (colour, label) in _VIEWS.items():
            values = sorted(found["by_client"].get(view, {}).values())
            if not values:
                continue
            shares = [100 * (index + 1) / len(values) for index in range(len(values))]
            axes.step(values, shares, where="post", color=colour, label=label)
            worst = found[view]["worst_decile"]
            axes.axvline(worst, color=colour, linewidth=1, linestyle="--")
        axes.plot([], [], color=INK, linewidth=1, linestyle="--", label="mean of the worst tenth")
        axes.set_xscale("log")
        plain_numbers(axes)
        axes.set_xlabel("perplexity per token of a client's held-out text, logarithmic")
        axes.set_ylabel("clients with at most that (%)")
        axes.set_ylim(0, 103)
        legend(axes)

    return as_file(render(draw, size=(6.4, 3.3)), title="Perplexity of clients")


def _scores(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], float]]:
    """Yield name, scores and chance of every task and group."""
    for name, task in result["tasks"].items():
        if task["kind"] != "questions":
            continue
        yield name, task, task["chance"]
        if "per_character" in task:
            yield f"{name}, per character", task["per_character"], task["chance"]
        for group, found in task.get("groups", {}).items():
            yield f"{name}: {group}", found, task["chance"]
