"""Leakage against utility: the same training at several epsilons, and without any privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulations.studies import tables
from simulations.studies.drawing import SIZE, chance_bits, explain, name_points, points, present
from simulations.studies.protocol import Arm, Column, Row, Run, Study
from simulations.svg import GREY, VERMILLION, plain_numbers, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EPSILONS = (50.0, 20.0, 8.0, 3.0, 1.0)
LITTLE_NOISE = 0.01
"""Noise over clip of the arm that is hardly noised: no accountant takes none at all."""


def arms(quick: bool) -> tuple[Arm, ...]:
    """Return no privacy, the clip with hardly any noise, and falling epsilons."""
    private = [
        Arm(
            name=f"epsilon-{epsilon:g}",
            label=f"epsilon {epsilon:g}",
            overrides={"privacy.epsilon": epsilon},
        )
        for epsilon in ((8.0,) if quick else EPSILONS)
    ]
    clipped = {"privacy.epsilon": None, "privacy.noise_multiplier": LITTLE_NOISE}
    return (
        Arm(name="none", label="no privacy", overrides={"privacy.mode": "none"}),
        Arm(name="clip", label=f"clip, noise {LITTLE_NOISE:g}", overrides=clipped),
        *private,
    )


def draw(rows: Sequence[Row], runs: Sequence[Run]) -> Mapping[str, str]:
    """Draw exposure against held-out loss, and the certified bound against the ledger's epsilon."""
    del runs

    def frontier(axes: Axes) -> None:
        points(axes, rows, "loss_after", "secret_bits", line=True)
        name_points(axes, rows, "loss_after", "secret_bits")
        chance_bits(axes)
        axes.margins(x=0.15, y=0.15)
        axes.set_xlabel("held-out loss, nats a token")
        axes.set_ylabel("exposure of secrets, bits")

    def bound(axes: Axes) -> None:
        x = "epsilon_applicable"
        kept = present(rows, x, "epsilon_lower_bound")
        points(axes, kept, x, "epsilon_lower_bound", label="certified by the audit")
        points(axes, kept, x, "epsilon_ceiling", colour=VERMILLION, marker="_", label="its ceiling")
        # The claims soon leave what any audit of so few canaries could certify far below them.
        top = 1.3 * max(row.mean("epsilon_ceiling") or 1.0 for row in kept)
        # Equality is a curve where one axis is logarithmic, so it takes more than its two ends.
        allowed = np.geomspace(0.01 * top, top)
        axes.plot(allowed, allowed, color=GREY, linestyle=(0, (4, 3)), label="allowed")
        axes.set_xscale("log")
        plain_numbers(axes)
        axes.set_xlim(left=0.5 * min(top, *(row.mean(x) or 1.0 for row in kept)))
        axes.set_ylim(-0.04 * top, top)
        axes.set_xlabel("epsilon of the ledger for one changed client")
        axes.set_ylabel("epsilon at least")
        explain(axes)

    plots = {"frontier": render(frontier, size=SIZE)}
    if present(rows, "epsilon_applicable", "epsilon_lower_bound"):
        plots["bound"] = render(bound, size=SIZE)
    return plots


STUDY = Study(
    name="leakage-utility",
    question="What does each epsilon cost in held-out loss, and what does it take away in leakage?",
    arms=arms,
    quick={
        "run.rounds": 3,
        "clients.population": 48,
        "clients.cohort": 12.0,
        "audit.canaries": 32,
        "audit.references": 64,
        "evaluation.final_clients": 10,
    },
    rows=tables.rows_by_arm,
    columns=(
        Column(key="epsilon", title="epsilon of the ledger"),
        Column(key="epsilon_applicable", title="for one changed client"),
        Column(key="noise_multiplier", title="noise over clip", digits=3),
        tables.LOSS_BEFORE,
        tables.LOSS_AFTER,
        tables.SECRET_BITS,
        tables.HELD_OUT_BITS,
        tables.SECRET_AUC,
        tables.EXTRACTED,
        Column(key="epsilon_lower_bound", title="certified lower bound"),
        Column(key="epsilon_ceiling", title="its ceiling"),
    ),
    draw=draw,
)
