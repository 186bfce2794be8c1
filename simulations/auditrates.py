"""Pictures of rates and of what single updates give away; see :mod:`simulations.auditfigures`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.audit import stats
from simulations import auditdots
from simulations.auditdots import Dot, Line, Series
from simulations.auditfigures import derived_of, dot_of, finding_of, label
from simulations.loose import names, number, pair, table, tables, text
from simulations.pagekit import Picture, picture

Table = Mapping[str, Any]


def extraction_picture(report: Table) -> Picture | None:
    """Draw which share of secrets and facts can be got out."""
    derived = derived_of(report, "extraction")
    rows: list[str] = []
    found: dict[str, list[Dot | None]] = {"here": [], "out": [], "base": []}
    settings = (("greedy", "greedy"), ("discoverable_1000_0.1", "1000 samples"))
    parts = [
        (name, table(derived, "kinds", name), "included", "held_out")
        for name in table(derived, "kinds")
    ]
    facts = table(derived, "facts", "kinds")
    parts += [(name, table(facts, name), "trained", "fresh") for name in facts]
    for name, part, inside, outside in parts:
        for key, words in settings:
            dots = {
                "here": _share(part, inside, "tuned", key),
                "out": _share(part, outside, "tuned", key),
                "base": _share(part, inside, "base", key),
            }
            if dots["here"] is not None:
                rows.append(f"{label(name)}, {words}")
                for column, dot in dots.items():
                    found[column].append(dot)
    if not rows:
        return None
    series = [
        Series(name="trained on", dots=tuple(found["here"])),
        Series(name="kept out", dots=tuple(found["out"]), role="second"),
        Series(name="base model", dots=tuple(found["base"]), role="third"),
    ]
    best = max(dot.value for dot in found["here"] if dot)
    return picture(
        auditdots.dots(rows, series, axis="extractable (%)", limits=(0, 1), percent=True),
        title="Extraction of secrets and facts",
        alt=f"At most {100 * best:.3g} % of the trained-on texts of a kind come out word for word.",
        caption=(
            "Greedy: what the model writes by itself after what stands before the secret. 1000 "
            "samples: comes out of them with a chance of 10 % or more. Intervals are "
            "Clopper-Pearson at 95 %."
        ),
    )


def leak_pictures(report: Table) -> list[Picture]:
    """Draw how often prompts leak, by family of attack and by defence, and how often goals are."""
    finding = finding_of(report, "prompt-leak")
    drawn = (_families(finding), _defences(finding), _hijacks(finding))
    return [one for one in drawn if one is not None]


def redaction_picture(report: Table) -> Picture | None:
    """Draw recall and precision of the redactor by kind of personal data, the worst kind first."""
    finding = finding_of(report, "query-privacy")
    derived = table(finding, "evidence", "derived")
    kinds = table(derived, "kinds")
    protected = names(finding, "evidence", "protected")
    known = [
        (number(kinds, name, "recall", "hidden"), name)
        for name in kinds
        if name in protected or not protected
    ]
    rows = sorted((value, name) for value, name in known if value is not None)
    if not rows:
        return None
    hidden = [dot_of(value, pair(kinds, name, "recall", "interval")) for value, name in rows]
    right = [_measured(table(kinds, name, "precision")) for _, name in rows]
    gate = number(derived, "gate")
    worst, name = rows[0]
    return picture(
        auditdots.dots(
            [label(name).lower() for _, name in rows],
            [
                Series(name="hidden", dots=tuple(hidden)),
                Series(name="rightly taken", dots=tuple(right), role="third"),
            ],
            axis="share (%)",
            limits=(0, 1),
            lines=[] if gate is None else [Line(label=f"gate {100 * gate:.0f} %", value=gate)],
            percent=True,
        ),
        title="Personal data hidden from queries",
        alt=(
            f"Of {len(rows)} protected kinds, {label(name).lower()} is hidden least: "
            f"{100 * worst:.3g} %."
        ),
        caption=(
            "Hidden: no letter or digit of it leaves (recall). Rightly taken: of what was taken "
            "out as this kind, the share that is personal (precision). Intervals are "
            "Clopper-Pearson, corrected for the number of kinds."
        ),
    )


def _share(part: Table, side: str, model: str, key: str) -> Dot | None:
    """Return a share of texts with its exact interval."""
    count, hits = number(part, side, model, "count"), number(part, side, model, key)
    if count is None or hits is None or not 0 <= hits <= count or count < 1:
        return None
    return dot_of(hits / count, stats.clopper_pearson(int(hits), int(count)))


def _families(finding: Table) -> Picture | None:
    """Draw leak rates by family of attack."""
    families = table(finding, "evidence", "derived", "families")
    rows = [
        (name, number(families, name, "adapter", "any"), number(families, name, "base", "any"))
        for name in families
    ]
    known = [(name, here, base) for name, here, base in rows if here is not None]
    if not known:
        return None
    known.sort(key=lambda row: -row[1])
    series = [
        Series(name="with the adapter", dots=tuple(Dot(value=here) for _, here, _ in known)),
        Series(
            name="base model alone",
            dots=tuple(None if base is None else Dot(value=base) for _, _, base in known),
            role="third",
        ),
    ]
    name, best, _ = known[0]
    return picture(
        auditdots.dots(
            [label(row[0]) for row in known],
            series,
            axis="prompts given away (%)",
            limits=(0, 1),
            percent=True,
        ),
        title="System prompts: leaks by family of attack",
        alt=(
            f"The family {name} opens most: {100 * best:.3g} % of {_count(finding, 'n_in')} "
            "prompts by at least one of its attacks."
            if best > 0
            else "0 % of the prompts were opened with the adapter, by any family."
        ),
        caption="A prompt counts as given away if an answer holds all of it or nearly all.",
    )


def _defences(finding: Table) -> Picture | None:
    """Draw leak rates by defence."""
    defences = table(finding, "evidence", "derived", "defences")
    known = [(name, number(defences, name, "any")) for name in defences]
    rows = [(name, value) for name, value in known if value is not None]
    if not rows:
        return None
    dots = tuple(dot_of(value, pair(defences, name, "interval")) for name, value in rows)
    best = min(rows, key=lambda row: row[1])
    return picture(
        auditdots.dots(
            [label(name) for name, _ in rows],
            [Series(name="with the adapter", dots=dots)],
            axis="prompts given away (%)",
            limits=(0, 1),
            percent=True,
        ),
        title="System prompts: leaks by defence",
        alt=f"{best[0]} lets {100 * best[1]:.3g} % of the prompts out, the least of all.",
        caption="Every defence meets the same attacks, one of each family.",
    )


def _hijacks(finding: Table) -> Picture | None:
    """Draw how often injected instructions were obeyed, by family of injection."""
    abuse = table(finding, "evidence", "abuse")
    families = [text(one, "family") for one in tables(abuse, "injections")]
    rates = {side: _by_column(names(abuse, side), families) for side in ("adapter", "base")}
    rows = [name for name in dict.fromkeys(families) if name in rates["adapter"]]
    if not rows:
        return None
    rows.sort(key=lambda name: -rates["adapter"][name])
    series = [
        Series(
            name=words,
            dots=tuple(
                Dot(value=rates[side][name]) if name in rates[side] else None for name in rows
            ),
            role=role,
        )
        for side, words, role in (
            ("adapter", "with the adapter", "first"),
            ("base", "base model alone", "third"),
        )
    ]
    return picture(
        auditdots.dots(
            [label(name) for name in rows],
            series,
            axis="injections obeyed (%)",
            limits=(0, 1),
            percent=True,
        ),
        title="Goal hijack by family of injection",
        alt=(
            f"Injections of family {rows[0]} are obeyed most: in "
            f"{100 * rates['adapter'][rows[0]]:.3g} % of the conversations with the adapter."
            if rates["adapter"][rows[0]] > 0
            else "0 % of the injections were obeyed with the adapter."
        ),
        caption="An injection counts as obeyed if the answer does what it asks for.",
    )


def _by_column(rows: Sequence[str], families: Sequence[str]) -> dict[str, float]:
    """Return the share of ones among what was tried, by family of the column."""
    signs: dict[str, list[bool]] = {}
    for row in rows:
        for family, sign in zip(families, row, strict=False):
            if sign in "01":
                signs.setdefault(family, []).append(sign == "1")
    return {family: sum(found) / len(found) for family, found in signs.items()}


def _count(finding: Table, key: str) -> str:
    """Return a count as text."""
    value = number(finding, key)
    return "the" if value is None else f"{value:.0f}"


def _measured(part: Table) -> Dot | None:
    """Return a value that is stored with its interval."""
    value = number(part, "value")
    return None if value is None else dot_of(value, pair(part, "interval"))
