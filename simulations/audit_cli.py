"""``fedslm audit``: attack an adapter, and check, read and compare the reports of attacks.

``audit run`` ends with 0 (consistent), 1 (violation) or 2 (inconclusive), so that a script can
decide; errors have their own codes as everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simulations.auditing.suite import Audited

audit_app = typer.Typer(
    help="Attack an adapter, and check the reports of attacks.", no_args_is_help=True
)

EXIT_CODES = {"consistent": 0, "violation": 1, "inconclusive": 2}
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Key = Annotated[
    Path | None,
    typer.Option(
        envvar="FEDSLM_AUDIT_KEY",
        help="Key that signs the report; made if missing. Default: your own, in your "
        "configuration folder.",
    ),
]
PublicKey = Annotated[
    str | None, typer.Option(metavar="HEX", help="The key that must have signed the report.")
]


@audit_app.command("run")
def audit_run(
    run_dir: Annotated[
        Path | None, typer.Argument(help="A finished run; or give --adapter instead.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help='"smoke" (minutes), "release", or "extended" (hours).')
    ] = "smoke",
    only: Annotated[
        list[str] | None, typer.Option(help="Run this audit alone; repeatable.")
    ] = None,
    control: Annotated[
        str | None,
        typer.Option(
            help='Positive control: "leak", "twin" (trains the non-private twin), the folder of a '
            'twin that was run already, or "none". Default: leak for smoke, else twin.'
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(help="A PEFT adapter from elsewhere, with --base.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help='Its base model: a folder, a hub id, or "demo".')
    ] = None,
    members: Annotated[
        Path | None, typer.Option(help="Texts that the adapter was trained on.")
    ] = None,
    nonmembers: Annotated[
        Path | None, typer.Option(help="Texts of the same kind that it was not trained on.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Most tokens of a text, with --adapter; as in its training.")
    ] = 128,
    template: Annotated[
        str, typer.Option(help="How prompt and response were joined, with --adapter.")
    ] = "plain",
    quantization: Annotated[
        str, typer.Option(help="How the base is stored, with --adapter.")
    ] = "none",
    revision: Annotated[
        str | None, typer.Option(help="Commit of a base on the hub, with --adapter.")
    ] = None,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda", with --adapter.')] = "cpu",
    text: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the texts, with --members.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with prompts, with --response.")
    ] = None,
    response: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with responses, with --prompt.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="Labelled queries for query-privacy (presidio-research JSON)."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="System prompts to protect, for prompt-leak.")
    ] = None,
    attacks: Annotated[
        Path | None, typer.Option(help="More prompt-extraction attacks, for prompt-leak.")
    ] = None,
    ledger: Annotated[
        str | None,
        typer.Option(envvar="FEDSLM_LEDGER", help="The shared ledger that the run charged."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes; default the run folder.")
    ] = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Attack an adapter and write audit.json, its signature and audit.html."""
    from simulations.auditing.request import Request
    from simulations.auditrun import audit

    request = Request(
        run_dir=run_dir,
        profile=profile,
        only=tuple(only or ()),
        control=control,
        adapter=adapter,
        base=base,
        members=members,
        nonmembers=nonmembers,
        max_length=max_length,
        template=template,
        quantization=quantization,
        revision=revision,
        device=device,
        columns=(text, prompt, response),
        queries=queries,
        prompts=prompts,
        attacks=attacks,
        ledger=ledger,
        out=out,
        key=key,
    )
    from simulations.auditing.show import show_audits

    with show_audits(quiet=as_json) as progress:
        audited = audit(request, progress=progress)
    _print_audited(audited, as_json=as_json)
    raise typer.Exit(EXIT_CODES[audited.report["verdict"]])


@audit_app.command("list")
def audit_list(as_json: AsJson = False) -> None:
    """List the audits: who attacks, what each needs, and in which profiles it runs."""
    from server.audit.catalog import AUDITS, PROFILES

    rows = [
        {
            "audit": name,
            "metric": AUDITS.get(name).metric,
            "threat_model": AUDITS.get(name).threat_model,
            "needs": list(AUDITS.get(name).needs),
            "profiles": [profile for profile in PROFILES if name in PROFILES.get(profile)],
        }
        for name in AUDITS
    ]
    if as_json:
        _print_json({"audits": rows})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("audit", "who attacks", "needs", "profiles", box=None, pad_edge=False)
    for row in rows:
        cells = (row["threat_model"], ", ".join(row["needs"]), ", ".join(row["profiles"]))
        table.add_row(str(row["audit"]), *(str(cell) for cell in cells))
    Console().print(table)


@audit_app.command("verify")
def audit_verify(
    report: Annotated[Path, typer.Argument(help="An audit.json, or the folder it is in.")],
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Conclude every finding again from its own evidence, without the model; check who signed."""
    from server.audit.verify import SIGNATURE, read_report, read_signature, verify_report
    from shared.errors import ReportInvalid
    from simulations.budget_common import read_key

    path = _report_file(report)
    found = verify_report(
        read_report(path),
        signature=read_signature(path.with_name(SIGNATURE)),
        trusted=read_key(public_key),
    )
    if as_json:
        _print_json(
            {
                "holds": found.holds,
                "verdict": found.verdict,
                "concluded": list(found.concluded),
                "problems": list(found.problems),
                "signed_by": found.signed_by,
                "sha256": found.sha256,
            }
        )
    else:
        typer.echo(f"{len(found.concluded)} findings follow from their evidence.")
        typer.echo(f"verdict    {found.verdict}")
        typer.echo(f"signed by  {found.signed_by or 'nobody'}")
        typer.echo(f"sha256     {found.sha256}")
        for problem in found.problems:
            typer.echo(f"problem    {problem}", err=True)
    if not found.holds:
        raise typer.Exit(ReportInvalid.exit_code)


@audit_app.command("compare")
def audit_compare(
    reports: Annotated[
        list[Path], typer.Argument(help="Two or more audit.json, or folders they are in.")
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the findings of several reports side by side."""
    from server.audit.verify import read_report
    from simulations.auditing.compare import as_markdown, compare

    named = {str(path): read_report(_report_file(path)) for path in reports}
    rows = compare(named)
    if as_json:
        _print_json({"reports": list(named), "findings": rows})
        return
    if markdown:
        typer.echo(as_markdown(list(named), rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("audit", "metric", *named, box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["audit"], row["metric"], *row["cells"])
    Console(soft_wrap=True).print(table)


def _report_file(path: Path) -> Path:
    """Return the report that a path means."""
    from simulations.runfolder import AUDIT

    return path / AUDIT if path.is_dir() else path


def _print_audited(audited: Audited, *, as_json: bool) -> None:
    """Print what the audits found."""
    if as_json:
        _print_json({**audited.report, "report_folder": str(audited.folder)})
        return
    from rich.console import Console

    from simulations.auditing.show import findings_table

    console = Console(soft_wrap=True)
    console.print(findings_table(audited.report))
    console.print(f"verdict  {audited.report['verdict']}", highlight=False)
    console.print(f"report   {audited.folder / 'audit.html'}", highlight=False)


def _print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
