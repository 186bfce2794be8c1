"""Canary clients in random directions: an audit of noise and weight that needs only releases.

Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning" (2024), with a pooled
estimator in place of theirs (see :mod:`server.audit.cosines`). Canary clients take part like
everybody else, under the same sampling, clip, noise and secure aggregation, and lean the release
towards their own directions by an amount that the plan predicts.

Three things are tested. A lower bound on epsilon from the cosines, parametric. The mean score: more
than the plan predicts means too little noise or too much weight. And a rehearsal of the installed
mechanism without data (see :mod:`server.audit.canaryrehearsal`), which is also the positive
control, and the whole audit of a run without canary clients.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.audit import evidence as read
from server.audit.canarymeasure import measure_run
from server.audit.canaryparts import (
    CONFORMANCE,
    RehearsalPart,
    RunPart,
    conclude_rehearsal,
    conclude_run,
)
from server.audit.canaryrehearsal import rehearse
from server.audit.directions import ClientCanaries, update_noise
from server.audit.protocol import AuditContext, Control, Evidence, Finding, Terms, Verdict
from server.audit.runrecord import RunRecord
from server.audit.verdict import Bound, bound_for_client, judge, stated_delta
from shared.errors import AuditError

__all__ = ["ClientCanaries", "ClientCanary"]

_UNCLAIMED_DELTA = 1e-5


class ClientCanary:
    """Whoever sees releases knows some clients' directions and looks for them."""

    name = "client-canary"
    metric = "epsilon_lower_bound"
    threat_model = (
        "Someone who sees what every round released, or the released adapter alone, and knows the "
        "update that some client would have sent; not in which rounds it took part."
    )
    needs = (
        "the run's plan and releases",
        "canary clients (audit.client_canaries); without them the mechanism is rehearsed alone",
    )

    def cost(self, context: AuditContext) -> str:
        """Say how many directions are drawn."""
        record, canaries = context.find(RunRecord), context.find(ClientCanaries)
        if record is None:
            return "nothing: there is no run to look at"
        count = 0 if canaries is None else 2 * canaries.count
        return f"{count} directions of {record.dimension} numbers, and a rehearsal played twice"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Take cosines and scores of the run's canaries, and rehearse its mechanism.

        Raises:
            MissingArtefact: without a run.
            AuditError: if the run has neither canary clients nor a mechanism to rehearse.
        """
        record, canaries = context.need(RunRecord), context.find(ClientCanaries)
        plan = record.plan
        noise = update_noise(plan)
        if canaries is None and noise is None:
            msg = f"mode={plan.mode!r} without canary clients: there is nothing to look at."
            raise AuditError(msg, hint="Set audit.client_canaries before the run.")
        found: dict[str, Any] = {
            "canaries": 0 if canaries is None else canaries.count,
            "mode": plan.mode,
            "mechanism": plan.noise,
            "noise_multiplier": noise,
            "sampling_probability": plan.sampling_probability,
            "dimension": record.dimension,
            "run": None if canaries is None else measure_run(record, canaries),
            "rehearsal": None,
        }
        if noise is not None:
            found["rehearsal"] = rehearse(plan, seed=context.seed, dimension=record.dimension)
        return found

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Bound epsilon, test conformance, and say what the rehearsal showed.

        Raises:
            AuditError: if the evidence is malformed.
        """
        bound = bound_for_client(terms.claim)
        run, rehearsal = _parts(evidence, terms, bound)
        control = terms.control if rehearsal is None else rehearsal.control
        verdict, reasons = _verdict(replace(terms, control=control), bound, run, rehearsal)
        parts = [part for part in (run, rehearsal) if part is not None]
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="conformance" if run is None else "parametric",
            metric=self.metric,
            value=None if run is None else run.pooled.lower,
            interval=None,
            ceiling=None if run is None else run.ceiling,
            baseline=None if run is None else 0.0,
            detected=_detected(run, rehearsal),
            n_in=read.integer(evidence, "canaries"),
            n_out=0 if run is None else run.unseen,
            alpha=terms.alpha,
            positive_control=_caught(control),
            explanation=" ".join([*(part.words for part in parts), *reasons]),
            evidence={
                **{key: value for key, value in evidence.items() if key != read.DERIVED},
                read.DERIVED: {
                    "run": None if run is None else run.derived,
                    "rehearsal": None if rehearsal is None else rehearsal.derived,
                },
            },
        )


def _parts(
    evidence: Evidence, terms: Terms, bound: Bound
) -> tuple[RunPart | None, RehearsalPart | None]:
    """Conclude both halves, with the chance of a false alarm divided among the tests."""
    share = min(CONFORMANCE, terms.alpha / 4)
    run = rehearsal = None
    if read.integer(evidence, "canaries", low=0) > 0:
        run = conclude_run(
            evidence,
            bound=bound,
            # A run that claims no delta is described at a common one; nothing is judged by it.
            delta=stated_delta(terms.claim, bound) or _UNCLAIMED_DELTA,
            alpha=terms.alpha - 2 * share,
            conformance=share,
        )
    if evidence.get("rehearsal") is not None:
        rehearsal = conclude_rehearsal(evidence, conformance=share)
    if run is None and rehearsal is None:
        msg = "evidence holds neither canary clients nor a rehearsal, expected one of them."
        raise AuditError(msg)
    return run, rehearsal


def _verdict(
    terms: Terms, bound: Bound, run: RunPart | None, rehearsal: RehearsalPart | None
) -> tuple[Verdict, list[str]]:
    """Decide, and say why."""
    broken = [why for part in (run, rehearsal) if part is not None for why in part.broken]
    verdict, reason = judge(
        terms,
        bound=bound,
        ceiling_epsilon=None if run is None else run.ceiling,
        detected=False,
        violated=run is not None and run.violated,
    )
    if verdict == "violation":
        return verdict, [*broken, reason]
    if broken:
        return "violation", broken
    weak = [] if run is None else run.weak
    if weak:
        return "inconclusive", weak if verdict == "consistent" else [*weak, reason]
    if run is None and verdict == "consistent":
        reason = "The run had no canary clients: this is about the installed mechanism alone."
    return verdict, [reason]


def _detected(run: RunPart | None, rehearsal: RehearsalPart | None) -> bool:
    """Tell whether canaries of the run, or a fault of the mechanism, were seen."""
    if run is not None:
        return run.detected
    return rehearsal is not None and bool(rehearsal.broken)


def _caught(control: Control | None) -> bool | None:
    """Tell whether the positive control was caught."""
    return None if control is None else control.caught
