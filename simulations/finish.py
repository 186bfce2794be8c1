"""The end of a run: adapter, audit, summary, report."""

from __future__ import annotations

import math
import platform
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.data import Record
from client.evaluation import sequence_losses
from client.tokenization import make_examples
from server.adapters import write_adapter
from server.audit.protocol import AuditContext, CanaryTexts, Claim
from server.audit.run import run_audits
from server.budget import RunBudget
from shared.lora import Vector, initial_factors
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import NeighboringRelation
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import CLIENT_MODES
from shared.privacy.statement import privacy_statement
from simulations.assemble import Assembly
from simulations.canaries import references
from simulations.report import write_report
from simulations.runfolder import AUDIT, SUMMARY, RunFolder

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
        rounds: finished rounds.
        losses: held-out losses per client, ``before`` and ``after``.
        status: ``"completed"`` or ``"budget-exhausted"``.
    """

    assembly: Assembly
    plan: PrivacyPlan
    folder: RunFolder
    budget: RunBudget
    released: Vector
    rounds: int
    losses: Losses
    status: str


class ModelScorer:
    """Scores texts under the released adapter or the bare base, for audits."""

    def __init__(self, assembly: Assembly) -> None:
        self._model = assembly.model
        self._config = assembly.runtime.config

    def losses(self, texts: Sequence[str], *, adapter: bool) -> NDArray[np.float64]:
        """Return the summed negative log-likelihood of each text, in nats."""
        data, evaluation = self._config.data, self._config.evaluation
        examples = [
            make_examples(
                [Record(text=text)],
                self._model.base.tokenizer,
                max_length=data.max_length,
                template="plain",
            )[0]
            for text in texts
        ]
        if adapter:
            return self._score(examples, evaluation.batch_size)
        with self._model.disabled():
            return self._score(examples, evaluation.batch_size)

    def _score(self, examples: Sequence[Any], batch_size: int) -> NDArray[np.float64]:
        """Return summed losses of tokenised texts."""
        losses = sequence_losses(self._model, examples, batch_size=batch_size, reduction="sum")
        return np.asarray(losses, dtype=np.float64)


def finish_run(outcome: Outcome, *, began: float) -> dict[str, Any]:
    """Write adapter, audit, summary and report of a run.

    Args:
        outcome: what the rounds came to.
        began: ``time.monotonic()`` at the start of this process's part.

    Returns:
        The contents of ``summary.json``.
    """
    _write_adapter(outcome)
    audit = _audit(outcome)
    outcome.folder.write_json(AUDIT, audit)
    summary = _summary(outcome, audit, seconds=time.monotonic() - began)
    outcome.folder.write_json(SUMMARY, summary)
    write_report(outcome.folder.path)
    return summary


def _write_adapter(outcome: Outcome) -> None:
    """Load the released adapter into the model and write it in PEFT's format."""
    config, model = outcome.assembly.runtime.config, outcome.assembly.model
    factors = initial_factors(model.spec, config.run.seed)
    factors |= model.spec.unflatten(outcome.released, config.trained_kinds)
    model.load(factors)
    write_adapter(
        outcome.folder.adapter,
        spec=model.spec,
        factors=factors,
        base_model=config.model.base,
        dropout=config.lora.dropout,
        manifest={
            "base_digest": model.base.digest,
            "config_digest": config.digest(),
            "plan_digest": outcome.plan.digest(),
            "ledger_head": outcome.budget.head(),
            "rounds": outcome.rounds,
        },
    )


def _audit(outcome: Outcome) -> dict[str, Any]:
    """Attack the released adapter with the planted canaries."""
    assembly = outcome.assembly
    config = assembly.runtime.config
    canaries = assembly.canaries
    texts = CanaryTexts(
        included=tuple(c.text for c in canaries.canaries if c.included),
        held_out=tuple(c.text for c in canaries.canaries if not c.included),
        references=tuple(references(canaries, config.audit.references, config.run.seed)),
        repeats=config.audit.repeats,
        commitment=canaries.digest(),
        per_client=canaries.per_client,
    )
    context = AuditContext(
        scorer=ModelScorer(assembly), canaries=texts, claim=_claim(outcome), seed=config.run.seed
    )
    return run_audits(context, config.audit.profile).to_dict()


