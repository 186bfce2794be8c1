"""Pictures of what releases and single updates give away; see :mod:`simulations.auditfigures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulations import auditdots
from simulations.auditdots import Dot, Line, Series
from simulations.auditfigures import derived_of, dot_of, finding_of, label
from simulations.loose import number, numbers, pair, table, tables, text
from simulations.pagekit import Picture, picture
from simulations.reporttext import figure

Table = Mapping[str, Any]


def lean_picture(report: Table) -> Picture | None:
    """Draw how far canary clients lean the release, measured and planned."""
    derived = derived_of(report, "client-canary")
    rows, measured, planned = [], [], []
    parts = (
        ("the run", table(derived, "run")),
        ("rehearsed as planned", table(derived, "rehearsal", "planned")),
        ("with half of the noise", table(derived, "rehearsal", "halved")),
    )
    for name, part in parts:
        mean, predicted = number(part, "mean_score"), number(part, "predicted_score")
        error = number(part, "score_standard_error")
        if mean is None or predicted is None or error is None:
            continue
        reach, limit = 1.96 * error, (number(part, "limit") or 0.0) * error
        rows.append(name)
        measured.append(Dot(value=mean, low=mean - reach, high=mean + reach))
        planned.append(Dot(value=predicted, low=predicted - limit, high=predicted + limit))
    if not rows:
        return None
    series = [
        Series(name="planned", dots=tuple(planned), role="null"),
        Series(name="measured", dots=tuple(measured)),
    ]
    told = "; ".join(
        f"{row}: {one.value:.3g} where the plan has {plan.value:.3g}"
        for row, one, plan in zip(rows, measured, planned, strict=True)
    )
    return picture(
        auditdots.dots(rows, series, axis="mean score of canary clients (mu)"),
        title="Canary clients: predicted and measured",
        alt=f"Mean score, {told}.",
        caption=(
            "Blue: measured, with its 95 % interval. Pale: what conforms to the plan. Right of it, "
            "there was less noise, or more weight of a client, than planned. The row "
            "with half of the noise is the positive control and must lie outside."
        ),
    )


def span_picture(report: Table) -> Picture | None:
    """Draw how well single updates show a client's tokens."""
    evidence = table(finding_of(report, "span"), "evidence")
    rows, dots = [], []
    for name, key in (
        ("its own tokens", "auc"),
        ("another client's tokens", "auc_of_another"),
        ("control: short, plain", "control_auc"),
    ):
        values = numbers(evidence, key)
        if values.size:
            between = pair(evidence, "derived", "interval") if key == "auc" else None
            dot = dot_of(float(values.mean()), between)
            rows.append(name)
            dots.append(Dot(value=dot.value, low=dot.low, high=dot.high, cloud=_some(values)))
    if not rows or not numbers(evidence, "auc").size:
        return None
    masked = text(evidence, "stage") == "masked"
    return picture(
        auditdots.dots(
            rows,
            [Series(name="mean over clients", dots=tuple(dots))],
            axis="AUC of token presence",
            limits=(0, 1),
            lines=[Line(label="guessing", value=0.5)],
        ),
        title="Tokens read off single updates" + (", without their masks" if masked else ""),
        alt=(
            f"A client's own tokens are told from others with an AUC of {dots[0].value:.3g}, mean "
            f"over {numbers(evidence, 'auc').size} clients."
        ),
        caption="Each pale dot is one client."
        + (" Nobody sees these: updates travel masked." if masked else ""),
    )


def inversion_picture(report: Table) -> Picture | None:
    """Draw how much of a text comes back from one update, by what is done to the update."""
    finding = finding_of(report, "inversion")
    rows: list[str] = []
    here: list[Dot | None] = []
    without: list[Dot | None] = []
    for one in tables(finding, "evidence", "derived", "results"):
        value = number(one, "rouge_1")
        if value is not None:
            batch = number(one, "batch") or 1
            arm = label(one.get("arm"))
            rows.append(arm if batch == 1 else f"{arm}, {batch:.0f} texts")
            here.append(dot_of(value, pair(one, "interval")))
            baseline = number(one, "baseline")
            without.append(None if baseline is None else Dot(value=baseline))
    if not rows:
        return None
    told = ", ".join(
        f"{row} {figure(dot.value, 3)}" for row, dot in zip(rows, here, strict=True) if dot
    )
    return picture(
        auditdots.dots(
            rows,
            [
                Series(name="from the update", dots=tuple(here)),
                Series(name="without it", dots=tuple(without), role="third"),
            ],
            axis="ROUGE-1 of the recovered text",
            limits=(0, 1),
        ),
        title="Text recovered from single updates",
        alt=f"ROUGE-1 by what is done to an update: {told}.",
        caption=(
            "Without it: the better of the model's own guess and another client's text. The "
            "control is a plain update of a short text, where the attack must work."
        ),
    )


def _some(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return values as a tuple."""
    return tuple(float(value) for value in values)
