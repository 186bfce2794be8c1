"""The end of a run: adapter, audit, summary, report."""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from server.adapters import write_adapter
from server.budget import RunBudget
from server.prepared import run_name
from server.timing import SECONDS
from server.warmstart import describe
from shared.configlink import link_facts
from shared.lora import Vector, initial_factors
from shared.policyrules import policy_warnings
from shared.privacy.ledger import Ledger
from shared.privacy.plan import PrivacyPlan
from shared.privacy.statement import privacy_statement
from shared.residual import Residual, stacked, stacked_rank
from simulations.assemble import Assembly
from simulations.attacks.summary import attack_summary, defence_summary
from simulations.personal import gain, spread
from simulations.rankfigures import rank_rows
from simulations.report import write_report
from simulations.routing import routing_summary
from simulations.runfolder import SUMMARY, RunFolder
from simulations.stopnote import stop_note, stop_warning
from simulations.taskfigures import task_summary

PACKAGES = (
    "fedslm",
    "flwr",
    "torch",
    "transformers",
    "peft",
    "opacus",
    "dp-accounting",
    "bitsandbytes",
    "numpy",
    "cryptography",
)
Losses = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the rounds of a run came to.

    Attributes:
        assembly: model, dataset, canaries.
        plan: the privacy plan.
        folder: the run folder.
        budget: the run's ledger view.
        released: trained factors of the released adapter.
        residual: what lies beneath it, under policy ``fedex``.
        rounds: finished rounds.
        losses: held-out losses per client, ``before`` and ``after``.
        status: ``"completed"`` or ``"budget-exhausted"``.
        ledger: the ledger that the run charged.
        scope: what it calls the run's data.
        note: is told what is being done.
        start: where the adapter comes from that the run went on from, if it did.
    """

    assembly: Assembly
    plan: PrivacyPlan
    folder: RunFolder
    budget: RunBudget
    released: Vector
    rounds: int
    losses: Losses
    status: str
    ledger: Ledger
    scope: str
    note: Callable[[str], None]
    start: Mapping[str, Any] | None = None
    residual: Residual | None = None


def finish_run(outcome: Outcome, *, began: float) -> dict[str, Any]:
    """Write adapter, audit, summary and report of a run.

    Args:
        outcome: what the rounds came to.
        began: ``time.monotonic()`` at the start of this process's part.

    Returns:
        The contents of ``summary.json``.
    """
    _write_adapter(outcome)
    privacy = _privacy(outcome)
    audit = _audit(outcome, privacy["privacy"])
    summary = _summary(outcome, audit, privacy, seconds=time.monotonic() - began)
    outcome.folder.write_json(SUMMARY, summary)
    write_report(outcome.folder.path)
    return summary


def _write_adapter(outcome: Outcome) -> None:
    """Load the released adapter into the model and write it in PEFT's format."""
    config, model = outcome.assembly.runtime.config, outcome.assembly.model
    factors = initial_factors(model.spec, config.adapter_seed)
    factors |= model.spec.unflatten(outcome.released, config.trained_kinds)
    model.load(factors)
    spec, whole = stacked(model.spec, factors, outcome.residual)
    write_adapter(
        outcome.folder.adapter,
        spec=spec,
        factors=whole,
        base_model=config.model.base,
        dropout=config.lora.dropout,
        manifest={
            "base_digest": model.base.digest,
            "config_digest": config.digest(),
            "plan_digest": outcome.plan.digest(),
            "ledger_head": outcome.budget.head(),
            "rounds": outcome.rounds,
            **({"labels": list(config.task.labels)} if config.task.classifies else {}),
            **({"kept_by_clients": kept} if (kept := config.policy_facts.kept) else {}),
        },
    )


