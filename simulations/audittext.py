"""Words and cells of the audit section and the audit page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from server.audit.protocol import VERDICTS
from simulations.loose import dig, number, pair, table, tables, text
from simulations.reporttext import figure, setting

Table = Mapping[str, Any]

NOTHING = "\u2013"
_MINUS = "\u2212"

WHO = {
    "ledger": "a reviewer with the ledger and the plan",
    "mechanism": "somebody who doubts that the code did what the plan says",
    "client-canary": "whoever sees what the rounds released",
    "span": "a server that keeps single updates",
    "one-run": "holder of adapter and base who knows the canaries",
    "exposure": "holder of adapter and base who knows the form of a secret",
    "membership": "holder of adapter and base with a text in hand",
    "extraction": "anybody who can sample from the adapter",
    "prompt-leak": "a user of the served model",
    "query-privacy": "the service that answers queries",
    "inversion": "a server that keeps single updates and has time",
}
"""Who attacks, in a few words; the whole sentence is in the documentation of each audit."""

STRENGTH = {
    "certified": "holds whatever the mechanism does",
    "parametric": "assumes a Gaussian trade-off curve",
    "conformance": "what ran against what was declared",
    "descriptive": "success of an attack; bounds nothing",
}


def percent(value: object) -> str:
    """Return a share in percent."""
    found = number({"n": value}, "n")
    return NOTHING if found is None else f"{figure(100 * found, 3)}\u00a0%"


def _points(value: object) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    found = number({"n": value}, "n")
    if found is None:
        return NOTHING
    sign = "+" if found > 0 else _MINUS if found < 0 else ""
    return f"{sign}{figure(abs(100 * found), 3)}"


def _plain(value: object) -> str:
    """Return a number with three digits."""
    return figure(value, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """How a metric is called, and how its values are written."""

    words: str
    value: Callable[[object], str] = _plain
    baseline: Callable[[object], str] = _plain


METRICS = {
    "epsilon_recomputed": Metric(words="epsilon from the stored events; the claim as null"),
    "smallest_corrected_p_value": Metric(words="smallest p-value, corrected"),
    "epsilon_lower_bound": Metric(words="lower bound on epsilon"),
    "token_presence_auc": Metric(words="AUC of token presence"),
    "mean_exposure_bits": Metric(words="mean exposure, bits"),
    "auc": Metric(words="AUC, one member against one non-member"),
    "share_extractable_n1000_p0.1": Metric(
        words="secrets extractable (1000 samples, chance 10\u00a0%)",
        value=percent,
        baseline=percent,
    ),
    "rouge_1": Metric(words="ROUGE-1 of text from one update"),
    "leak_rate_delta": Metric(
        words="prompts given away, adapter minus base, points", value=_points, baseline=percent
    ),
}

_OF_AUDIT = {
    "query-privacy": Metric(
        words="personal data hidden, worst kind", value=percent, baseline=percent
    ),
}
"""Where the name of a metric is a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingLine:
    """One row of the table of findings, all cells as text."""

    audit: str
    who: str
    verdict: str
    strength: str
    metric: str
    value: str
    interval: str
    control: str
    control_interval: str
    caught: str
    baseline: str
    ceiling: str
    ran: bool
    reason: str


def finding_lines(report: Table) -> list[FindingLine]:
    """Return the rows of the table of findings."""
    return [_line(finding, report) for finding in tables(report, "findings")]


def verdict_word(value: object) -> str:
    """Return a verdict; whatever is none of the three words is inconclusive."""
    return next((word for word in VERDICTS if word == value), "inconclusive")


def metric_words(metric: object) -> str:
    """Return what a metric is called."""
    known = METRICS.get(str(metric))
    return known.words if known else str(metric or "unknown").replace("_", " ")


def meaning(report: Table) -> tuple[str, str]:
    """Return what a report's verdict means, and what it does not."""
    verdict = verdict_word(report.get("verdict"))
    findings = tables(report, "findings")
    named = _listed([str(f.get("audit")) for f in findings if _word(f) == verdict])
    if verdict == "violation":
        means = f"What was found contradicts what is claimed or declared: {named}."
        return means, "It does not say how much more the adapter gives away, nor whose data."
    if not findings:
        return "No audit was asked for.", "Nothing was attacked, so nothing is known."
    if number(report, "epsilon_claimed") is None:
        means = "No epsilon is claimed, so there is nothing to contradict; the numbers stand."
        return means, "It does not say that the adapter is safe to give away, or that it is not."
    if verdict == "consistent":
        means = (
            "Nothing that was found contradicts the claim, and each attack was shown to work where "
            "it must."
        )
        means_not = (
            "It is no proof of the claim: a stronger attack may find more, and a lower bound is no "
            "estimate."
        )
        return means, means_not
    means = (
        "Nothing that was found contradicts the claim, but not every audit could have contradicted "
        f"it: {named}."
    )
    means_not = (
        "It is neither a proof of the claim nor evidence against it; the words about each audit "
        "say why."
    )
    return means, means_not


