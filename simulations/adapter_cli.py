"""``fedslm adapter``: the release gate, and what PEFT can load of a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

adapter_app = typer.Typer(help="Release adapters, or cut mixtures.", no_args_is_help=True)


@adapter_app.command("release")
def adapter_release(
    run_dir: Annotated[Path, typer.Argument(help="A finished and audited run, or an adapter.")],
    to: Annotated[Path, typer.Option(help="Where the released adapter goes.")],
    report: Annotated[
        Path | None, typer.Option(help="Its audit report; default audit.json in the run folder.")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(metavar="HEX", help="The key that must have signed the report.")
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(
            envvar="FEDSLM_LEDGER",
            help="The shared ledger that the run charged; default the run folder's own.",
        ),
    ] = None,
    ledger_key: Annotated[
        Path | None,
        typer.Option(envvar="FEDSLM_LEDGER_KEY", help="The key that signs that ledger."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Release an adapter with its audit report, unless the report stands against it.

    The ledger of a run folder gets a note that names the report, before anything is copied.
    """
    from server.audit.gate import release_adapter
    from simulations.budget_common import read_key
    from simulations.releasenote import ledger_note
    from simulations.runfolder import ADAPTER, AUDIT

    adapter = run_dir / ADAPTER if (run_dir / ADAPTER).is_dir() else run_dir
    found = release_adapter(
        adapter,
        report or run_dir / AUDIT,
        to,
        trusted=read_key(public_key),
        note=ledger_note(run_dir, ledger=ledger, key=ledger_key, base_dir=Path.cwd()),
    )
    if as_json:
        result = {"folder": str(found.folder), "warnings": list(found.warnings), **found.record}
        typer.echo(json.dumps(result, indent=2, sort_keys=True, ensure_ascii=False))
        return
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"released  {found.folder} (audit verdict: {found.verdict})")
    place = found.record["ledger_note"]
    if place is not None:
        typer.echo(f"ledger    entry {place['seq']} of run {place['run_id']} names the report")


@adapter_app.command("split")
def adapter_split(
    adapter_dir: Annotated[Path, typer.Argument(help="A mixture: a run, or its adapter folder.")],
    to: Annotated[Path, typer.Option(help="A new folder for the adapters and the router.")],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout.")
    ] = False,
) -> None:
    """Cut a mixture into adapters that PEFT loads one by one, and a file with the router.

    PEFT has no gates: no single folder of its format is the mixture.
    """
    from server.mixtures import split_mixture
    from simulations.runfolder import ADAPTER

    folder = adapter_dir / ADAPTER if (adapter_dir / ADAPTER).is_dir() else adapter_dir
    found = split_mixture(folder, to)
    if as_json:
        typer.echo(json.dumps({"folders": [str(path) for path in found]}, indent=2))
        return
    for path in found:
        typer.echo(f"adapter   {path}")
