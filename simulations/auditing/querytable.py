"""What each finder of the redactor adds: ``python -m simulations.auditing.querytable FILE``.

FILE is ``synth_dataset_v2.json`` of presidio-research. Its sentences come from templates; those of
even templates were looked at while the tagger was made, those of odd ones were kept for the test.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from client.redaction import Redactor, default_redactor
from client.redaction.engine import PresidioFinder
from client.redaction.tagger import load_tagger
from server.audit.protocol import AuditContext, Claim, Terms
from server.audit.queryprivacy import LabelledQueries, QueryPrivacy
from simulations.auditing.queries import DeviceRedactor, load_queries

SEED = 1
_CLAIM = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)


def main(
    path: Annotated[Path, typer.Argument(help="synth_dataset_v2.json of presidio-research.")],
) -> None:
    """Print recall by kind for patterns, tagger and both, on all sentences and those kept back."""
    held_out = load_queries(path, keep=lambda entry: entry["template_id"] % 2 == 1)
    everything = load_queries(path)
    redactors = {
        "patterns": Redactor(finders=(PresidioFinder(),)),
        "tagger": Redactor(finders=(load_tagger(),)),
        "both": default_redactor(),
    }
    columns = {
        **{name: _derived(redactor, everything) for name, redactor in redactors.items()},
        "both, held out": _derived(redactors["both"], held_out),
    }
    typer.echo(f"| kind | {' | '.join(columns)} | precision of both |")
    typer.echo("|---|" + "--:|" * (len(columns) + 1))
    for kind, row in columns["both"]["kinds"].items():
        if row["recall"]:
            shares = [_recall(column, kind) for column in columns.values()]
            found = row["precision"]
            shares.append("-" if found is None else f"{found['value']:.3f}")
            typer.echo(f"| {kind} | {' | '.join(shares)} |")
    for name in ("hidden", "characters_left", "residue", "removed_needlessly", "restored"):
        typer.echo(f"| {name} | {' | '.join(f'{c[name]:.3f}' for c in columns.values())} | |")


def _derived(redactor: Redactor, queries: LabelledQueries) -> Mapping[str, Any]:
    """Return what the audit derives for a redactor."""
    context = AuditContext(
        claim=_CLAIM, seed=SEED, artefacts=(DeviceRedactor(redactor, name="a finder"), queries)
    )
    audit = QueryPrivacy()
    finding = audit.conclude(audit.measure(context), Terms(claim=_CLAIM, seed=SEED))
    derived: Mapping[str, Any] = finding.evidence["derived"]
    return derived


def _recall(derived: Mapping[str, Any], kind: str) -> str:
    """Return the share of a kind that was hidden."""
    row = derived["kinds"].get(kind)
    return f"{row['recall']['hidden']:.3f}" if row and row["recall"] else "-"


if __name__ == "__main__":
    typer.run(main)
