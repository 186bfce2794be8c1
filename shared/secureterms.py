"""The terms of a round's secure aggregation, from the plan; server and clients make them alike."""

from __future__ import annotations

from shared.errors import ConflictingSettings
from shared.privacy.plan import PrivacyPlan
from shared.privacy.secagg.terms import SecAggTerms
from shared.wire import PhaseCall


def round_terms(
    plan: PrivacyPlan, call: PhaseCall, *, session: bytes, dimension: int
) -> SecAggTerms:
    """Return the terms of one attempt at a round.

    Args:
        plan: the party's own plan; what the server says about fractions does not count.
        call: which run, round, scenario and plan.
        session: 32 bytes that the server drew for this attempt.
        dimension: number of trained parameters.

    Raises:
        ConflictingSettings: if the plan's mode is not client-distributed.
        SchemaMismatch: if the nonce is not 32 bytes.
    """
    if plan.distributed is None:
        msg = f"mode={plan.mode!r} has no secure aggregation."
        raise ConflictingSettings(msg)
    return SecAggTerms(
        run_id=call.run_id,
        server_round=call.server_round,
        session=session,
        config_digest=call.config_digest,
        plan_digest=call.plan_digest,
        honest_fraction=plan.distributed.honest_fraction,
        survivor_fraction=plan.distributed.survivor_fraction,
        min_cohort=plan.distributed.min_cohort,
        dimension=dimension,
    )
