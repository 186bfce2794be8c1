"""Attention against feed-forward layers as targets of LoRA, at nearly as many parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from simulations.studies import tables
from simulations.studies.drawing import SIZE, chance_bits, name_points, points
from simulations.studies.protocol import Arm, Column, Row, Run, Study
from simulations.svg import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
# Trained under ffa, a rank of the demo model costs 384, 816 or 1,200 parameters a layer; these
# ranks are within 4 % of each other.
RANKS = {"attention": 13, "mlp": 6, "both": 4}
_SCALE = 2.0


def arms(quick: bool) -> tuple[Arm, ...]:
    """Return attention alone, feed-forward alone, and both."""
    del quick
    modules = {"attention": ATTENTION, "mlp": FEED_FORWARD, "both": (*ATTENTION, *FEED_FORWARD)}
    labels = {"attention": "attention", "mlp": "MLP", "both": "both"}
    return tuple(
        Arm(
            name=name,
            label=f"{labels[name]}, rank {rank}",
            overrides={
                "lora.r": rank,
                "lora.alpha": _SCALE * rank,
                "lora.target_modules": modules[name],
            },
        )
        for name, rank in RANKS.items()
    )


def draw(rows: Sequence[Row], runs: Sequence[Run]) -> Mapping[str, str]:
    """Draw exposure against held-out loss, one point a choice of targets."""
    del runs

    def frontier(axes: Axes) -> None:
        points(axes, rows, "loss_after", "secret_bits")
        name_points(axes, rows, "loss_after", "secret_bits")
        chance_bits(axes)
        axes.margins(x=0.25, y=0.2)
        axes.set_xlabel("held-out loss, nats a token")
        axes.set_ylabel("exposure of secrets, bits")

    return {"leakage": render(frontier, size=SIZE)}


STUDY = Study(
    name="targets",
    question="Does LoRA on attention leak more or less than LoRA on the feed-forward layers?",
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
        Column(key="trainable_parameters", title="trained parameters", digits=0),
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
