"""``fedslm budget``: plan a budget, look at one that is being spent, verify its ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import (
    Anchor,
    AsJson,
    PublicKey,
    Where,
    open_ledger,
    print_json,
    read_head,
    read_key,
)
from simulations.budget_export_cli import export
from simulations.budget_plan_cli import plan_budget

if TYPE_CHECKING:
    from shared.privacy.ledger_state import Spent

budget_app = typer.Typer(help="Plan, watch and verify a privacy budget.", no_args_is_help=True)

budget_app.command("plan")(plan_budget)


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
        names = ledger.subjects(subject)
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
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Recompute a ledger; exit 0 only if it is whole, else name the first bad entry."""
    with open_ledger(where) as ledger:
        report = ledger.verify(read_head(anchor), read_key(public_key))
    found = {
        "whole": True,
        "entries": report.entries,
        "notes": report.notes,
        "subjects": report.subjects,
        "reservations": report.reservations,
        "open_reservations": report.open_reservations,
        "head": f"{report.head.seq}:{report.head.hash}",
        "anchored": report.anchored,
        "public_key": report.public_key,
        "signatures": report.signatures,
        "signed_from": report.signed_from,
        "trusted": public_key is not None,
    }
    print_json(found) if as_json else _print_verified(found)


def _print_verified(found: dict[str, Any]) -> None:
    """Say what was checked, and what could not be."""
    typer.echo(
        f"The ledger is whole: {found['entries']} entries about {found['subjects']} subjects, "
        f"{found['open_reservations']} of {found['reservations']} reservations open."
    )
    typer.echo(f"head {found['head']}")
    if found["public_key"] is not None:
        typer.echo(f"signed by {found['public_key']} from entry {found['signed_from']} on")
    if not found["anchored"]:
        typer.echo(
            "Without an earlier head (--anchor) a tail that was cut off cannot be noticed.",
            err=True,
        )
    if not found["trusted"]:
        typer.echo(
            "Without the holder's key (--public-key) a ledger that was written anew cannot be "
            "noticed.",
            err=True,
        )


def _spent(spent: Spent) -> dict[str, Any]:
    """Return what a subject spent in JSON's terms; infinity is null."""
    import math

    finite = {
        name: value if math.isfinite(value) else None
        for name, value in (
            ("epsilon", spent.epsilon),
            ("epsilon_rdp", spent.epsilon_rdp),
            ("cap", spent.cap),
            ("remaining", spent.remaining),
            ("releases", spent.releases),
        )
    }
    return {
        "subject": spent.subject,
        "scope": spent.scope,
        "spent": {"epsilon": finite["epsilon"], "delta": spent.delta},
        "epsilon_rdp": finite["epsilon_rdp"],
        "cap": finite["cap"],
        "remaining": finite["remaining"],
        "entries": None if finite["releases"] is None else round(finite["releases"]),
        "unit": None if spent.unit is None else str(spent.unit),
        "neighboring_relation": None if spent.relation is None else str(spent.relation),
        "accountant": spent.accountant,
    }


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
            "-" if row["entries"] is None else str(row["entries"]),
            cap,
            "-" if row["remaining"] is None else f"{row['remaining']:.4f}",
        )
    Console().print(table)


budget_app.command("export")(export)
