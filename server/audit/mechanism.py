"""Whether what ran is what the plan declares: noise, clip, sampling, adapter, errors.

Eight checks, each in a module of its own, under one level. They test conformance, not privacy: a
plan may be weak and a run conform to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from server.audit.clippath import check_clips, measure_clips
from server.audit.conformance import LEVEL, Check, exact
from server.audit.declared import declared_noise
from server.audit.evidence import DERIVED, integer, mapping, number, text
from server.audit.noisefloor import (
    check_ceiling,
    check_floor,
    measure_releases,
)
from server.audit.noisetests import noise_tests
from server.audit.protocol import AuditContext, Evidence, Finding, Terms, Verdict
from server.audit.rehearsal import LONG, check_rehearsal, clip_tests, measure_rehearsal
from server.audit.runrecord import RunRecord
from server.audit.sampling import check_sampling, fixed_batches, measure_sampling
from server.audit.scrubbing import FailureProbe, check_scrubbing, measure_scrubbing
from server.audit.steps import PrivateSteps, check_steps, measure_steps, step_clip
from shared.errors import AuditError
from shared.privacy.noise import SEEDED

REPLAY = "replay"
REPLAY_TOLERANCE = 1e-5
"""Largest difference of replayed and released adapter, relative to how far it was trained."""


class Mechanism:
    """Someone who does not believe that the code does what the plan says."""

    name = "mechanism"
    metric = "smallest_corrected_p_value"
    threat_model = (
        "A buggy or dishonest implementation: noise that is too small, missing or used twice, a "
        "clip that does not clip, batches that were not drawn, an adapter that is not what was "
        "released, errors that quote a record. The auditor holds the run folder and the code."
    )
    needs = (
        "what the run released in each round (audit.releases)",
        "the plan and the metrics of the run",
        "the installed code, which is rehearsed on made-up updates",
    )

    def cost(self, context: AuditContext) -> str:
        """Say how much is looked at."""
        record = context.find(RunRecord)
        if record is None or record.releases is None:
            return "some rehearsed rounds, seconds"
        rounds, kept = record.releases.values.shape
        return f"{rounds} releases of {kept} values and some rehearsed rounds, seconds"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Look at the releases and rehearse the installed code.

        Raises:
            AuditError: if the run record is missing or contradicts itself.
        """
        record = context.need(RunRecord)
        plan = record.plan
        return {
            "mode": plan.mode,
            "noise": plan.noise if plan.noise_multiplier is not None else "none",
            "noise_source": plan.noise_source,
            "finished": len(record.rounds),
            "releases": measure_releases(record),
            "clips": measure_clips(record),
            "sampling": measure_sampling(record),
            "rehearsal": measure_rehearsal(plan, seed=context.seed),
            "steps": _measure_steps(record, context.find(PrivateSteps)),
            "replay": _measure_replay(record),
            "scrubbing": _measure_scrubbing(context.find(FailureProbe)),
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Test every check at a common level and say what failed.

        Raises:
            AuditError: if the evidence is malformed.
        """
        mode = text(evidence, "mode")
        checks = _checks(evidence)
        controls = _controls(evidence)
        tests = [test for check in checks for test in check.tests]
        failed = [
            f"{test.broken} ({check.name}, {test.name}: corrected p = {test.corrected:.2g})"
            for check in checks
            for test in check.failures
        ]
        missed = sorted(name for name, caught in controls.items() if not caught)
        doubts = [doubt for check in checks for doubt in check.doubts]
        if mode == "none":
            doubts.append("The run claims no protection, so there is little to conform to.")
        if missed:
            doubts.append(f"The tests did not catch what they must catch: {', '.join(missed)}.")
        verdict = _verdict(failed, doubts)
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="conformance",
            metric=self.metric,
            value=min((test.corrected for test in tests), default=None),
            interval=None,
            ceiling=None,
            baseline=None,
            detected=bool(failed),
            n_in=len(tests),
            n_out=0,
            alpha=LEVEL,
            positive_control=not missed if controls else None,
            explanation=_explain(verdict, checks, failed, doubts, evidence),
            evidence={
                **{key: value for key, value in evidence.items() if key != DERIVED},
                DERIVED: {"checks": [c.to_dict() for c in checks], "controls": controls},
            },
        )


def _checks(evidence: Evidence) -> list[Check]:
    """Return every check, from its part of the evidence."""
    releases = mapping(evidence, "releases")
    return [
        check_floor(releases),
        check_ceiling(releases),
        check_clips(mapping(evidence, "clips")),
        check_sampling(mapping(evidence, "sampling")),
        check_rehearsal(mapping(evidence, "rehearsal")),
        check_steps(mapping(evidence, "steps")),
        _check_replay(mapping(evidence, "replay")),
        check_scrubbing(mapping(evidence, "scrubbing")),
    ]


def _controls(evidence: Evidence) -> dict[str, bool]:
    """Return which sabotaged inputs the same tests catch."""
    controls: dict[str, bool] = {}
    for name in ("rehearsal", "steps"):
        part = mapping(evidence, name)
        if "noise" not in part:
            continue
        for broken in ("halved", "reused"):
            tests = noise_tests(mapping(part, broken), who="Sabotaged noise")
            controls[f"{name}: noise {broken}"] = any(test.failed for test in tests)
        if name == "rehearsal":
            unclipped = {**mapping(part, "clip"), "long": LONG}
            controls["rehearsal: clip off"] = any(t.failed for t in clip_tests(unclipped))
        else:
            controls["steps: clip off"] = step_clip(LONG).failed
    batches = fixed_batches(mapping(evidence, "sampling"))
    if batches is not None and batches["rounds"] > 0 and batches["probability"] < 1:
        controls["sampling: fixed batches"] = bool(check_sampling(batches).failures)
    scrubbing = mapping(evidence, "scrubbing")
    if "control" in scrubbing:
        controls["error-scrubbing: quoted record"] = scrubbing["control"] is True
    return controls


def _measure_steps(record: RunRecord, steps: PrivateSteps | None) -> dict[str, Any]:
    """Rehearse the clients' steps where the plan noises them."""
    if record.plan.mode != "example" and record.plan.example is None:
        return {"skipped": "Clients add no noise in their steps."}
    if steps is None:
        return {"missing": "The clients' steps could not be rehearsed here."}
    return measure_steps(steps)


def _measure_scrubbing(probe: FailureProbe | None) -> dict[str, Any]:
    """Make a client fail, if there is one."""
    if probe is None:
        return {"missing": "There was no client here that could be made to fail."}
    return measure_scrubbing(probe)


def _measure_replay(record: RunRecord) -> dict[str, Any]:
    """Compare the released adapter with what the releases give."""
    if record.releases is None:
        return {"skipped": "The run did not keep its releases."}
    expected = {
        r.server_round for r in record.rounds if not r.aborted and (r.answered or _always(record))
    }
    if absent := expected - set(record.releases.rounds) - set(record.releases.others):
        return {"missing": f"{len(absent)} of {len(expected)} releases are not there."}
    if record.releases.coordinates is not None:
        return {"skipped": "Only some coordinates of the releases were kept."}
    if record.replayed is None:
        return {"missing": "The releases were not replayed."}
    if record.replayed.shape != record.released.shape:
        msg = f"the replayed adapter has {record.replayed.size} values, expected "
        msg += f"{record.released.size}."
        raise AuditError(msg)
    released = record.released.astype(np.float64)
    trained = float(np.abs(released - record.initial).max())
    apart = float(np.abs(released - record.replayed).max())
    finite = bool(np.isfinite(released).all() and np.isfinite(record.replayed).all())
    return {
        "finite": finite,
        "trained": trained if finite else 0.0,
        "apart": apart if finite else 1.0,
    }


def _always(record: RunRecord) -> bool:
    """Tell whether an empty round releases noise."""
    return declared_noise(record.plan) is not None


def _check_replay(evidence: Mapping[str, Any]) -> Check:
    """Require that the adapter is what the releases give."""
    if "skipped" in evidence:
        return Check(name=REPLAY, skipped=text(evidence, "skipped"))
    if "missing" in evidence:
        return Check(name=REPLAY, doubts=(text(evidence, "missing"),))
    trained = number(evidence, "trained", low=0.0)
    apart = number(evidence, "apart", low=0.0)
    test = exact(
        "adapter",
        holds=apart <= REPLAY_TOLERANCE * trained or apart == 0,
        broken="The adapter is not what the recorded releases give.",
    )
    return Check(name=REPLAY, tests=(test,))


def _verdict(failed: Sequence[str], doubts: Sequence[str]) -> Verdict:
    """Return the verdict."""
    if failed:
        return "violation"
    return "inconclusive" if doubts else "consistent"


def _explain(
    verdict: Verdict,
    checks: Sequence[Check],
    failed: Sequence[str],
    doubts: Sequence[str],
    evidence: Evidence,
) -> str:
    """Return the finding in plain words."""
    parts = list(failed)
    if not failed:
        tried = [check.name for check in checks if check.tests]
        parts.append(
            f"{integer(evidence, 'finished', low=0)} finished rounds: nothing in "
            f"{', '.join(tried) or 'what was there'} contradicts the plan."
        )
    parts += doubts
    parts += [fact for check in checks for fact in check.facts]
    parts += [f"{c.name} was not tested: {c.skipped}" for c in checks if c.skipped is not None]
    if text(evidence, "noise_source") == SEEDED:
        parts.append(
            "Noise came from a seeded generator: there is no protection against whoever knows the "
            "seed."
        )
    if verdict == "consistent":
        parts.append("The releases bound what ran; the rehearsal shows only what is installed.")
    return " ".join(parts)
