"""The tables of the audit page, every cell as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.audit.conformance import LEVEL, TESTS
from simulations.auditfigures import derived_of, finding_of, primary_score
from simulations.audittext import NOTHING, percent
from simulations.loose import names, number, pair, table, tables, text
from simulations.reporttext import figure, setting

Table = Mapping[str, Any]
Row = Sequence[str]

MOST_ROWS = 200
"""Most rows of one table; further ones are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One table.

    Args:
        caption: what it shows.
        head: names of the columns; one that ends in ``#`` holds numbers.
        rows: cells as text, as many as columns.
        note: a sentence below; may be empty.
        folded: whether it is shown on demand only.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""
    folded: bool = False


def membership_grids(report: Table) -> list[Grid]:
    """Return members found at few false accusations, and every score on every set."""
    sets = derived_of(report, "membership", "sets")
    rates, scores = [], []
    for name in sets:
        for score in table(sets, name, "scores"):
            part = table(sets, name, "scores", score)
            if score == primary_score(report, name) and any(_shown(part)):
                rates.append([name, *_shown(part)])
            detected = {True: "yes", False: "no"}.get(part.get("detected") is True, NOTHING)
            scores.append(
                [
                    name,
                    score,
                    figure(part.get("auc"), 3),
                    between(pair(part, "interval")),
                    figure(part.get("p_value"), 2),
                    detected,
                ]
            )
    return list(
        _present(
            Grid(
                caption="Members found while few others are accused",
                head=("Set", "at 10 %#", "at 1 %#", "at 0.1 %#"),
                rows=tuple(rates),
                note="True positive rate of the score that was fixed beforehand; empty where "
                "so few non-members cannot show the rate.",
            ),
            Grid(
                caption="Every score on every set",
                head=("Set", "Score", "AUC#", "Interval#", "p, corrected#", "Told apart"),
                rows=tuple(scores),
                folded=True,
            ),
        )
    )


def extraction_grids(report: Table) -> list[Grid]:
    """Return how many texts of each kind come out, by every measure."""
    derived = derived_of(report, "extraction")
    parts = [
        (
            name,
            table(derived, "kinds", name),
            (("included", "trained on"), ("held_out", "kept out")),
        )
        for name in table(derived, "kinds")
    ]
    facts = table(derived, "facts", "kinds")
    parts += [
        (name, table(facts, name), (("trained", "trained on"), ("fresh", "never seen")))
        for name in facts
    ]
    rows = []
    for name, part, sides in parts:
        for side, words in sides:
            for model, model_words in (("tuned", "adapter"), ("base", "base")):
                found = table(part, side, model)
                if found:
                    rows.append(
                        [
                            name,
                            f"{words}, {model_words}",
                            figure(found.get("count")),
                            figure(found.get("greedy")),
                            figure(found.get("discoverable_1000_0.1")),
                            figure(found.get("discoverable_1000000_0.5")),
                            percent(found.get("extraction_strength")),
                            percent(found.get("exact_memorization")),
                        ]
                    )
    head = (
        "Kind",
        "Texts",
        "Number#",
        "Greedy#",
        "1000 samples#",
        "10⁶ samples#",
        "Strength#",
        "Tokens#",
    )
    note = (
        "1000 samples: comes out of them with a chance of 10 % or more; a million: of 50 % or "
        "more. Strength: mean share of a text that greedy decoding completes. Tokens: mean share "
        "that it would write."
    )
    grid = Grid(caption="Texts that come out", head=head, rows=tuple(rows), note=note, folded=True)
    return list(_present(grid))


def mechanism_grids(report: Table) -> list[Grid]:
    """Return every test of the mechanism with its corrected p-value, and the sabotage it caught."""
    derived = derived_of(report, "mechanism")
    rows = [row for check in tables(derived, "checks") for row in _tests(check)]
    controls = table(derived, "controls")
    caught = {True: "caught", False: "not caught"}
    summary = Grid(
        caption="Mechanism: what ran against the plan",
        head=("Check", "Smallest p, corrected#", "Tests#", "Outcome"),
        rows=tuple(_check(check) for check in tables(derived, "checks")),
        note=(
            f"p-values are multiplied by {TESTS}, whatever the number of tests that a run allows; "
            f"below {LEVEL:g} a test contradicts the plan."
        ),
    )
    tests = Grid(
        caption="Mechanism: every test",
        head=("Check", "Test", "p, corrected#", "Outcome"),
        rows=tuple(rows),
        note="0 and 1 are also the outcomes of comparisons that chance has no part in.",
        folded=True,
    )
    sabotage = Grid(
        caption="Mechanism: sabotage that the same tests must catch",
        head=("Sabotage", "Outcome"),
        rows=tuple(
            [name, caught[controls[name]] if isinstance(controls[name], bool) else NOTHING]
            for name in controls
        ),
        folded=True,
    )
    return list(_present(summary, tests, sabotage))


