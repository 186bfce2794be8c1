"""``fedslm budget``: plan a budget, look at one that is being spent, verify its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import Anchor, AsJson, Where, open_ledger, print_json, read_head
from simulations.budget_export_cli import export

if TYPE_CHECKING:
    from shared.privacy.ledger_state import Spent
    from shared.privacy.plan import PrivacyPlan

budget_app = typer.Typer(help="Plan, watch and verify a privacy budget.", no_args_is_help=True)

budget_app.command("export")(export)


@budget_app.command("plan")
def plan_budget(
    mode: Annotated[str, typer.Option(help='"example" or "client-central".')],
    delta: Annotated[float, typer.Option(help="Failure probability.")],
    rounds: Annotated[int, typer.Option(help="Server rounds.")],
    sampling_probability: Annotated[
        float, typer.Option(help="Of an example in a step, or of a client in a round.")
    ],
    epsilon: Annotated[float | None, typer.Option(help="Target; the noise is derived.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="Noise over clip; epsilon is derived.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Local steps a round (mode example).")] = 1,
    population: Annotated[int, typer.Option(help="Number of clients, for the warnings.")] = 1000,
    dataset_size: Annotated[
        int | None, typer.Option(help="Examples of a client, for the warning about delta.")
    ] = None,
    neighboring_relation: Annotated[
        str, typer.Option(help='"add-or-remove-one" or "replace-one".')
    ] = "add-or-remove-one",
    plot: Annotated[
        Path | None, typer.Option(help="Write epsilon by round to this SVG file.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a plan would spend, round by round, and what other choices would cost."""
    from shared.privacy.planform import UNIT_OF_MODE
    from shared.privacy.planning import make_plan
    from shared.privacy.whatif import alternatives, by_round

    unit = UNIT_OF_MODE.get(mode)
    plan = make_plan(
        mode=mode,
        unit=None if unit is None else str(unit),
        neighboring_relation=neighboring_relation,
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        delta=delta,
        clipping_norm=1.0,
        max_grad_norm=1.0,
        sampling_probability=sampling_probability,
        rounds=rounds,
        releases_per_round=steps,
        population=population,
        dataset_size=dataset_size,
    )
    _refuse_no_privacy(plan)
    report = {
        "mode": plan.mode,
        "unit": str(plan.unit),
        "neighboring_relation": str(plan.neighboring_relation),
        "epsilon": plan.epsilon(),
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        "sampling_probability": plan.sampling_probability,
        "rounds": plan.rounds,
        "steps": plan.releases_per_round,
        "releases": plan.releases_after(plan.rounds),
        "accountant": "pld",
        "epsilon_rdp": plan.epsilon(accountant="rdp"),
        "observer_epsilon": plan.observer_epsilon(),
        "by_round": [_fields(figure) for figure in by_round(plan)],
        "what_if": [_fields(choice) for choice in alternatives(plan)],
        "warnings": list(plan.warnings()),
    }
    if plot is not None:
        _plot(report, plot)
    print_json(report) if as_json else _print_plan(report)