def _claim(outcome: Outcome) -> Claim:
    """Say what the run claims, and the epsilon that one planted record is held against.

    A planted record turns its client's update into another one: in the client modes that is the
    replace-one-client relation, whatever relation the claim itself is under. Where local steps are
    DP-SGD as well, a planted record is an example, and the smaller of the two figures holds.
    """
    plan = outcome.plan
    if plan.delta is None or plan.neighboring_relation is None:
        return Claim(mode=plan.mode, epsilon=None, delta=None, unit=None, neighboring_relation=None)
    spent = outcome.budget.spent()
    applicable = spent.epsilon
    if plan.mode in CLIENT_MODES and spent.releases > 0:
        applicable = epsilon_of(
            plan.events_after(spent.releases),
            delta=plan.delta,
            relation=NeighboringRelation.REPLACE_ONE,
        )
    if plan.example is not None and plan.example.delta == plan.delta:
        applicable = min(applicable, outcome.budget.spent_by_clients().epsilon)
    return Claim(
        mode=plan.mode,
        epsilon=spent.epsilon,
        delta=plan.delta,
        unit=str(plan.unit),
        neighboring_relation=str(plan.neighboring_relation),
        epsilon_applicable=applicable,
    )


def _summary(outcome: Outcome, audit: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
    """Collect the keys that others rely on."""
    config, model = outcome.assembly.runtime.config, outcome.assembly.model
    before, after = (_mean(outcome.losses[key]) for key in ("before", "after"))
    metrics = outcome.folder.metrics()
    earlier = sum(float(record["seconds"]) for record in metrics)
    return {
        "schema": 1,
        "status": outcome.status,
        "scenario": config.run.name,
        "seed": config.run.seed,
        "rounds": outcome.rounds,
        "population": outcome.assembly.dataset.population,
        "cohort": config.clients.cohort or outcome.assembly.dataset.population,
        "base_model": config.model.base,
        "base_digest": model.base.digest,
        "quantization": config.model.quantization,
        "lora": {
            "r": config.lora.r,
            "alpha": config.lora.alpha,
            "target_modules": list(model.spec.target_modules),
            "trainable_parameters": model.spec.size(config.trained_kinds),
        },
        "aggregation": config.policy,
        "data": dict(outcome.assembly.dataset.describe()),
        "loss_before": before,
        "loss_after": after,
        "perplexity_before": None if before is None else math.exp(before),
        "perplexity_after": None if after is None else math.exp(after),
        "clients_measured": len(outcome.losses["after"]),
        **_privacy(outcome),
        "bytes_up_per_client_round": _largest(metrics, "bytes_up_per_client"),
        "bytes_down_per_client_round": _largest(metrics, "bytes_down_per_client"),
        "seconds": round(max(seconds, earlier), 3),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "audit": dict(audit),
        "engine": config.run.engine,
        "config_digest": config.digest(),
        "ledger": outcome.budget.end(),
        "versions": _versions(),
    }


def _privacy(outcome: Outcome) -> dict[str, Any]:
    """Collect what the summary says about privacy."""
    plan = outcome.plan
    spent = outcome.budget.spent()
    private = plan.mode != "none"
    config = outcome.assembly.runtime.config
    statement = privacy_statement(
        plan,
        epsilon_spent=spent.epsilon,
        releases=spent.releases,
        examples_per_person=config.data.max_records if plan.mode == "example" else None,
    )
    return {
        "privacy": {
            "mode": plan.mode,
            "unit": str(plan.unit) if private else None,
            "neighboring_relation": str(plan.neighboring_relation) if private else None,
            "epsilon": spent.epsilon if private else None,
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
            "noise_source": plan.noise_source if private else None,
            "example": _example(outcome),
        },
        "statement": statement.to_dict(),
        "warnings": list(plan.warnings()),
    }


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
