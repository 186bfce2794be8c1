"""Leakage against the size of the base model, for the same data and the same training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simulations.studies import tables
from simulations.studies.drawing import SIZE, chance_bits, explain, name_points, points
from simulations.studies.protocol import Arm, Column, Row, Run, Shape, Study
from simulations.svg import VERMILLION, plain_numbers, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEMO = "demo"
_STEPS, _QUICK_STEPS = 500, 20


def arms(quick: bool) -> tuple[Arm, ...]:
    """Return siblings of four sizes pre-trained alike, and the demo model, pre-trained longer."""
    steps = _QUICK_STEPS if quick else _STEPS
    shapes = [
        Shape(hidden=32, layers=2, heads=2, intermediate=88, steps=steps),
        Shape(hidden=64, layers=3, heads=4, intermediate=176, steps=steps),
        Shape(hidden=96, layers=4, heads=4, intermediate=264, steps=steps),
        Shape(hidden=128, layers=4, heads=4, intermediate=344, steps=steps),
    ]
    siblings = [
        Arm(
            name=f"h{shape.hidden}",
            label=f"width {shape.hidden}, {shape.layers} layers",
            shape=shape,
        )
        for shape in (shapes[:2] if quick else shapes)
    ]
    return (*siblings, Arm(name=DEMO, label="demo model"))


def draw(rows: Sequence[Row], runs: Sequence[Run]) -> Mapping[str, str]:
    """Draw exposure and held-out loss against parameters of the base."""
    del runs
    siblings = [row for row in rows if row.name != DEMO]
    demo = [row for row in rows if row.name == DEMO]

    def against(axes: Axes, key: str) -> None:
        points(axes, siblings, "base_parameters", key, line=True, label="pre-trained alike")
        points(
            axes,
            demo,
            "base_parameters",
            key,
            colour=VERMILLION,
            marker="s",
            label="demo model, pre-trained longer",
        )
        axes.set_xscale("log")
        plain_numbers(axes)
        axes.set_xlabel("parameters of the base")
        axes.set_xticks([row.mean("base_parameters") or 1.0 for row in siblings])
        explain(axes)

    def leakage(axes: Axes) -> None:
        against(axes, "secret_bits")
        chance_bits(axes)
        axes.set_ylabel("exposure of secrets, bits")

    def utility(axes: Axes) -> None:
        against(axes, "loss_after")
        axes.set_ylabel("held-out loss, nats a token")

    def both(axes: Axes) -> None:
        points(
            axes, siblings, "loss_after", "secret_bits", label="width of those pre-trained alike"
        )
        points(
            axes,
            demo,
            "loss_after",
            "secret_bits",
            colour=VERMILLION,
            marker="s",
            label="demo model",
        )
        short = {row.name: row.name.removeprefix("h") for row in siblings}
        name_points(axes, siblings, "loss_after", "secret_bits", text=lambda row: short[row.name])
        explain(axes)
        chance_bits(axes)
        axes.margins(x=0.2, y=0.15)
        axes.set_xlabel("held-out loss, nats a token")
        axes.set_ylabel("exposure of secrets, bits")

    return {
        "leakage": render(leakage, size=SIZE),
        "utility": render(utility, size=SIZE),
        "leakage-against-utility": render(both, size=SIZE),
    }


STUDY = Study(
    name="model-size",
    question="Does a larger base model leak more of the same data after the same training?",
    arms=arms,
    quick={
        "run.rounds": 4,
        "clients.population": 60,
        "clients.cohort": 12.0,
        "audit.canaries": 28,
        "audit.references": 64,
        "evaluation.final_clients": 10,
    },
    rows=tables.rows_by_arm,
    columns=(
        Column(key="base_parameters", title="parameters", digits=0),
        Column(key="trainable_parameters", title="trained", digits=0),
        tables.LOSS_BEFORE,
        tables.LOSS_AFTER,
        tables.SECRET_BITS,
        tables.HELD_OUT_BITS,
        tables.SECRET_AUC,
        tables.TOKEN_AUC,
        tables.EXTRACTED,
    ),
    draw=draw,
)
