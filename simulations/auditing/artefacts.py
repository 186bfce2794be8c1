"""From a run to the artefacts that its audits read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from client.data import Record
from server.adapters import MANIFEST
from server.audit.canaries import PlantedCanaries
from server.audit.directions import ClientCanaries
from server.audit.ledger import committed_in_time, ledger_artefact
from server.audit.membership import TextSplit
from server.audit.protocol import AuditContext, Effort
from server.audit.runrecord import RoundRecord, RunRecord
from server.audit.target import Passage
from server.prepared import IDENTITY, WARM_START, run_name
from server.releases import read_all_releases
from server.replay import replay_all
from server.warmstart import read_start
from shared.errors import AuditError
from shared.lora import Vector, initial_factors
from shared.seeding import data_rng
from simulations.auditing.assistant import assistant_for
from simulations.auditing.claims import claim_of
from simulations.auditing.dossier import Dossier, read_json_of
from simulations.auditing.facts import personal_facts
from simulations.auditing.failureprobe import ClientAppProbe
from simulations.auditing.inverter import RuntimeInverter
from simulations.auditing.rehearsal import RehearsedSteps
from simulations.auditing.shadows import TrainedShadows
from simulations.auditing.target import ModelTarget
from simulations.auditing.updateprobe import RuntimeProbe
from simulations.canaries import planted
from simulations.runfolder import RunFolder

NATURAL: dict[Effort, int] = {"smoke": 200, "release": 1000, "extended": 4000}
"""Natural texts on a side; more cost time and tell little more."""


def context_of(dossier: Dossier, effort: Effort, *, extra: Sequence[object] = ()) -> AuditContext:
    """Gather what the audits of a run read.

    Args:
        dossier: the run.
        effort: how hard the audits try.
        extra: further artefacts (served prompts, given attacks).

    Raises:
        AuditError: if a recorded release is damaged.
    """
    config, model = dossier.config, dossier.assembly.model
    target = ModelTarget(model, max_length=config.data.max_length, template=config.data.template)
    rounds = _rounds(dossier.folder)
    artefacts: list[object] = [*extra, target, _run_record(dossier, rounds)]
    artefacts.append(
        ledger_artefact(
            dossier.ledger,
            run_id=run_name(config),
            scope=dossier.scope,
            plan=dossier.plan,
            population=dossier.assembly.dataset.population,
            rounds=rounds,
            second_epsilon=(dossier.privacy.get("example") or {}).get("epsilon"),
        )
    )
    if config.audit.canaries > 0:
        artefacts.append(_planted(dossier, target))
    if config.audit.client_canaries > 0:
        artefacts.append(ClientCanaries(count=config.audit.client_canaries, seed=config.run.seed))
    split = natural_split(dossier, target, effort)
    if split is not None:
        artefacts.append(split)
    facts = personal_facts(dossier.assembly.dataset, seed=config.run.seed)
    if facts is not None:
        artefacts.append(facts)
    artefacts.append(assistant_for(model))
    artefacts += _probes(dossier)
    if effort == "extended":
        artefacts += _extended(dossier)
    return AuditContext(
        claim=claim_of(dossier.privacy, dossier.plan),
        seed=config.run.seed,
        effort=effort,
        artefacts=artefacts,
    )


def natural_split(dossier: Dossier, target: ModelTarget, effort: Effort) -> TextSplit | None:
    """Return records that clients trained on, and records of the same clients that they held out.

    Which of a client's records are held out was drawn before training, so the two sides are one
    population. One record a client and side at most, so that texts are not each other's relatives.

    Args:
        dossier: the run.
        target: tells what training can read.
        effort: decides how many.

    Returns:
        None where fewer than one client in ten holds anything out.
    """
    dataset, config = dossier.assembly.dataset, dossier.config
    real = dataset.population - config.audit.client_canaries
    rng = data_rng(config.run.seed, "natural-split")
    planted = {canary.client for canary in dossier.assembly.canaries.canaries if canary.included}
    order = [int(i) for i in rng.permutation(real) if int(i) not in planted]
    members: dict[Passage, None] = {}
    others: dict[Passage, None] = {}
    for index in order[: NATURAL[effort]]:
        data = dataset.client(index)
        if not (data.train and data.holdout):
            continue
        member, other = (
            _passage(records[int(rng.integers(len(records)))])
            for records in (data.train, data.holdout)
        )
        if member != other and target.scorable(member) and target.scorable(other):
            members[member] = others[other] = None
    both = members.keys() & others.keys()
    kept = tuple(p for p in members if p not in both), tuple(p for p in others if p not in both)
    if min(len(side) for side in kept) < min(real, NATURAL[effort]) // 10 or not all(kept):
        return None
    return TextSplit(
        members=kept[0],
        nonmembers=kept[1],
        source="clients' training records against their own held-out records",
        by_chance=True,
    )


def subject_of(dossier: Dossier) -> dict[str, object]:
    """Return digests of what is audited, for the report."""
    manifest = read_json_of(RunFolder(dossier.folder.adapter), MANIFEST)
    head = dossier.ledger.head()
    return {
        "kind": "run",
        "scenario": dossier.config.run.name,
        "seed": dossier.config.run.seed,
        "weights_sha256": manifest.get("weights_sha256"),
        "base_digest": dossier.assembly.model.base.digest,
        "base_model": dossier.config.model.base,
        "config_digest": dossier.config.digest(),
        "plan_digest": dossier.plan.digest(),
        "ledger_head": {"seq": head.seq, "hash": head.hash},
        "run_id": run_name(dossier.config),
        "data": dict(dossier.assembly.dataset.describe()),
        "noise_source": dossier.plan.noise_source,
    }


def _planted(dossier: Dossier, target: ModelTarget) -> PlantedCanaries:
    """Return the run's canaries, and whether the ledger had their coins before the first round.

    References that training would have cut away are left out; canaries were checked when planted.
    """
    found = planted(dossier.assembly.canaries)
    kinds = tuple(
        replace(kind, references=tuple(p for p in kind.references if target.scorable(p)))
        for kind in found.kinds
    )
    committed = committed_in_time(
        dossier.ledger, run_id=run_name(dossier.config), commitment=found.commitment
    )
    return replace(found, kinds=kinds, committed=committed)


def _run_record(dossier: Dossier, rounds: tuple[RoundRecord, ...]) -> RunRecord:
    """Return what the run left behind for an audit of the mechanism."""
    config, spec = dossier.config, dossier.assembly.model.spec
    initial = _first_vector(dossier)
    found = read_all_releases(dossier.folder.path, config)
    # Where factors take turns, the noise is read off the rounds of the first.
    releases = found.get(config.policy_facts.cycle[0])
    replayed = None
    if releases is not None:
        replayed = replay_all(found, config, initial, spec, finished=len(rounds))
    return RunRecord(
        plan=dossier.plan,
        population=dossier.assembly.dataset.population,
        rounds=rounds,
        initial=initial,
        released=np.asarray(dossier.released),
        releases=releases,
        replayed=replayed,
    )


def _first_vector(dossier: Dossier) -> Vector:
    """Return the trained factors that the run began with."""
    config, spec = dossier.config, dossier.assembly.model.spec
    if config.run.warm_start is None:
        return spec.flatten(initial_factors(spec, config.adapter_seed), config.trained_kinds)
    digest = (dossier.folder.read_json(IDENTITY) or {}).get(WARM_START)
    size = spec.size(config.trained_kinds)
    return read_start(dossier.folder.path, size=size, digest=digest).vector


def _rounds(folder: RunFolder) -> tuple[RoundRecord, ...]:
    """Return the finished rounds of ``metrics.jsonl``.

    Raises:
        AuditError: if a line is not one of a round.
    """
    try:
        return tuple(
            RoundRecord(
                server_round=int(record["round"]),
                cohort=int(record["cohort"]),
                answered=int(record["answered"]),
                aborted=bool(record.get("aborted")),
                clipping_norm=record.get("clipping_norm"),
            )
            for record in folder.metrics()
        )
    except (KeyError, TypeError, ValueError) as error:
        msg = "metrics.jsonl holds a line that is not a round's."
        raise AuditError(msg, hint="Copy the whole run folder again.") from error


def _probes(dossier: Dossier) -> list[object]:
    """Return what lets audits try the installed client code on this run's model."""
    config, plan, model = dossier.config, dossier.plan, dossier.assembly.model
    found: list[object] = [ClientAppProbe(config=config, plan=plan, model=model)]
    if plan.mode == "example" or plan.example is not None:
        clipper = config.performance.clipper
        found.append(RehearsedSteps(model, plan, clipper=clipper, seed=config.run.seed))
    real = dossier.assembly.dataset.population - config.audit.client_canaries
    try:
        probe = RuntimeProbe.of_run(
            dossier.assembly.runtime, released=dossier.released, population=real
        )
    except AuditError:  # no adapted layer is fed with embeddings alone: nothing to look at
        return found
    found.append(probe)
    return found


def _extended(dossier: Dossier) -> list[object]:
    """Return what lets the costly audits train and search on this run's model."""
    runtime, model = dossier.assembly.runtime, dossier.assembly.model
    real = dossier.assembly.dataset.population - dossier.config.audit.client_canaries
    shadows = TrainedShadows(model, dossier.config)
    if model.vectors:
        # The search reads inputs off the row spaces of A and B, and there are none.
        return [shadows]
    inverter = RuntimeInverter.of_run(runtime, released=dossier.released, population=real)
    return [inverter, shadows]


def _passage(record: Record) -> Passage:
    """Return a record as audits read it."""
    if record.response is None:
        return Passage(text=record.text or "")
    return Passage(text=record.response, prompt=record.prompt or "")
