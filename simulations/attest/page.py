"""The privacy statement as one page, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from shared.privacy.evidence import Evidence
from shared.privacy.noise import SEEDED
from shared.privacy.statement import figure
from simulations.attest.checklist import Item
from simulations.attest.sources import Dossier, Promise

_ASSETS = Path(__file__).parents[1] / "assets"
_TEMPLATE = "statement.html.j2"
SIMULATION = (
    "SIMULATION: the noise came from a seed that is stored with the run. Nobody is protected by "
    "this run; the figures are those of the same run with noise from the operating system."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The numbers of one guarantee, as a reader wants them."""

    unit: str
    relation: str
    epsilon: str
    delta: str
    releases: str
    planned: str
    renyi: str
    observer: str
    server: str
    cap: str


def rows(dossier: Dossier) -> list[Row]:
    """Return the table of numbers, one row per unit."""
    return [_row(promise) for promise in dossier.promises]


def summary(dossier: Dossier) -> list[str]:
    """Return one sentence per guarantee that can be quoted alone."""
    return [
        f"Whoever sees the released adapters learns at most epsilon = {row.epsilon} at delta = "
        f"{row.delta} about any one {row.unit} ({row.relation}, {row.releases} releases)."
        for row in rows(dossier)
    ]


def is_simulation(dossier: Dossier) -> bool:
    """Tell whether some noise can be recomputed from a seed."""
    return any(promise.plan.noise_source == SEEDED for promise in dossier.promises)


def as_markdown(dossier: Dossier, items: Sequence[Item], ledger_name: str) -> str:
    """Return the statement as Markdown.

    Args:
        dossier: the facts.
        items: the checklist.
        ledger_name: the ledger's file name, for the command that checks the statement.
    """
    lines = [f"# Privacy statement: {_cell(dossier.title)}", ""]
    lines += [f"> **{SIMULATION}**", ""] if is_simulation(dossier) else []
    lines += [text for sentence in summary(dossier) for text in (sentence, "")]
    lines += _numbers(rows(dossier))
    lines += ["", "## In plain words", ""]
    lines += [f"- {text}" for text in _sentences(dossier)]
    lines += ["", "## Checklist of NIST SP 800-226", "", "| item | finding | status |"]
    lines += ["|---|---|---|"]
    lines += [f"| {_cell(i.question)} | {_cell(i.finding)} | {i.status} |" for i in items]
    lines += ["", "## Evidence", "", *[f"- {text}" for text in evidence(dossier)]]
    lines += ["", "Check the ledger that these numbers come from:", ""]
    return "\n".join([*lines, f"    {command(dossier, ledger_name)}"]) + "\n"


def as_html(dossier: Dossier, items: Sequence[Item], ledger_name: str) -> str:
    """Return the statement as one HTML page that asks nobody for anything.

    Args:
        dossier: the facts; everything in them is escaped.
        items: the checklist.
        ledger_name: the ledger's file name, for the command that checks the statement.
    """
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        title=dossier.title,
        simulation=SIMULATION if is_simulation(dossier) else "",
        summary=summary(dossier),
        rows=rows(dossier),
        sentences=_sentences(dossier),
        items=items,
        evidence=evidence(dossier),
        command=command(dossier, ledger_name),
    )


def evidence(dossier: Dossier) -> list[str]:
    """Return what an auditor compares with the ledger."""
    found = dossier.evidence
    digests = sorted({plan.digest() for p in dossier.promises for plan in p.guarantee.plans})
    anchored = "" if found.anchored else "; no earlier head was given, so a cut tail cannot show"
    head = f"{found.head.seq}:{found.head.hash}"
    return [
        f"Ledger: {found.entries} entries, whole{anchored}; head {head}.",
        _signature(found),
        f"Scope: {found.scope}. Runs: {', '.join(found.runs)}.",
        *(_subjects(promise) for promise in dossier.promises),
        f"Plans (SHA-256): {', '.join(digests)}.",
    ]


def command(dossier: Dossier, ledger_name: str) -> str:
    """Return the command that verifies the ledger against the head of this statement."""
    head = dossier.evidence.head
    key = dossier.evidence.public_key
    signed = "" if key is None else f" --public-key {key}"
    return f"fedslm budget verify {ledger_name} --anchor {head.seq}:{head.hash}{signed}"


def _signature(found: Evidence) -> str:
    """Say who signed the ledger, and whether that was known beforehand."""
    if found.public_key is None:
        return "The ledger is not signed: its holder could have written it anew."
    how = (
        "the key was known beforehand"
        if found.trusted
        else "ask the holder, by another way, whether it is theirs"
    )
    return f"Signed with Ed25519 key {found.public_key}; {how}."


def _subjects(promise: Promise) -> str:
    """Say whose figures are quoted."""
    guarantee = promise.guarantee
    return (
        f"{guarantee.subjects} subject{'' if guarantee.subjects == 1 else 's'} of unit "
        f"{guarantee.unit}; the figures are those of "
        f"{guarantee.spent.subject}, which spent most (accountant {guarantee.spent.accountant})."
    )


def _sentences(dossier: Dossier) -> list[str]:
    """Return the clauses of all guarantees, each once, warnings left to the checklist."""
    found = [
        clause.text
        for promise in dossier.promises
        for clause in promise.clauses
        if clause.topic != "warning"
    ]
    return list(dict.fromkeys(found))


def _row(promise: Promise) -> Row:
    """Write the numbers of one guarantee."""
    spent, statement = promise.guarantee.spent, promise.statement
    return Row(
        unit=str(promise.guarantee.unit),
        relation=str(spent.relation),
        epsilon=figure(spent.epsilon),
        delta=f"{spent.delta:.3g}",
        releases=str(round(spent.releases)),
        planned=figure(promise.plan.epsilon()),
        renyi=figure(spent.epsilon_rdp),
        observer=figure(statement.epsilon_observer),
        server=figure(statement.epsilon_server),
        cap=figure(spent.cap),
    )


def _numbers(found: Sequence[Row]) -> list[str]:
    """Return the table of numbers."""
    names = ("", *(f"unit: {row.unit}" for row in found))
    body = (
        ("neighbouring relation", [row.relation for row in found]),
        ("epsilon spent", [row.epsilon for row in found]),
        ("delta", [row.delta for row in found]),
        ("noised releases", [row.releases for row in found]),
        ("epsilon of the whole plan", [row.planned for row in found]),
        ("Rényi cross-check of what was spent", [row.renyi for row in found]),
        ("whole plan, who knows who took part", [row.observer for row in found]),
        ("whole plan, the server itself", [row.server for row in found]),
        ("cap that the ledger enforces", [row.cap for row in found]),
    )
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + [f"| {name} | " + " | ".join(values) + " |" for name, values in body]


def _cell(text: str) -> str:
    """Return a text for one line of a table."""
    return " ".join(text.split()).replace("|", "\\|")
