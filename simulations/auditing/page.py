"""``audit.html``: what an audit found, on one page that reads offline and asks nobody for anything.

The page is made from ``audit.json`` and its signature alone. It shows and concludes nothing; what
it shows can be checked with ``fedslm audit verify``. Everything that comes from the file is
escaped, and a finding of an audit that this version does not know is shown as far as it can be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.audit.commitment import verify_commitment
from server.audit.verify import DOMAIN, SIGNATURE, digest_of, read_report, read_signature
from shared.errors import AuditError, ReportInvalid
from shared.files import write_text
from simulations import auditfigures, auditrates, audittext, auditupdates, reporttext
from simulations.auditing import pagetables
from simulations.auditing.pagetables import Grid
from simulations.audittext import FindingLine
from simulations.loose import dig, number, table, tables, text
from simulations.pagekit import Picture, environment
from simulations.report import AUDIT_PAGE
from simulations.runfolder import AUDIT, REPORT

Table = Mapping[str, Any]

_TEMPLATE = "audit.html.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What some audits found, in pictures and tables."""

    id: str
    title: str
    pictures: tuple[Picture, ...]
    grids: tuple[Grid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """Who signed a report, as far as that can be told from the folder."""

    words: str
    public_key: str
    good: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """What is revealed about planted canaries: counts, coins and commitment, never a text."""

    grid: Grid | None
    commitment: str
    coins: str
    salt: str
    committed: bool | None
    opens: bool | None


def write_page(folder: Path) -> Path:
    """Write ``audit.html`` from the ``audit.json`` of a folder.

    Args:
        folder: where the report is; its signature is shown if it lies beside it.

    Returns:
        The path of the page.

    Raises:
        ReportInvalid: if there is no report of this schema.
        OutOfDisk: if the page does not fit on the disk; an older one stays as it is.
    """
    report = read_report(folder / AUDIT)
    page = _page(report, signed=_signed(folder, report), run_report=(folder / REPORT).exists())
    path = folder / AUDIT_PAGE
    write_text(path, page)
    return path


def _page(report: Table, *, signed: Signed, run_report: bool) -> str:
    """Fill the template."""
    subject, claimed = table(report, "subject"), number(report, "epsilon_claimed")
    lines = audittext.finding_lines(report)
    means, means_not = audittext.meaning(report)
    ran, judged, caught = _controls(report)
    template = environment().get_template(_TEMPLATE)
    return template.render(
        title=str(subject.get("scenario") or subject.get("adapter") or "adapter"),
        profile=str(report.get("profile", "unknown")),
        verdict_word=audittext.verdict_word(report.get("verdict")),
        means=means,
        means_not=means_not,
        seeded=claimed is not None and subject.get("noise_source") == "seeded-simulation",
        claim=audittext.claim_sentence(report),
        canary_claim=audittext.canary_claim(report),
        epsilon=claimed,
        applicable=number(report, "epsilon_applicable"),
        delta=number(report, "delta"),
        unit=str(report.get("unit") or "unit unknown"),
        relation=str(report.get("neighboring_relation") or "relation unknown"),
        best=number(auditfigures.finding_of(report, "one-run"), "value"),
        best_words=_best_bound(report),
        ran=ran,
        judged=judged,
        caught=caught,
        lines=lines,
        sources=audittext.control_sources(report),
        strengths=_strengths(lines),
        bounds=auditfigures.bounds_picture(report),
        groups=_groups(report),
        explanations=audittext.explanations(report),
        canaries=_canaries(report),
        subject_rows=reporttext.facts(dict(_flat(subject))),
        seconds=number(subject, "seconds"),
        versions=reporttext.facts(subject.get("versions")),
        signed=signed,
        sha256=_digest(report),
        seed=report.get("seed"),
        run_report=run_report,
        limits=list(_limits(report)),
    )


def _flat(subject: Table) -> Iterator[tuple[str, object]]:
    """Yield what was audited, a mapping inside as several rows."""
    for key, value in subject.items():
        if key in {"versions", "seconds"}:
            continue
        if isinstance(value, Mapping):
            yield from ((f"{key}: {name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _best_bound(report: Table) -> str:
    """Return the largest bound that the one-run audit certified, in words; empty without one."""
    finding = auditfigures.finding_of(report, "one-run")
    value, ceiling = number(finding, "value"), number(finding, "ceiling")
    if value is None:
        return ""
    kinds = tables(finding, "evidence", "derived", "kinds")
    same = [number(kind, "delta") for kind in kinds if kind.get("epsilon_lower_bound") == value]
    delta = next((delta for delta in same if delta is not None), number(report, "delta"))
    return (
        f"epsilon, at delta {reporttext.setting(delta)}; at most "
        f"{reporttext.figure(ceiling, 3)} could have been"
    )


def _controls(report: Table) -> tuple[int, int, int]:
    """Return how many audits ran, had a control that could be judged, and caught it."""
    ran = [f for f in tables(report, "findings") if dig(f, "evidence", "error") is None]
    judged = [f for f in ran if isinstance(f.get("positive_control"), bool)]
    return len(ran), len(judged), sum(f.get("positive_control") is True for f in judged)


def _strengths(lines: Sequence[FindingLine]) -> list[tuple[str, str]]:
    """Return what the strengths in the table mean."""
    used = {line.strength for line in lines}
    return [(name, words) for name, words in audittext.STRENGTH.items() if name in used]


def _groups(report: Table) -> list[Group]:
    """Return pictures and tables by subject; subjects without any are left out."""
    found = [
        _group(
            "membership",
            "Membership",
            [auditfigures.roc_picture(report), auditfigures.auc_picture(report)],
            pagetables.membership_grids(report),
        ),
        _group("exposure", "Exposure", auditfigures.exposure_pictures(report), []),
        _group(
            "extraction",
            "Extraction",
            [auditrates.extraction_picture(report)],
            pagetables.extraction_grids(report),
        ),
        _group("prompts", "System prompts", auditrates.leak_pictures(report), []),
        _group(
            "conformance",
            "Mechanism and ledger",
            [],
            [*pagetables.mechanism_grids(report), *pagetables.ledger_grids(report)],
        ),
        _group(
            "updates",
            "Releases and single updates",
            [
                auditupdates.lean_picture(report),
                auditupdates.span_picture(report),
                auditupdates.inversion_picture(report),
            ],
            pagetables.lean_grids(report),
        ),
        _group("queries", "Queries", [auditrates.redaction_picture(report)], []),
    ]
    return [group for group in found if group.pictures or group.grids]


def _group(
    name: str, title: str, pictures: Sequence[Picture | None], grids: Sequence[Grid]
) -> Group:
    """Return a group with the pictures that there are."""
    kept = tuple(one for one in pictures if one is not None)
    return Group(id=name, title=title, pictures=kept, grids=tuple(grids))


def _canaries(report: Table) -> Canaries:
    """Return what the report says about planted canaries."""
    found = table(report, "canaries")
    committed = found.get("committed")
    return Canaries(
        grid=pagetables.canary_grid(report),
        commitment=text(found, "commitment"),
        coins=text(found, "coins") or text(found, "opening", "coins"),
        salt=text(found, "salt") or text(found, "opening", "salt"),
        committed=committed if isinstance(committed, bool) else None,
        opens=_opens(table(found, "opening"), text(found, "commitment")),
    )


def _opens(opening: Table, commitment: str) -> bool | None:
    """Tell whether what is revealed is what was committed to; None if nothing is revealed."""
    if not opening:
        return None
    try:
        return verify_commitment(opening, commitment)
    except AuditError:
        return False


def _signed(folder: Path, report: Table) -> Signed:
    """Return who signed the report; a page is written for a report with a bad signature, too."""
    try:
        found = read_signature(folder / SIGNATURE)
        digest = digest_of(report)
    except ReportInvalid as error:
        return Signed(words=error.message, public_key="", good=False)
    if found is None:
        return Signed(words="The report is not signed.", public_key="", good=None)
    if found.domain == DOMAIN and found.sha256 == digest and found.holds():
        words = "The signature beside the report held when this page was written. Key:"
        return Signed(words=words, public_key=found.public_key, good=True)
    words = "The signature beside the report does not belong to it. It names the key:"
    return Signed(words=words, public_key=found.public_key, good=False)


def _digest(report: Table) -> str:
    """Return the digest that is signed; empty for a report that has none."""
    try:
        return digest_of(report)
    except ReportInvalid:
        return ""


def _limits(report: Table) -> Iterator[str]:
    """Yield what neither the claim nor these audits protect."""
    yield (
        "An attack that finds little proves little: each audit is one attack of one strength, and "
        "later ones will be better."
    )
    unit = report.get("unit")
    if unit == "client":
        yield (
            "The claim is about one client. Whoever has text with several clients is covered by "
            "group privacy alone, which grows with their number."
        )
    elif unit == "example":
        yield (
            "The claim is about one example. Whoever has several examples is covered by group "
            "privacy alone, which grows with their number."
        )
    mode = report.get("mode")
    if mode == "client-central":
        yield "The server is trusted with every clipped update: the claim is about its releases."
    elif mode == "client-distributed":
        yield (
            "The server is kept from single updates only as long as enough clients do not help it."
        )
    elif mode == "none":
        yield "Nothing was clipped for privacy and no noise was added."
    yield "What the base model had learned before is covered by no epsilon of this run."
    yield (
        "A system prompt, and a query that is sent to a service, are shown to the model after "
        "training: no epsilon covers them."
    )
    yield (
        "What holds for a whole group of people may be learned from the adapter, also about "
        "somebody who did not take part."
    )
