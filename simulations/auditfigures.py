"""From the findings of an audit report to pictures with words.

Nothing here fails on a report of another version: a picture whose numbers are not there is left
out. Values come from the evidence, so a picture shows what ``fedslm audit verify`` checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulations import auditdots, auditplots
from simulations.auditdots import Dot, Line, Series
from simulations.auditplots import Bound, Curve
from simulations.loose import (
    items,
    number,
    numbers,
    pair,
    table,
    tables,
    text,
)
from simulations.pagekit import Picture, picture
from simulations.reporttext import figure, setting

Table = Mapping[str, Any]

PRIMARY = "reference"
_LONGEST = 26
_PARAMETRIC = {
    "f_dp_one_run": "f-DP in one run",
    "gdp_thresholds": "Gaussian thresholds",
    "rate_ratio": "ratio of rates",
}


def finding_of(report: Table, audit: str) -> Table:
    """Return the finding of an audit; empty if there is none."""
    found = [f for f in tables(report, "findings") if f.get("audit") == audit]
    return found[0] if found else {}


def derived_of(report: Table, audit: str, *keys: str) -> Table:
    """Return what an audit derived from its evidence, or a part of that."""
    return table(finding_of(report, audit), "evidence", "derived", *keys)


def label(value: object) -> str:
    """Return a name from a file as a plot can show it: plain characters, not too long."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in str(value)).replace("_", " ").strip()
    short = plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 3]}..."
    return short.replace("$", r"\$") or "?"


def bounds_picture(report: Table) -> Picture | None:
    """Draw every lower bound on epsilon against what is claimed."""
    rows = [*_certified(report), *_parametric(report)]
    if not rows:
        return None
    lines = list(_claimed(report))
    at = _at_delta(rows)
    alone = len({row.delta for row in rows}) == 1 and rows[0].delta is not None
    axis = f"epsilon at delta {setting(rows[0].delta)}" if alone else "epsilon"
    best = max((row.value for row in rows if row.certified), default=None)
    told = ", ".join(f"{line.label} {line.value:.3g}" for line in lines)
    found = (
        "No bound is certified." if best is None else f"The largest certified bound is {best:.3g}."
    )
    against = f" Epsilon: {told}." if told else " No epsilon is claimed."
    caption = (
        "A certified bound right of the epsilon that covers it would contradict the claim. A bound "
        "left of it does not confirm the claim: the attack may be weak. Canary clients are held "
        "against the claim itself, record canaries against what covers them. Numbers on the right: "
        "the bound, of the most that it could have been, which may lie beyond the edge."
    )
    drawn = auditplots.bounds(rows, lines, axis=axis)
    return picture(
        drawn, title="Lower bounds on epsilon", alt=f"{found}{against}{at}", caption=caption
    )


def primary_score(report: Table, name: str) -> str:
    """Return the score of a set of texts that was chosen beforehand."""
    return text(derived_of(report, "membership", "sets"), name, "primary_score") or PRIMARY


def roc_picture(report: Table) -> Picture | None:
    """Draw the ROC curves of membership, all sets of texts."""
    finding = finding_of(report, "membership")
    curves = [
        Curve(name=label(one.get("name")), inside=inside, outside=outside)
        for one in tables(finding, "evidence", "sets")
        for score in [primary_score(report, text(one, "name"))]
        for inside, outside in [[numbers(one, "scores", score, side) for side in ("in", "out")]]
        if inside.size and outside.size
    ]
    value = number(finding, "value")
    if not curves or value is None:
        return None
    interval = pair(finding, "interval")
    between = "" if interval is None else f", interval {interval[0]:.3g} to {interval[1]:.3g}"
    control = number(report, "controls", "membership", "value")
    there = "" if control is None else f" On the positive control it is {control:.3g}."
    main = text(finding, "evidence", "derived", "primary_set")
    alpha = number(finding, "alpha") or 0.05
    return picture(
        auditplots.roc(curves, alpha=min(max(alpha, 1e-9), 0.5)),
        title="Membership: ROC curves",
        alt=(
            f"The area under the curve{f' of {main}' if main else ''} is {value:.3g}{between}; "
            f"guessing is 0.5.{there}"
        ),
        caption=(
            "The left edge matters most: how many members are named with few wrong accusations. "
            "Bands are pointwise, so a curve may leave them somewhere by chance."
        ),
    )


def auc_picture(report: Table) -> Picture | None:
    """Draw the area under the curve of every set, beside the control and blind attackers."""
    sets = derived_of(report, "membership", "sets")
    rows: list[str] = []
    here: list[Dot | None] = []
    blind: list[Dot | None] = []
    for name in sets:
        primary = primary_score(report, name)
        value = number(sets, name, "scores", primary, "auc")
        if value is not None:
            rows.append(label(name))
            here.append(dot_of(value, pair(sets, name, "scores", primary, "interval")))
            without = number(sets, name, "blind", "base_loss", "auc")
            blind.append(None if without is None else Dot(value=without))
    if not rows:
        return None
    series = [Series(name="this adapter", dots=tuple(here))]
    control = table(report, "controls", "membership")
    value = number(control, "value")
    main = text(derived_of(report, "membership"), "primary_set")
    if value is not None and label(main) in rows:
        there = [
            dot_of(value, pair(control, "interval")) if row == label(main) else None for row in rows
        ]
        series.append(Series(name="positive control", dots=tuple(there), role="second"))
    series.append(Series(name="base model alone", dots=tuple(blind), role="third"))
    told = ", ".join(
        f"{row} {figure(dot.value, 3)}" for row, dot in zip(rows, here, strict=True) if dot
    )
    return picture(
        auditdots.dots(
            rows, series, axis="AUC", limits=(0, 1), lines=[Line(label="guessing", value=0.5)]
        ),
        title="Membership: area under the curve",
        alt=f"AUC by set of texts: {told}.",
        caption="Where the base model alone tells the sides apart, the set counts for nothing.",
    )