def _audit(outcome: Outcome, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Attack the released adapter with the scenario's profile, and write the signed report."""
    from server.audit.catalog import PROFILES
    from server.audit.report import AuditReport
    from shared.crypto import SigningKey
    from simulations.auditing.claims import claim_of
    from simulations.auditing.dossier import Dossier
    from simulations.auditing.show import Noted
    from simulations.auditing.suite import audit_dossier, audit_key, leak_control, write_audit

    config = outcome.assembly.runtime.config
    profile = config.audit.profile
    if profile == "none":
        claim = claim_of(privacy, outcome.plan)
        report = AuditReport(
            claim=claim, findings=(), canaries={}, profile=profile, seed=config.run.seed
        )
    else:
        dossier = Dossier(
            assembly=outcome.assembly,
            plan=outcome.plan,
            folder=outcome.folder,
            ledger=outcome.ledger,
            scope=outcome.scope,
            privacy=privacy,
            released=outcome.released,
        )
        report = audit_dossier(
            dossier,
            PROFILES.get(profile),
            profile=profile,
            controls=leak_control,
            progress=Noted(outcome.note),
        )
    key = SigningKey.load_or_create(audit_key())
    folder = outcome.folder.path
    return write_audit(report, folder, key=key).report


def _summary(
    outcome: Outcome, audit: Mapping[str, Any], privacy: Mapping[str, Any], *, seconds: float
) -> dict[str, Any]:
    """Collect the keys that others rely on."""
    config, model = outcome.assembly.runtime.config, outcome.assembly.model
    beneath = outcome.residual
    before, after = (_mean(outcome.losses[key]) for key in ("before", "after"))
    metrics = outcome.folder.metrics()
    earlier = sum(float(record["seconds"]) for record in metrics)
    return {
        "schema": 1,
        "status": outcome.status,
        "scenario": config.run.name,
        "seed": config.run.seed,
        "rounds": outcome.rounds,
        "planned_rounds": config.run.rounds,
        "population": outcome.assembly.dataset.population,
        "cohort": config.asked_cohort or outcome.assembly.dataset.population,
        "base_model": config.model.base,
        "base_digest": model.base.digest,
        "quantization": config.model.quantization,
        "compute_dtype": config.model.products,
        "lora": {
            "variant": config.lora.variant,
            "r": config.lora.r,
            "alpha": config.lora.alpha,
            "target_modules": list(model.spec.target_modules),
            "trainable_parameters": model.spec.size(config.trained_kinds),
            "mixture": None if model.spec.mixture is None else model.spec.mixture.to_json(),
        },
        "aggregation": config.policy,
        **({"share": config.aggregation.share} if config.policy_facts.kept else {}),
        **({"released_r": stacked_rank(model.spec, beneath)} if beneath else {}),
        "link": link_facts(config.link),
        "defence": defence_summary(config, metrics),
        "attack": _attack(outcome),
        "data": dict(outcome.assembly.dataset.describe()),
        "loss_before": before,
        "loss_after": after,
        **task_summary(config.task, outcome.losses, before=before, after=after),
        "clients_measured": len(outcome.losses["after"]),
        "client_losses": {key: spread(outcome.losses[key]) for key in ("before", "after")},
        "personal": _personal(outcome),
        "routing": routing_summary(outcome.losses),
        **_ranks(outcome, metrics),
        **privacy,
        "bytes_up_per_client_round": _largest(metrics, "bytes_up_per_client"),
        "bytes_down_per_client_round": _largest(metrics, "bytes_down_per_client"),
        "seconds": round(max(seconds, earlier), 3),
        **({SECONDS: metrics[-1][SECONDS]} if metrics and SECONDS in metrics[-1] else {}),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "audit": dict(audit),
        "engine": config.run.engine,
        "config_digest": config.digest(),
        "ledger": outcome.budget.end(),
        "warm_start": _warm_start(outcome),
        "versions": _versions(),
    }


def _attack(outcome: Outcome) -> dict[str, Any] | None:
    """Collect what the summary says about simulated attackers; None without any."""
    parts = outcome.assembly
    return attack_summary(
        parts.runtime.config,
        dataset=parts.dataset,
        model=parts.model,
        released=outcome.released,
    )


def _privacy(outcome: Outcome) -> dict[str, Any]:
    """Collect what the summary says about privacy."""
    plan = outcome.plan
    spent = outcome.budget.spent()
    private = plan.mode != "none"
    config = outcome.assembly.runtime.config
    note = stop_note(config, plan, outcome.budget, rounds=outcome.rounds, status=outcome.status)
    stopped = private and note is not None and note["stopped"]
    claimed = note["epsilon_bound"] if note is not None and stopped else spent.epsilon
    statement = privacy_statement(
        plan,
        epsilon_spent=claimed,
        releases=spent.releases,
        examples_per_person=config.data.max_records if plan.mode == "example" else None,
    )
    return {
        "privacy": {
            "mode": plan.mode,
            "unit": str(plan.unit) if private else None,
            "neighboring_relation": str(plan.neighboring_relation) if private else None,
            "epsilon": claimed if private else None,
            "delta": plan.delta if private else None,
            "noise_multiplier": plan.noise_multiplier or 0.0,
            "clipping_norm": plan.clipping_norm,
            "max_grad_norm": plan.max_grad_norm,
            "sampling_probability": plan.sampling_probability,
            "releases": spent.releases,
            "accountant": plan.accountant if private else None,
            "epsilon_rdp": spent.epsilon_rdp if private else None,
            "cap": plan.cap if private else None,
            "observer_epsilon": plan.observer_epsilon() if private else None,
            "server_epsilon": _finite(plan.server_epsilon()),
            "noise": plan.noise if private else None,
            "noise_schedule": None if plan.schedule is None else plan.schedule.to_json(),
            "vote": None if plan.vote is None else plan.vote.to_json(),
            "stopping": note,
            "noise_source": plan.noise_source if private else None,
            "example": _example(outcome),
        },
        "statement": statement.to_dict(),
        "warnings": [
            *plan.warnings(),
            *_start_warning(outcome),
            *stop_warning(note),
            *policy_warnings(config),
        ],
    }


def _personal(outcome: Outcome) -> dict[str, Any] | None:
    """Say what personal adapters gained, if they were measured."""
    said, losses = outcome.assembly.runtime.config.personal, outcome.losses
    found = gain({key: losses.get(f"personal-{key}") or {} for key in ("shared", "own")})
    if found is None:
        return None
    return {"steps": said.steps, "learning_rate": said.learning_rate, **found}


def _ranks(outcome: Outcome, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say what the run came to for each rank; nothing where all clients have one."""
    rows = rank_rows(outcome.assembly.runtime, outcome.released, outcome.losses, metrics)
    return {"ranks": rows} if rows else {}


def _warm_start(outcome: Outcome) -> dict[str, Any] | None:
    """Say what the run went on from, and what that means for its guarantee."""
    if outcome.start is None:
        return None
    earlier = outcome.start.get("plan_digest")
    mine = run_name(outcome.assembly.runtime.config)
    together = any(
        run != mine and known.digest() == earlier
        for run, known in outcome.ledger.plans(outcome.scope)
    )
    meaning = describe(
        outcome.start, charged_together=together, private=outcome.plan.mode != "none"
    )
    return {**outcome.start, "charged_together": together, "meaning": meaning}


def _start_warning(outcome: Outcome) -> list[str]:
    """Return what a reader of the figures must know about the adapter that came before."""
    found = _warm_start(outcome)
    return [] if found is None else [str(found["meaning"])]


def _example(outcome: Outcome) -> dict[str, Any] | None:
    """Collect what a second guarantee, of DP-SGD inside each client, says."""
    inner = outcome.plan.example
    if inner is None:
        return None
    spent = outcome.budget.spent_by_clients()
    return {
        "unit": str(inner.unit),
        "neighboring_relation": str(inner.neighboring_relation),
        "epsilon": spent.epsilon,
        "delta": inner.delta,
        "noise_multiplier": inner.noise_multiplier,
        "max_grad_norm": inner.max_grad_norm,
        "sampling_probability": inner.sampling_probability,
        "noise_schedule": None if inner.schedule is None else inner.schedule.to_json(),
        "releases": spent.releases,
        "accountant": inner.accountant,
        "epsilon_rdp": spent.epsilon_rdp,
        "cap": inner.cap,
    }


def _finite(value: float) -> float | None:
    """Return a number that JSON can hold; None for infinity."""
    return value if math.isfinite(value) else None


def _mean(losses: Mapping[str, float]) -> float | None:
    """Return the mean over clients; None if nobody was measured."""
    return sum(losses.values()) / len(losses) if losses else None


def _largest(metrics: Sequence[Mapping[str, Any]], key: str) -> int:
    """Return the largest value of a column."""
    return max((int(record[key]) for record in metrics), default=0)


def _versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