@budget_app.command("status")
def status(
    where: Where,
    subject: Annotated[
        str | None, typer.Option(help='One subject, such as "population" or "client-3".')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what each subject has spent, its cap, and what is left."""
    from shared.errors import LedgerError

    with open_ledger(where) as ledger:
        names = [pair for pair in ledger.subjects() if subject in {None, pair[0]}]
        if subject is not None and not names:
            msg = f"no entry for subject={subject!r}."
            raise LedgerError(msg, hint="Leave --subject out to list every subject.")
        rows = [_spent(ledger.spent(*pair)) for pair in names]
    if as_json:
        print_json(rows[0] if subject is not None and len(rows) == 1 else {"subjects": rows})
    else:
        _print_status(rows)


@budget_app.command("verify")
def verify(
    where: Where,
    anchor: Anchor = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a ledger; exit 0 only if it is whole, else name the first bad entry."""
    with open_ledger(where) as ledger:
        report = ledger.verify(read_head(anchor))
    found = {
        "whole": True,
        "entries": report.entries,
        "subjects": report.subjects,
        "reservations": report.reservations,
        "open_reservations": report.open_reservations,
        "head": f"{report.head.seq}:{report.head.hash}",
        "anchored": report.anchored,
    }
    if as_json:
        print_json(found)
        return
    typer.echo(
        f"The ledger is whole: {report.entries} entries about {report.subjects} subjects, "
        f"{report.open_reservations} of {report.reservations} reservations open."
    )
    typer.echo(f"head {found['head']}")
    if not report.anchored:
        typer.echo(
            "Without an earlier head (--anchor) a tail that was cut off cannot be noticed.",
            err=True,
        )


def _refuse_no_privacy(plan: PrivacyPlan) -> None:
    """Refuse to plan a budget for mode none."""
    from shared.errors import InvalidValue

    if plan.mode == "none":
        msg = "mode='none' has no budget to plan."
        raise InvalidValue(msg, hint="Use --mode example or --mode client-central.")


def _fields(value: Any) -> dict[str, Any]:  # noqa: ANN401  (any slotted dataclass)
    """Return a dataclass as a dictionary."""
    from dataclasses import asdict

    return asdict(value)


def _spent(spent: Spent) -> dict[str, Any]:
    """Return what a subject spent in JSON's terms; infinity is null."""
    import math

    finite = {
        name: value if math.isfinite(value) else None
        for name, value in (
            ("epsilon", spent.epsilon),
            ("epsilon_rdp", spent.epsilon_rdp),
            ("cap", spent.cap),
        )
    }
    return {
        "subject": spent.subject,
        "scope": spent.scope,
        "spent": {"epsilon": finite["epsilon"], "delta": spent.delta},
        "epsilon_rdp": finite["epsilon_rdp"],
        "cap": finite["cap"],
        "remaining": spent.remaining,
        "entries": round(spent.releases),
        "unit": None if spent.unit is None else str(spent.unit),
        "neighboring_relation": None if spent.relation is None else str(spent.relation),
        "accountant": spent.accountant,
    }


def _plot(report: dict[str, Any], path: Path) -> None:
    """Draw epsilon by round."""
    from shared.files import write_text
    from simulations.plots import epsilon_by_round

    figures = report["by_round"]
    drawn = epsilon_by_round(
        [figure["rounds"] for figure in figures],
        [figure["epsilon"] for figure in figures],
        [figure["epsilon_rdp"] for figure in figures],
        None,
    )
    write_text(path, drawn)


def _print_plan(report: dict[str, Any]) -> None:
    """Print a plan as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(
        f"epsilon {report['epsilon']:.4f} at delta {report['delta']:.3g}, per {report['unit']}, "
        f"{report['neighboring_relation']}, {report['releases']} releases, noise multiplier "
        f"{report['noise_multiplier']:.4f} (RDP: {report['epsilon_rdp']:.4f})",
        highlight=False,
    )
    rounds = Table("rounds", "epsilon", "by RDP", box=None, pad_edge=False)
    for figure in report["by_round"]:
        rounds.add_row(
            str(figure["rounds"]), f"{figure['epsilon']:.4f}", f"{figure['epsilon_rdp']:.4f}"
        )
    console.print(rounds)
    choices = Table("what if", "rounds", "sampling", "noise", "epsilon", box=None, pad_edge=False)
    for choice in report["what_if"]:
        choices.add_row(
            choice["change"],
            str(choice["rounds"]),
            f"{choice['sampling_probability']:g}",
            f"{choice['noise_multiplier']:.4f}",
            f"{choice['epsilon']:.4f}",
        )
    console.print(choices)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)


def _print_status(rows: list[dict[str, Any]]) -> None:
    """Print what subjects spent as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "subject", "scope", "epsilon", "delta", "unit", "releases", "cap", "left", box=None
    )
    for row in rows:
        spent = row["spent"]
        epsilon = "infinite" if spent["epsilon"] is None else f"{spent['epsilon']:.4f}"
        cap = "none" if row["cap"] is None else f"{row['cap']:.4f}"
        delta = "-" if spent["delta"] is None else f"{spent['delta']:.3g}"
        table.add_row(
            row["subject"],
            row["scope"],
            epsilon,
            delta,
            f"{row['unit']}, {row['neighboring_relation']}",
            str(row["entries"]),
            cap,
            f"{row['remaining']:.4f}",
        )
    Console().print(table)