def exposure_pictures(report: Table) -> list[Picture]:
    """Draw the exposure histogram of each kind of canary, the main one first."""
    finding = finding_of(report, "exposure")
    derived = table(finding, "evidence", "derived")
    kinds = table(derived, "kinds")
    main = text(derived, "main_kind")
    found = []
    for name in sorted(kinds, key=lambda kind: (kind != main, kind)):
        included, held_out = (numbers(kinds, name, side) for side in ("included", "held_out"))
        ceiling = _exposure_ceiling(finding, name)
        if not (included.size and held_out.size) or ceiling is None:
            continue
        means = [Line(label="mean", value=float(included.mean()))]
        control = number(report, "controls", "exposure", "value")
        there = ""
        if name == main and control is not None:
            means.append(Line(label="control's mean", value=control))
            there = f", {control:.3g} on the positive control"
        found.append(
            picture(
                auditplots.exposure(
                    included.tolist(), held_out.tolist(), ceiling=ceiling, means=means
                ),
                title=f"Exposure: {name.replace('_', ' ')}",
                alt=(
                    f"Trained-on canaries reach {included.mean():.3g} bits on average{there}; "
                    f"kept-out ones {held_out.mean():.3g}, chance is about 1.44."
                ),
                caption=(
                    "Half of all canaries gain less than one bit by chance, a quarter one to two, "
                    "and so on: the diamonds. Bars of trained-on canaries far to the right are "
                    f"leaks. At most {ceiling:.3g} bits can be shown."
                ),
            )
        )
    return found


def _certified(report: Table) -> Iterator[Bound]:
    """Yield the certified bounds of the one-run audit and of exposure."""
    for kind in tables(derived_of(report, "one-run"), "kinds"):
        value = number(kind, "epsilon_lower_bound")
        if value is not None:
            yield Bound(
                label=f"one-run: {label(kind.get('kind'))}",
                value=value,
                ceiling=number(kind, "ceiling"),
                certified=True,
                limit=_other_limit(report, number(kind, "epsilon_applicable")),
                delta=number(kind, "delta"),
            )
    proof = derived_of(report, "exposure", "bound")
    value = number(proof, "epsilon_lower_bound")
    if value is not None and proof.get("certified") is True:
        yield Bound(
            label="exposure: top of the ranking",
            value=value,
            ceiling=number(proof, "ceiling_epsilon"),
            certified=True,
            limit=_other_limit(report, number(proof, "epsilon_applicable")),
            delta=number(proof, "delta"),
        )


def _parametric(report: Table) -> Iterator[Bound]:
    """Yield the bounds that assume a Gaussian trade-off curve."""
    finding = finding_of(report, "client-canary")
    value = number(finding, "value")
    if value is not None:
        yield Bound(
            label="canary clients",
            value=value,
            ceiling=number(finding, "ceiling"),
            certified=False,
            delta=number(derived_of(report, "client-canary", "run"), "delta"),
        )
    for kind in tables(derived_of(report, "one-run"), "kinds"):
        for key, words in _PARAMETRIC.items():
            value = number(kind, "parametric", key, "epsilon")
            if value is not None:
                name = f"{label(kind.get('kind'))}: {words}"
                delta = number(kind, "parametric", "delta")
                yield Bound(label=name, value=value, ceiling=None, certified=False, delta=delta)


def _at_delta(rows: Sequence[Bound]) -> str:
    """Return at which delta bounds are stated; an epsilon says nothing without it."""
    said = {}
    for certified, words in ((True, "certified"), (False, "parametric")):
        deltas = {setting(row.delta) for row in rows if row.certified == certified}
        if deltas:
            said[words] = " and ".join(sorted(deltas))
    if len(set(said.values())) == 1:
        return f" Bounds are stated at delta {next(iter(said.values()))}."
    return " Bounds are stated at delta: " + ", ".join(f"{w} {d}" for w, d in said.items()) + "."


def _claimed(report: Table) -> Iterator[Line]:
    """Yield the epsilons that bounds are held against."""
    claimed, applicable = number(report, "epsilon_claimed"), number(report, "epsilon_applicable")
    if claimed is None:
        return
    yield Line(label="claimed", value=claimed)
    again = number(finding_of(report, "ledger"), "value")
    if again is not None and abs(again - claimed) > 0.005 * claimed:
        yield Line(label="from the ledger", value=again)
    if applicable is not None and abs(applicable - claimed) > 1e-9:
        yield Line(label="covers a canary", value=applicable)


def _other_limit(report: Table, limit: float | None) -> float | None:
    """Return the epsilon that a kind is held against, unless it is one of the lines."""
    known = [number(report, key) for key in ("epsilon_claimed", "epsilon_applicable")]
    same = any(one is not None and limit is not None and abs(one - limit) < 1e-9 for one in known)
    return None if same else limit


def _exposure_ceiling(finding: Table, kind: str) -> float | None:
    """Return the most bits that a kind's references can show."""
    for entry in tables(finding, "evidence", "kinds"):
        if entry.get("kind") == kind:
            references = len(items(entry, "tuned", "references"))
            return math.log2(references + 1) if references else None
    return None


def dot_of(value: float, interval: tuple[float, float] | None) -> Dot:
    """Return a value with its interval, if it has one."""
    if interval is None:
        return Dot(value=value)
    return Dot(value=value, low=interval[0], high=interval[1])