def ledger_grids(report: Table) -> list[Grid]:
    """Return what the stored events come to, and the checks of the ledger."""
    derived = derived_of(report, "ledger")
    figures = [
        [
            text(one, "unit") or NOTHING,
            figure(one.get("epsilon"), 4),
            figure(one.get("second"), 4),
            figure(one.get("renyi"), 4),
            setting(one.get("delta")),
            figure(one.get("releases")),
        ]
        for one in tables(derived, "figures")
    ]
    checks = [
        [text(one, "name"), text(one, "state"), text(one, "reason")]
        for one in tables(derived, "checks")
    ]
    return list(
        _present(
            Grid(
                caption="Ledger: what the stored events come to",
                head=(
                    "Unit",
                    "Epsilon#",
                    "Second accountant#",
                    "Rényi bound#",
                    "at delta#",
                    "Releases#",
                ),
                rows=tuple(figures),
            ),
            Grid(
                caption="Ledger: checks",
                head=("Check", "Outcome", "What was found"),
                rows=tuple(checks),
            ),
        )
    )


def lean_grids(report: Table) -> list[Grid]:
    """Return the numbers of the canary clients."""
    run = derived_of(report, "client-canary", "run")
    mu, error = number(run, "mu"), number(run, "standard_error")
    if mu is None:
        return []
    finding = finding_of(report, "client-canary")
    around = "" if error is None else f" ± {figure(1.96 * error, 2)} (95 %)"
    rows = [
        ("mu, all canaries together", f"{figure(mu, 3)}{around}"),
        ("Epsilon, lower bound", figure(finding.get("value"), 3)),
        ("Epsilon, estimate", figure(run.get("epsilon_estimate"), 3)),
        ("Epsilon of the plan's own mu", figure(run.get("epsilon_predicted"), 3)),
        ("Epsilon, estimate after Andrew et al.", figure(run.get("andrew_epsilon"), 3)),
        ("All of these at delta", setting(run.get("delta"))),
        ("p-value of no canary at all", figure(run.get("p_value"), 2)),
        ("AUC by a single round", figure(run.get("every_round_auc"), 3)),
    ]
    return [
        Grid(caption="Canary clients", head=("Figure", "Value#"), rows=tuple(rows), folded=True)
    ]


def canary_grid(report: Table) -> Grid | None:
    """Return how many canaries of each kind there are."""
    keys = (
        ("included", "Trained on#"),
        ("held_out", "Kept out#"),
        ("references", "References#"),
        ("repeats", "Copies#"),
        ("per_client", "In a client, at most#"),
    )
    kinds = tables(report, "canaries", "kinds")
    rows = [
        [str(kind.get("kind", "unknown")), *(figure(kind.get(key)) for key, _ in keys)]
        for kind in kinds
    ]
    head = ("Kind", *(words for _, words in keys))
    return next(_present(Grid(caption="Planted canaries", head=head, rows=tuple(rows))), None)


def between(found: tuple[float, float] | None) -> str:
    """Return an interval as text, or a dash."""
    return NOTHING if found is None else f"[{figure(found[0], 3)}, {figure(found[1], 3)}]"


def _shown(part: Table) -> list[str]:
    """Return the true positive rates at each false positive rate; empty where there is none."""
    cells = {}
    for rate in tables(part, "tpr_at_fpr"):
        value, interval = number(rate, "value"), pair(rate, "interval")
        if value is not None:
            around = (
                "" if interval is None else f" [{percent(interval[0])}, {percent(interval[1])}]"
            )
            cells[number(rate, "fpr")] = f"{percent(value)}{around}"
    return [cells.get(fpr, "") for fpr in (0.1, 0.01, 0.001)]


def _check(check: Table) -> Row:
    """Return one row that sums a check of the mechanism up."""
    found = [number(check, "p_values", name) for name in table(check, "p_values")]
    p_values = [p_value for p_value in found if p_value is not None]
    failed, doubts = names(check, "failed"), names(check, "doubts")
    told = [f"broken: {', '.join(failed)}"] if failed else []
    skipped = text(check, "skipped")
    told += [f"not tested: {skipped}"] if skipped else []
    told += doubts
    if not told:
        told = ["nothing against the plan"]
    smallest = NOTHING if not p_values else figure(min(1.0, TESTS * min(p_values)), 2)
    count = figure(len(p_values)) if p_values else NOTHING
    return [text(check, "check") or "unknown", smallest, count, " ".join(told)]


def _tests(check: Table) -> Iterator[Row]:
    """Yield the tests of one check of the mechanism."""
    name, failed = text(check, "check") or "unknown", set(names(check, "failed"))
    p_values = table(check, "p_values")
    for test in p_values:
        p_value = number(p_values, test)
        corrected = NOTHING if p_value is None else figure(min(1.0, TESTS * p_value), 2)
        yield [name, test, corrected, "broken" if test in failed else "nothing against the plan"]


def _present(*grids: Grid) -> Iterator[Grid]:
    """Yield the tables that have rows, none of them endless."""
    for grid in grids:
        if len(grid.rows) > MOST_ROWS:
            left = len(grid.rows) - MOST_ROWS
            yield Grid(
                caption=grid.caption,
                head=grid.head,
                rows=grid.rows[:MOST_ROWS],
                note=f"{grid.note} {left} further rows are left out.".strip(),
                folded=grid.folded,
            )
        elif grid.rows:
            yield grid
