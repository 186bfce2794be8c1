"""Leakage of data that was seen late against data that was seen early.

No special training: clients are sampled by coins, so each canary's client has its own rounds by
chance. Canaries whose coin put them into training but whose client was never drawn are the control.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulations.studies.drawing import SIZE, chance_bits, explain
from simulations.studies.numbers import Estimate, rank_correlation
from simulations.studies.protocol import Arm, Column, Row, Run, Study
from simulations.studies.tables import over_seeds
from simulations.svg import BLUE, INK, VERMILLION, render, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THIRDS = ("first", "middle", "last")
Canary = Mapping[str, Any]


def arms(quick: bool) -> tuple[Arm, ...]:
    """Return the one arm: chance does the rest."""
    del quick
    return (Arm(name="all", label="all clients"),)


def third(server_round: int, rounds: int) -> int:
    """Return in which third a round lies, 0 to 2; thirds are as equal as they can be."""
    return 3 * (server_round - 1) // rounds


def rows(arms: Sequence[Arm], runs: Sequence[Run]) -> list[Row]:
    """Group the included canaries by the last round in which their client took part."""
    del arms
    found = [_row("never", "never", runs, lambda canary, _: not canary["rounds"])]
    for place, name in enumerate(THIRDS):

        def inside(canary: Canary, rounds: int, place: int = place) -> bool:
            return bool(canary["rounds"]) and third(canary["rounds"][-1], rounds) == place

        found.append(_row(name, f"last in the {name} third", runs, inside))
    took_part = _row("all", "at least once", runs, lambda canary, _: bool(canary["rounds"]))
    ranks = {
        "correlation": over_seeds(runs, lambda run: _correlation(run, once=False)),
        "once_correlation": over_seeds(runs, lambda run: _correlation(run, once=True)),
    }
    found.append(Row(name="all", label=took_part.label, estimates={**took_part.estimates, **ranks}))
    return found


def draw(rows: Sequence[Row], runs: Sequence[Run]) -> Mapping[str, str]:
    """Draw each canary's exposure against the last round of its client, with means by third."""
    rounds = max(int(run["rounds"]) for run in runs)
    canaries = [canary for run in runs for canary in run["canaries"]]

    def dots(axes: Axes) -> None:
        kinds: list[tuple[str, str, str, Callable[[Canary], bool]]] = [
            ("took part once", BLUE, "o", lambda canary: len(canary["rounds"]) == 1),
            ("more than once", VERMILLION, "x", lambda canary: len(canary["rounds"]) > 1),
        ]
        for label, colour, marker, chosen in kinds:
            kept = [canary for canary in canaries if chosen(canary)]
            axes.scatter(
                [canary["rounds"][-1] for canary in kept],
                [canary["bits"] for canary in kept],
                color=colour,
                marker=marker,
                s=16,
                alpha=0.6,
                label=label,
            )
        for place, name in enumerate(THIRDS):
            mean = next(row.mean("bits") for row in rows if row.name == name)
            members = [r for r in range(1, rounds + 1) if third(r, rounds) == place]
            if mean is not None and members:
                ends = [members[0] - 0.4, members[-1] + 0.4]
                axes.plot(ends, [mean, mean], color=INK, label="mean" if place == 0 else None)
        chance_bits(axes)
        axes.set_xlabel("last round in which the canary's client took part")
        axes.set_ylabel("exposure, bits")
        whole_numbers(axes)
        explain(axes)

    return {"exposure-by-round": render(dots, size=SIZE)}


def _row(name: str, label: str, runs: Sequence[Run], chosen: Callable[[Canary, int], bool]) -> Row:
    """Summarise the canaries of a group, first within each seed, then over seeds."""

    def mean(key: str, *, once: bool) -> Estimate:
        return over_seeds(
            runs,
            lambda run: _mean(c[key] for c in _members(run, chosen) if _counts(c, once=once)),
        )

    return Row(
        name=name,
        label=label,
        estimates={
            "count": over_seeds(runs, lambda run: float(len(_members(run, chosen)))),
            "times": over_seeds(
                runs, lambda run: _mean(len(c["rounds"]) for c in _members(run, chosen))
            ),
            "bits": mean("bits", once=False),
            "gain": mean("gain", once=False),
            "once_count": over_seeds(
                runs,
                lambda run: float(sum(_counts(c, once=True) for c in _members(run, chosen))),
            ),
            "once_bits": mean("bits", once=True),
            "once_gain": mean("gain", once=True),
        },
    )


def _members(run: Run, chosen: Callable[[Canary, int], bool]) -> list[Canary]:
    """Return the included canaries of a run that belong to a group."""
    return [canary for canary in run["canaries"] if chosen(canary, int(run["rounds"]))]


def _counts(canary: Canary, *, once: bool) -> bool:
    """Tell whether a canary counts where only those that took part once may."""
    return not once or len(canary["rounds"]) == 1


def _correlation(run: Run, *, once: bool) -> float | None:
    """Return the rank correlation of exposure with the last round, over canaries that took part."""
    kept = [c for c in run["canaries"] if c["rounds"] and _counts(c, once=once)]
    return rank_correlation([c["rounds"][-1] for c in kept], [c["bits"] for c in kept])


def _mean(values: Any) -> float | None:  # noqa: ANN401 - any iterable of numbers
    """Return the mean; None of nothing."""
    found = list(values)
    return float(np.mean(found)) if found else None


STUDY = Study(
    name="late-or-early",
    question="Does data seen late in training leak more than data seen early?",
    arms=arms,
    quick={
        "run.rounds": 6,
        "clients.population": 48,
        "clients.cohort": 10.0,
        "audit.canaries": 40,
        "audit.references": 64,
        "evaluation.final_clients": 10,
    },
    rows=rows,
    columns=(
        Column(key="count", title="canaries a seed", digits=1),
        Column(key="times", title="times taken part", digits=2),
        Column(key="bits", title="exposure, bits"),
        Column(key="gain", title="gained, nats"),
        Column(key="once_count", title="took part once", digits=1),
        Column(key="once_bits", title="their exposure, bits"),
        Column(key="once_gain", title="they gained, nats"),
        Column(key="correlation", title="rank correlation with the last round"),
        Column(key="once_correlation", title="the same, took part once"),
    ),
    draw=draw,
)
