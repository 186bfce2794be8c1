"""What a run that stopped by itself may claim.

Two statements hold, and are kept apart:

* **The bound.** A run that always goes on and hides what comes after its stop is post-processing of
  all planned rounds, so the epsilon of all planned rounds holds at delta, wherever it stopped. It
  is what such a run claims.
* **The rounds that ran.** For each t, everything that was released in the first t rounds is
  (epsilon_t, delta)-DP, and outputs of a run that stopped after t rounds are such outputs. Which t
  it was depends on the releases, so one must hold for each of the m rounds after which the run
  could have ended: composed at delta / m, the figure of the rounds that ran holds with delta in all
  (a union bound over the m disjoint sets of outputs). The ledger is charged the rounds that ran:
  its cap is decided by a filter of fixed order where plans mix, which composes adaptively
  (Feldman and Zrnic 2021), so what is left of the cap may be spent by a later run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from server.budget import RunBudget
from server.stopping import figure_of
from shared.config import RunConfig
from shared.privacy.accountant import epsilon_of

if TYPE_CHECKING:
    from shared.privacy.plan import PrivacyPlan


def stopped_early(config: RunConfig, *, rounds: int, status: str) -> bool:
    """Tell whether a run ended by its own decision."""
    return config.stopping.used and status == "completed" and rounds < config.run.rounds


def possible_ends(config: RunConfig, plan: PrivacyPlan) -> int:
    """Return after how many different rounds a run can end, the last planned one included.

    Args:
        config: the scenario.
        plan: its plan.
    """
    stopping = config.stopping
    if plan.vote is not None:
        looks = plan.vote.among(plan.rounds)
    elif stopping.on == "public":
        looks = (plan.rounds - 1) // stopping.every
    else:
        looks = plan.rounds - 1
    return 1 + max(0, looks - stopping.patience + 1)


def stop_note(
    config: RunConfig, plan: PrivacyPlan, budget: RunBudget, *, rounds: int, status: str
) -> dict[str, Any] | None:
    """Say what a stop means for the guarantee; None where a run cannot stop by itself.

    Args:
        config: the scenario.
        plan: its plan.
        budget: the run's view of the ledger.
        rounds: finished rounds.
        status: of the run.

    Returns:
        What was looked at, whether the run stopped, and in a private mode ``epsilon_bound`` (all
        planned rounds), ``epsilon_rounds_run`` (what the ledger composes, at delta) and
        ``epsilon_at_stop`` (the rounds that ran, at ``delta / possible_ends``).
    """
    if not config.stopping.used:
        return None
    stopped = stopped_early(config, rounds=rounds, status=status)
    note: dict[str, Any] = {"on": figure_of(config), "stopped": stopped, "rounds": rounds}
    delta, relation = plan.delta, plan.neighboring_relation
    if delta is None or relation is None:
        return note
    ends = possible_ends(config, plan)
    ran = epsilon_of(plan.events_after(rounds), delta=delta / ends, relation=relation)
    return {
        **note,
        "delta": delta,
        "possible_ends": ends,
        "epsilon_bound": budget.bound(),
        "epsilon_rounds_run": budget.spent().epsilon,
        "epsilon_at_stop": ran if math.isfinite(ran) else None,
    }


def stop_warning(note: dict[str, Any] | None) -> list[str]:
    """Return what a reader of the figures must know about a run that stopped by itself."""
    if note is None or not note["stopped"] or "epsilon_bound" not in note:
        return []
    text = (
        f"The run stopped by itself after {note['rounds']} rounds. The epsilon that it claims, "
        f"{note['epsilon_bound']:.4g} at delta {note['delta']:.3g}, is that of all planned rounds: "
        "it holds wherever the run stopped. The rounds that ran compose to "
        f"{note['epsilon_rounds_run']:.4g} in the ledger; as a statement that allows for each of "
        f"{note['possible_ends']} possible ends, {note['epsilon_at_stop']:.4g} at the same delta."
    )
    return [text]
