"""``fedslm budget export``: a registry record and a privacy statement from a verified ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from simulations.budget_common import (
    Anchor,
    AsJson,
    PublicKey,
    Where,
    is_url,
    open_ledger,
    print_json,
    read_head,
    read_key,
)

RECORD = "privacy-deployment.yaml"
PAGE = "privacy-statement.md"
HTML = "privacy-statement.html"


def export(
    where: Where,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default where the ledger is.")
    ] = None,
    about: Annotated[
        Path | None, typer.Option(help="TOML file with what only the operator knows.")
    ] = None,
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", help="Run folder of a ledger that lies elsewhere."),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Which data, if the ledger has several.")
    ] = None,
    anchor: Anchor = None,
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Write a deployments-registry record and a one-page privacy statement.

    Every number comes from the ledger, which is verified first: a ledger that does not verify
    exports nothing. What only the operator knows comes from --about, or is marked as not stated.
    """
    from shared.files import disk_errors, write_text
    from shared.privacy.evidence import collect_evidence
    from simulations.attest.about import read_about
    from simulations.attest.checklist import checklist
    from simulations.attest.page import as_html, as_markdown
    from simulations.attest.record import registry_record, to_yaml
    from simulations.attest.sources import RunFacts, make_dossier, read_run

    words = read_about(about)
    with open_ledger(where) as ledger:
        evidence = collect_evidence(
            ledger, scope=scope, anchor=read_head(anchor), trusted_key=read_key(public_key)
        )
    given = None if is_url(where) else Path(where)
    source = run_folder or (given if given is not None and given.is_dir() else None)
    run = RunFacts() if source is None else read_run(source)
    dossier = make_dossier(evidence, words, run)
    items = checklist(dossier)
    record = registry_record(dossier)
    folder = out or _folder_of(given)
    # A URL may hold a password; the reader of a statement knows the ledger by another way.
    name = "LEDGER" if given is None else given.resolve().name
    files = {
        RECORD: to_yaml(record),
        PAGE: as_markdown(dossier, items, name),
        HTML: as_html(dossier, items, name),
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_text(folder / file, text)
    report: dict[str, Any] = {
        "files": sorted(files),
        "record": record,
        "checklist": [item.to_dict() for item in items],
        "head": f"{evidence.head.seq}:{evidence.head.hash}",
        "anchored": evidence.anchored,
        "public_key": evidence.public_key,
        "scope": evidence.scope,
    }
    if as_json:
        print_json(report)
        return
    for file in files:
        typer.echo(str(folder / file))
    open_items = [item.question for item in items if item.status == "not stated"]
    if open_items:
        typer.echo(f"Not stated by the operator (use --about): {'; '.join(open_items)}.", err=True)


def _folder_of(given: Path | None) -> Path:
    """Return the run folder, the folder of a ledger file, or here for a database."""
    if given is None:
        return Path()
    return given if given.is_dir() else given.parent