def claim_sentence(report: Table) -> str:
    """Return the claim in one sentence, epsilon never without its delta, unit and relation."""
    epsilon, delta = number(report, "epsilon_claimed"), number(report, "delta")
    if epsilon is None:
        return f"No epsilon is claimed (mode {report.get('mode', 'unknown')})."
    at = "an unknown delta" if delta is None else f"delta {setting(delta)}"
    return (
        f"Epsilon {figure(epsilon, 3)} at {at}, per {report.get('unit') or 'unknown unit'}, "
        f"{report.get('neighboring_relation') or 'unknown relation'}, mode "
        f"{report.get('mode', 'unknown')}."
    )


def canary_claim(report: Table) -> str:
    """Return which epsilon covers a record canary, and why it is another one."""
    epsilon, delta = number(report, "epsilon_applicable"), number(report, "delta")
    if number(report, "epsilon_claimed") is None:
        return ""
    if epsilon is None or delta is None:
        return (
            "Nobody computed the epsilon that covers a record canary, so no bound on record "
            "canaries can contradict the claim."
        )
    why = ""
    if report.get("unit") == "client":
        why = (
            ": it changes one client's data and neither adds nor removes the client, so replacing "
            "one client is what counts"
        )
    return (
        f"A record canary is held against epsilon {figure(epsilon, 3)} at delta "
        f"{setting(delta)}{why}."
    )


def explanations(report: Table) -> list[tuple[str, str, str]]:
    """Return audit, verdict and explanation of each finding."""
    return [
        (
            str(finding.get("audit", "unknown")),
            _word(finding),
            str(finding.get("explanation") or "No explanation was given."),
        )
        for finding in tables(report, "findings")
    ]


def control_sources(report: Table) -> list[str]:
    """Return where the positive controls come from."""
    found = [text(control, "source") for control in table(report, "controls").values()]
    return [source for source in dict.fromkeys(found) if source]


def _line(finding: Table, report: Table) -> FindingLine:
    """Return one row."""
    audit = str(finding.get("audit", "unknown"))
    named = finding.get("metric")
    metric = METRICS.get(str(named)) or _OF_AUDIT.get(audit) or Metric(words=metric_words(named))
    control, control_interval, caught = _control(finding, report, metric)
    failed = dig(finding, "evidence", "error") is not None
    return FindingLine(
        audit=audit,
        who=WHO.get(audit, ""),
        verdict=_word(finding),
        strength="not run" if failed else str(finding.get("strength", "")),
        metric=metric.words,
        value=metric.value(finding.get("value")),
        interval=_interval(pair(finding, "interval"), metric),
        control=control,
        control_interval=control_interval,
        caught=caught,
        baseline=metric.baseline(finding.get("baseline")),
        ceiling=metric.value(finding.get("ceiling")),
        ran=not failed,
        reason=str(finding.get("explanation") or "This audit could not be run."),
    )


def _control(finding: Table, report: Table, metric: Metric) -> tuple[str, str, str]:
    """Return the value of the control, its interval, and whether it was caught."""
    words = {True: "caught", False: "not caught"}
    control = table(report, "controls", str(finding.get("audit")))
    if not control:
        caught = finding.get("positive_control")
        if isinstance(caught, bool):
            return "built in", "", words[caught]
        return "none", "", ""
    detected = control.get("detected")
    told = words[detected] if isinstance(detected, bool) else "not run there"
    if control.get("comparable") is False:
        told = "not comparable"
    return (
        metric.value(control.get("value")),
        _interval(pair(control, "interval"), metric),
        told,
    )


def _interval(found: tuple[float, float] | None, metric: Metric) -> str:
    """Return an interval as text; empty without one."""
    if found is None:
        return ""
    return f"[{metric.value(found[0])}, {metric.value(found[1])}]"


def _word(finding: Table) -> str:
    """Return the verdict of a finding."""
    return verdict_word(finding.get("verdict"))


def _listed(audits: list[str]) -> str:
    """Return names as a list in words."""
    if len(audits) < 2:
        return audits[0] if audits else "none of them"
    return f"{', '.join(audits[:-1])} and {audits[-1]}"
