"""What one finished run leaked, and what it learned: the numbers that studies compare.

Leakage is what the audits of planted canaries find, at the effort of a release. Numbers only: no
text and no secret is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.protocol import AuditContext, Finding
from server.audit.ranking import exposure
from server.audit.run import run_audits
from server.audit.target import CachedTarget, Target, losses
from simulations.auditing.claims import claim_of
from simulations.auditing.dossier import Dossier, open_dossier, read_json_of
from simulations.auditing.target import ModelTarget
from simulations.canaries import planted
from simulations.runfolder import SUMMARY
from simulations.studies.participation import rounds_by_client

ATTACKS = ("one-run", "exposure", "membership", "extraction")


def measure(run_dir: Path, *, base_dir: Path) -> dict[str, Any]:
    """Attack the canaries of a finished run.

    Args:
        run_dir: its folder.
        base_dir: what relative paths of its scenario are relative to.

    Returns:
        JSON values: sizes, held-out losses (nats per token), the claim, the certified lower bound,
        and per kind of canary the exposure (bits), the membership AUC and the share extracted. An
        attack that could not be run leaves None. ``canaries`` has one entry per included canary of
        a kind that can be ranked: its exposure (by loss, as the audit reports it), by how many nats
        the adapter made it likelier, and the rounds in which its client took part.

    Raises:
        RunFolderError: if the folder holds no finished run.
        AuditError: if cohorts cannot be worked out from the seed, or the model answers nonsense.
    """
    with open_dossier(run_dir, base_dir=base_dir) as dossier:
        config, model = dossier.config, dossier.assembly.model
        target = CachedTarget(
            ModelTarget(model, max_length=config.data.max_length, template=config.data.template)
        )
        secrets = planted(dossier.assembly.canaries)
        claim = claim_of(dossier.privacy, dossier.plan)
        context = AuditContext(
            claim=claim, seed=config.run.seed, effort="release", artefacts=(target, secrets)
        )
        report = run_audits(context, ATTACKS, profile="study")
        findings = {finding.audit: finding for finding in report.findings}
        summary = read_json_of(dossier.folder, SUMMARY)
        adapter = model.spec.size("AB")
        return {
            "base_parameters": sum(p.numel() for p in model.peft_model.parameters()) - adapter,
            "trainable_parameters": int(summary["lora"]["trainable_parameters"]),
            "loss_before": summary["loss_before"],
            "loss_after": summary["loss_after"],
            "rounds": int(summary["rounds"]),
            "epsilon": claim.epsilon,
            "delta": claim.delta,
            "epsilon_applicable": claim.epsilon_applicable,
            "noise_multiplier": dossier.privacy["noise_multiplier"],
            "epsilon_lower_bound": findings["one-run"].value,
            "epsilon_ceiling": findings["one-run"].ceiling,
            "kinds": {kind.kind: _kind(kind, findings) for kind in secrets.kinds},
            "canaries": _canaries(dossier, secrets, target),
        }


def _kind(kind: CanaryTexts, findings: Mapping[str, Finding]) -> dict[str, Any]:
    """Return what the attacks found about one kind of canary."""
    exposed = _derived(findings["exposure"], "kinds", kind.kind)
    members = _derived(findings["membership"], "sets", kind.kind)
    chosen = str(members.get("primary_score"))
    scores = _derived(findings["membership"], "sets", kind.kind, "scores", chosen)
    blind = _derived(findings["membership"], "sets", kind.kind, "blind", "base_loss")
    tuned = _derived(findings["extraction"], "kinds", kind.kind, "included", "tuned")
    found = tuned.get("discoverable_1000_0.1")
    return {
        "included": len(kind.included),
        "held_out": len(kind.held_out),
        "references": len(kind.references),
        "repeats": kind.repeats,
        "exposure_bits": exposed.get("mean_included"),
        "exposure_bits_held_out": exposed.get("mean_held_out"),
        "auc": scores.get("auc"),
        "auc_base": blind.get("auc"),
        "extracted": None if found is None else found / len(kind.included),
    }


def _derived(finding: Finding, *keys: str) -> Mapping[str, Any]:
    """Return a part of what an audit worked out; empty where it was not run on it."""
    found: Any = finding.evidence.get("derived", {})
    for key in keys:
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _canaries(
    dossier: Dossier, secrets: PlantedCanaries, target: Target
) -> list[dict[str, object]]:
    """Return what the adapter knows about each included canary, and when it was trained on it."""
    rounds = rounds_by_client(
        dossier.config,
        dossier.plan,
        population=dossier.assembly.dataset.population,
        metrics=dossier.folder.metrics(),
    )
    found: list[dict[str, object]] = []
    for kind in secrets.kinds:
        chosen = [
            canary
            for canary in dossier.assembly.canaries.canaries
            if canary.included and canary.kind == kind.kind
        ]
        if not (chosen and kind.references):
            continue
        passages = [canary.passage for canary in chosen]
        tuned = losses(target, passages, adapter=True)
        gained = losses(target, passages, adapter=False) - tuned
        bits = exposure(tuned, losses(target, kind.references, adapter=True))
        found += [
            {
                "kind": canary.kind,
                "bits": round(float(bit), 4),
                "gain": round(float(gain), 4),
                "rounds": list(rounds.get(canary.client, ())),
            }
            for canary, bit, gain in zip(chosen, bits, gained, strict=True)
        ]
    return found
