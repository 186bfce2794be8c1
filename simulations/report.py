"""The report of a run: one HTML file that reads offline and asks nobody for anything.

:func:`write_report` reads only the files of the run folder, so a report can be written again at
any time. Everything that comes from a file is escaped; the page forbids itself every request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.configlink import link_words
from shared.errors import RunFolderError
from shared.files import disk_errors, write_text
from simulations import auditfigures, audittext, plots, reporttext
from simulations.attacks.texts import attack_text, defence_text
from simulations.pagekit import Picture, environment, picture
from simulations.routing import routing_picture
from simulations.runfolder import AUDIT, CONFIG, EVALUATION, REPORT, SUMMARY, RunFolder

Table = Mapping[str, Any]

AUDIT_PAGE = "audit.html"
_TEMPLATE = "report.html.j2"

_PERSONAL = {"before": "shared", "after": "own"}


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
        audit_page=(run_dir / AUDIT_PAGE).exists(),
    )
    path = run_dir / REPORT
    write_text(path, page)
    return path


def _page(
    *,
    summary: Table,
    metrics: Sequence[Table],
    evaluation: Table,
    audit: Table,
    config: str,
    audit_page: bool,
) -> str:
    """Fill the template."""
    privacy = summary.get("privacy") or {}
    template = environment().get_template(_TEMPLATE)
    return template.render(
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
        loss_plots=[*_loss_plots(summary, metrics), *_time_plot(metrics)],
        epsilon_plot=_epsilon_plot(summary, metrics),
        aborted=[int(record["round"]) for record in metrics if record.get("aborted")],
        last_clip=_number(metrics[-1].get("clipping_norm")) if metrics else None,
        byte_plot=_byte_plot(metrics),
        traffic=reporttext.traffic(metrics, summary.get("ranks", ())),
        codes=link_words(summary.get("link", {})),
        clients=reporttext.client_spread(evaluation),
        client_plot=_client_plot(evaluation),
        attack_said=attack_text(summary["attack"]) if summary.get("attack") else "",
        defence_said=defence_text(summary["defence"]) if summary.get("defence") else "",
        personal_plot=_personal_plot(evaluation),
        routing_plot=routing_picture(evaluation),
        audit=audit,
        audit_lines=audittext.finding_lines(audit),
        audit_word=audittext.verdict_word(audit.get("verdict")),
        audit_means=audittext.meaning(audit),
        audit_explanations=audittext.explanations(audit),
        audit_controls=audittext.control_sources(audit),
        audit_pictures=_audit_pictures(audit),
        audit_page=audit_page,
        config=config,
    )


def _loss_plots(summary: Table, metrics: Sequence[Table]) -> list[Picture]:
    """Draw held-out loss and perplexity by round, where they were measured."""
    found = []
    for key, title, unit in (
        ("loss", "Held-out loss by round", f"loss ({reporttext.loss_unit(summary)})"),
        ("perplexity", "Held-out perplexity by round", "perplexity"),
        ("accuracy", "Held-out accuracy by round", "accuracy"),
        ("macro_f1", "Held-out macro-F1 by round", "macro-F1"),
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
        found.append(picture(drawn, title=title, alt=alt))
    return found


def _time_plot(metrics: Sequence[Table]) -> list[Picture]:
    """Draw held-out loss by simulated time, where time was simulated and loss measured."""
    times = [at for at in _column(metrics, "simulated_seconds") if at is not None]
    values = _column(metrics, "loss")
    if len(times) != len(metrics) or all(value is None for value in values):
        return []
    scale, unit = plots.time_scale(max(times))
    return [
        picture(
            plots.measured_by_time(times, values, name="loss (nats per token)"),
            title="Held-out loss by simulated time",
            alt=f"{len(metrics)} rounds in {times[-1] / scale:.4g} {unit} of simulated time.",
            caption="Losses are measured; only time is simulated, by the scenario's clock.",
        )
    ]


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


def _epsilon_plot(summary: Table, metrics: Sequence[Table]) -> Picture | None:
    """Draw epsilon against the cap; nothing in mode ``none``."""
    epsilon, by_rdp = _column(metrics, "epsilon"), _column(metrics, "epsilon_rdp")
    spent = [value for value in epsilon if value is not None]
    if not spent or (summary.get("privacy") or {}).get("mode", "none") == "none":
        return None
    cap = _number(reporttext.find(summary, "cap"))
    accountant = "rdp" if summary["privacy"].get("accountant") == "rdp" else "pld"
    drawn = plots.epsilon_by_round(_rounds(metrics), epsilon, by_rdp, cap, accountant=accountant)
    limit = "without a cap" if cap is None else f"under a cap of {cap:.4g}"
    return picture(
        drawn,
        title="Epsilon by round",
        alt=f"Epsilon rises to {spent[-1]:.4g} {limit}.",
        caption=_WHICH_DECIDES[accountant],
    )


def _client_plot(evaluation: Table) -> Picture | None:
    """Draw the spread over clients before and after."""
    spread = reporttext.client_spread(evaluation)
    if spread is None:
        return None
    drawn = plots.clients_before_after(spread.before, spread.after)
    return picture(
        drawn,
        title="Clients, before and after",
        alt=(
            f"Of {len(spread.after)} clients, the median held-out loss is "
            f"{spread.median_before:.4g} before and {spread.median_after:.4g} after."
        ),
        caption="A curve further left is better; the shaded band is the worst tenth of clients.",
    )


def _personal_plot(evaluation: Table) -> Picture | None:
    """Draw the spread over clients with the shared adapter and with each client's own."""
    spread = reporttext.client_spread(
        {key: evaluation.get(f"personal-{name}") for key, name in _PERSONAL.items()}
    )
    if spread is None:
        return None
    names = ("shared adapter", "the client's own adapter")
    drawn = plots.clients_before_after(spread.before, spread.after, names=names)
    return picture(
        drawn,
        title="Clients, with the shared adapter and with their own",
        alt=(
            f"Of {len(spread.after)} clients, the median held-out loss is "
            f"{spread.median_before:.4g} with the shared adapter and {spread.median_after:.4g} "
            f"with the client's own; "
            f"{spread.worse} clients are worse off."
        ),
        caption="A client's own adapter never leaves it; it has no guarantee, and needs none.",
    )


def _byte_plot(metrics: Sequence[Table]) -> Picture | None:
    """Draw the traffic of all clients together."""
    total = reporttext.traffic(metrics)
    if total is None:
        return None
    drawn = plots.bytes_by_round(
        _rounds(metrics), [row[0] for row in total.rounds], [row[1] for row in total.rounds]
    )
    return picture(
        drawn,
        title="Traffic, added up over the rounds",
        alt=(
            f"All clients together sent {reporttext.size(total.up)} and received "
            f"{reporttext.size(total.down)}."
        ),
    )


def _audit_pictures(audit: Table) -> list[Picture]:
    """Draw what says most about the audit; the audit's own page has the rest."""
    drawn = [
        auditfigures.bounds_picture(audit),
        auditfigures.roc_picture(audit),
        *auditfigures.exposure_pictures(audit)[:1],
    ]
    return [one for one in drawn if one is not None]


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
