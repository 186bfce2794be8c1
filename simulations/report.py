"""The report of a run: one HTML file that reads offline and asks nobody for anything.

:func:`write_report` reads only the files of the run folder, so a report can be written again at
any time. Everything that comes from a file is escaped; the page forbids itself every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from shared.errors import RunFolderError
from shared.files import disk_errors, write_text
from simulations import plots, reporttext
from simulations.runfolder import AUDIT, CONFIG, EVALUATION, REPORT, SUMMARY, RunFolder

Table = Mapping[str, Any]

_ASSETS = Path(__file__).parent / "assets"
_TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One picture with its words.

    Args:
        svg: the picture.
        title: what it shows, in a few words.
        alt: what a reader who cannot see it should know.
        caption: how to read it and what it does not show; may be empty.
    """

    svg: Markup
    title: str
    alt: str
    caption: str = ""


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from the other files of a run folder.

    Only ``summary.json`` must be there; what is missing else is said in the report.

    Args:
        run_dir: the run folder.

    Returns:
        The path of the report.

    Raises:
        RunFolderError: if there is no summary, or a file of the folder is damaged.
        OutOfDisk: if the report does not fit on the disk; an older report stays as it is.
    """
    folder = RunFolder(run_dir)
    summary = folder.read_json(SUMMARY)
    if summary is None:
        msg = f"{run_dir.name} has no {SUMMARY}, expected a finished run."
        raise RunFolderError(msg, hint="Finish the run with --resume.")
    page = _page(
        summary=summary,
        metrics=folder.metrics(),
        evaluation=folder.read_json(EVALUATION) or {},
        audit=folder.read_json(AUDIT) or {},
        config=_read_config(run_dir / CONFIG),
    )
    path = run_dir / REPORT
    write_text(path, page)
    return path


def _page(
    *, summary: Table, metrics: Sequence[Table], evaluation: Table, audit: Table, config: str
) -> str:
    """Fill the template."""
    environment = Environment(
        loader=FileSystemLoader(_ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(reporttext.FILTERS)
    privacy = summary.get("privacy") or {}
    return environment.get_template(_TEMPLATE).render(
        summary=summary,
        privacy=privacy,
        private=privacy.get("mode", "none") != "none",
        seeded=reporttext.find(summary, "noise_source") == "seeded-simulation",
        observer_epsilon=reporttext.find(summary, "observer_epsilon"),
        epsilon_rdp=reporttext.find(summary, "epsilon_rdp"),
        cap=reporttext.find(summary, "cap"),
        statement=reporttext.clauses(summary.get("statement")),
        data=reporttext.facts(summary.get("data")),
        versions=reporttext.facts(summary.get("versions")),
        metrics=metrics,
        loss_plots=_loss_plots(summary, metrics),
        epsilon_plot=_epsilon_plot(summary, metrics),
        aborted=[int(record["round"]) for record in metrics if record.get("aborted")],
        last_clip=_number(metrics[-1].get("clipping_norm")) if metrics else None,
        byte_plot=_byte_plot(metrics),
        traffic=reporttext.traffic(metrics),
        clients=reporttext.client_spread(evaluation),
        client_plot=_client_plot(evaluation),
        audit=audit,
        audit_plots=_audit_plots(audit),
        config=config,
    )


def _loss_plots(summary: Table, metrics: Sequence[Table]) -> list[Plot]:
    """Draw held-out loss and perplexity by round, where they were measured."""
    found = []
    for key, title, unit in (
        ("loss", "Held-out loss by round", "loss (nats per token)"),
        ("perplexity", "Held-out perplexity by round", "perplexity"),
    ):
        values = _column(metrics, key)
        measured = [value for value in values if value is not None]
        if not measured:
            continue
        before = _number(summary.get(f"{key}_before"))
        drawn = plots.measured_by_round(_rounds(metrics), values, before=before, name=unit)
        alt = (
            f"Measured after {len(measured)} of {len(metrics)} rounds; {measured[-1]:.4g} at the "
            + ("end." if before is None else f"end, {before:.4g} with the base model alone.")
        )
        found.append(Plot(svg=Markup(drawn), title=title, alt=alt))  # noqa: S704 our own SVG
    return found


_WHICH_DECIDES = {
    "pld": (
        "PLD is the figure that is reported and, for a plan declared in advance, the one that "
        "decides; RDP is the looser cross-check, and decides once plans follow one another."
    ),
    "rdp": (
        "Skellam noise on so coarse a grid is accounted by Renyi divergence, a looser bound than "
        "PLD."
    ),
}


def _epsilon_plot(summary: Table, metrics: Sequence[Table]) -> Plot | None:
    """Draw epsilon against the cap; nothing in mode ``none``."""
    epsilon, by_rdp = _column(metrics, "epsilon"), _column(metrics, "epsilon_rdp")
    spent = [value for value in epsilon if value is not None]
    if not spent or (summary.get("privacy") or {}).get("mode", "none") == "none":
        return None
    cap = _number(reporttext.find(summary, "cap"))
    accountant = "rdp" if summary["privacy"].get("accountant") == "rdp" else "pld"
    drawn = plots.epsilon_by_round(_rounds(metrics), epsilon, by_rdp, cap, accountant=accountant)
    limit = "without a cap" if cap is None else f"under a cap of {cap:.4g}"
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Epsilon by round",
        alt=f"Epsilon rises to {spent[-1]:.4g} {limit}.",
        caption=_WHICH_DECIDES[accountant],
    )


def _client_plot(evaluation: Table) -> Plot | None:
    """Draw the spread over clients before and after."""
    spread = reporttext.client_spread(evaluation)
    if spread is None:
        return None
    drawn = plots.clients_before_after(spread.before, spread.after)
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Clients, before and after",
        alt=(
            f"Of {len(spread.after)} clients, the median held-out loss is "
            f"{spread.median_before:.4g} before and {spread.median_after:.4g} after."
        ),
        caption="A curve further left is better; the shaded band is the worst tenth of clients.",
    )


def _byte_plot(metrics: Sequence[Table]) -> Plot | None:
    """Draw the traffic of all clients together."""
    total = reporttext.traffic(metrics)
    if total is None:
        return None
    drawn = plots.bytes_by_round(
        _rounds(metrics), [row[0] for row in total.rounds], [row[1] for row in total.rounds]
    )
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Traffic, added up over the rounds",
        alt=(
            f"All clients together sent {reporttext.size(total.up)} and received "
            f"{reporttext.size(total.down)}."
        ),
    )


def _audit_plots(audit: Table) -> list[Plot]:
    """Draw what each audit measured, where its finding holds the numbers."""
    drawers = {"exposure": _exposure, "membership": _membership, "one-run": _one_run}
    found = []
    for finding in audit.get("findings") or []:
        drawer = drawers.get(finding.get("audit"))
        if drawer is not None and finding.get("value") is not None:
            found.append(drawer(finding))
    return found


def _exposure(finding: Table) -> Plot:
    """Draw the exposure histogram."""
    details = finding["details"]
    ranked, null = details["base_referenced"], details["base_model"]
    drawn = plots.exposure_histogram(
        ranked["included"], ranked["held_out"], null["included"], finding["ceiling"]
    )
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Exposure of planted secrets",
        alt=(
            f"Trained-on secrets reach {ranked['mean_included']:.3g} bits on average, "
            f"kept-out ones {ranked['mean_held_out']:.3g}, the base model "
            f"{null['mean_included']:.3g}."
        ),
        caption=(
            "Half of all secrets gain less than one bit by chance, a quarter one to two, and so "
            "on: the diamonds. Bars of trained-on secrets far to the right are leaks. At most "
            f"{finding['ceiling']:.3g} bits can be shown."
        ),
    )


def _membership(finding: Table) -> Plot:
    """Draw the ROC curve."""
    details, alpha = finding["details"], finding["alpha"]
    drawn = plots.membership_roc(details["scores_in"], details["scores_out"], alpha=alpha)
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Membership inference",
        alt=(
            f"The area under the curve is {finding['value']:.3g}, interval "
            f"{finding['interval'][0]:.3g} to {finding['interval'][1]:.3g}; guessing is 0.5."
        ),
        caption=(
            "The left edge matters most: it shows how many members are named with few wrong "
            "accusations. The band is pointwise."
        ),
    )


def _one_run(finding: Table) -> Plot:
    """Draw the certified bound between zero and its ceiling."""
    applicable = _number(finding["details"].get("epsilon_applicable"))
    drawn = plots.certified_bound(finding["value"], finding["ceiling"], applicable)
    against = "" if applicable is None else f", epsilon that applies {applicable:.3g}"
    return Plot(
        svg=Markup(drawn),  # noqa: S704 our own SVG
        title="Certified lower bound on epsilon",
        alt=f"Bound {finding['value']:.3g}, ceiling {finding['ceiling']:.3g}{against}.",
        caption=(
            "A bound right of the dotted line would contradict the claim. A bound left of it does "
            "not confirm the claim: the attack may be weak."
        ),
    )


def _rounds(metrics: Sequence[Table]) -> list[int]:
    """Return the round numbers."""
    return [int(record["round"]) for record in metrics]


def _column(metrics: Sequence[Table], key: str) -> list[float | None]:
    """Return one value a round, None where nothing was measured."""
    return [_number(record.get(key)) for record in metrics]


def _number(value: object) -> float | None:
    """Return a finite number, else None."""
    return reporttext.number(value)


def _read_config(path: Path) -> str:
    """Return the resolved configuration, or the empty string."""
    if not path.exists():
        return ""
    with disk_errors(path):
        return path.read_text(encoding="utf-8")
