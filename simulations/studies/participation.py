"""In which rounds each client of a simulation took part, worked out again from the run's seed.

Only where the coins of the cohorts are seeded: in a real run nobody can do this, and the privacy
of the sampling rests on that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from server.cohort import cohort_source, sample_cohort
from shared.errors import AuditError
from shared.privacy.noise import SEEDED

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.privacy.plan import PrivacyPlan


def rounds_by_client(
    config: RunConfig,
    plan: PrivacyPlan,
    *,
    population: int,
    metrics: Sequence[Mapping[str, Any]],
) -> dict[int, tuple[int, ...]]:
    """Return the rounds of each client, ascending; a client without any is left out.

    Args:
        config: the scenario.
        plan: the frozen plan.
        population: number of clients.
        metrics: the lines of ``metrics.jsonl``; rounds that were aborted do not count, and the
            size of every cohort is checked against them.

    Raises:
        AuditError: if cohorts were not drawn from the seed (entropy of the operating system,
            correlated noise, bounded participation, a simulated clock), or are not those that
            the run had.
    """
    bounded = plan.mode == "example" and plan.max_participations is not None
    seeded = plan.mode == "none" or plan.noise_source == SEEDED
    timed = config.clock.used
    if plan.correlated is not None or bounded or timed or not seeded:
        msg = "The cohorts of this run cannot be worked out from its seed."
        raise AuditError(msg, hint='Use mode none, or privacy.noise_source="seeded-simulation".')
    cohort = config.asked_cohort
    probability = 1.0 if cohort is None else min(1.0, cohort / population)
    found: dict[int, list[int]] = defaultdict(list)
    for record in metrics:
        number = int(record["round"])
        source = cohort_source(seed=config.run.seed, server_round=number, kind=SEEDED)
        chosen = sample_cohort(population, probability, source)
        if len(chosen) != int(record["cohort"]):
            msg = f"round={number}: {len(chosen)} clients worked out, {record['cohort']} recorded."
            raise AuditError(msg, hint="The run was made by another version, or was changed.")
        if not record.get("aborted"):
            for client in chosen:
                found[client].append(number)
    return {client: tuple(rounds) for client, rounds in found.items()}
