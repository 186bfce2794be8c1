"""Whether the adapter tells what it was trained on from what it was not.

The score of a text is how much likelier the adapter makes it than the base model does: for an
adapter the base is a free and well-matched reference. Members and non-members were split by coins
before training, so they come from one distribution; the base model alone is the check of that.
"""

from __future__ import annotations

import numpy as np

from server.audit import stats
from server.audit.onerun import epsilon_lower_bound
from server.audit.protocol import AuditContext, CanaryTexts, Finding, Floats, read_losses
from server.audit.verdict import bound_for, claim_delta, judge

FALSE_POSITIVE_RATES = (0.01, 0.1)


class Membership:
    """Loss-based membership inference with the base model as reference."""

    name = "membership"
    metric = "auc"
    threat_model = (
        "Someone who can read the probabilities of the released adapter and of the base model, "
        "and who holds a text and asks whether it was trained on."
    )
    needs = ("canaries",)

    def cost(self, canaries: CanaryTexts) -> str:
        """Say how many texts are read."""
        return f"{2 * canaries.count} texts read, with and without the adapter"

    def run(self, context: AuditContext) -> Finding:
        """Score both sides and compare them.

        Raises:
            AuditError: if the scorer answers nonsense.
            TooFewCanaries: if one side is too small.
        """
        canaries = context.canaries
        canaries.require()
        sides = (canaries.included, canaries.held_out)
        tuned = [read_losses(context.scorer, texts, adapter=True) for texts in sides]
        base = [read_losses(context.scorer, texts, adapter=False) for texts in sides]
        gain_in, gain_out = (alone - tuned_ for alone, tuned_ in zip(base, tuned, strict=True))
        blind = (-base[0], -base[1])
        value = stats.auc(gain_in, gain_out)
        interval = stats.auc_interval(gain_in, gain_out, alpha=context.alpha)
        blind_interval = stats.auc_interval(*blind, alpha=context.alpha)
        m = canaries.count
        reach = epsilon_lower_bound(
            m=m, guesses=m, correct=m, delta=claim_delta(context), alpha=context.alpha
        )
        verdict, caught, reason = judge(
            context, audit=self.name, ceiling_epsilon=reach, detected=interval[0] > 0.5
        )
        allowed = _allowed(context)
        if not blind_interval[0] <= 0.5 <= blind_interval[1]:
            verdict = "inconclusive" if verdict == "consistent" else verdict
            reason = f"{_DIFFERENT} {reason}"
        told = _explain(value, interval, stats.auc(*blind), allowed, 100 * (1 - context.alpha))
        return Finding(
            audit=self.name,
            verdict=verdict,
            metric=self.metric,
            value=value,
            interval=interval,
            ceiling=1.0,
            baseline=stats.auc(*blind),
            detected=interval[0] > 0.5,
            n_in=gain_in.size,
            n_out=gain_out.size,
            alpha=context.alpha,
            positive_control=caught,
            explanation=f"{told} {reason}",
            details={
                "auc_loss": stats.auc(-tuned[0], -tuned[1]),
                "auc_allowed": allowed,
                "baseline_interval": list(blind_interval),
                "ceiling_epsilon": reach,
                "tpr_at_fpr": [
                    stats.tpr_at_fpr(gain_in, gain_out, fpr=fpr, alpha=context.alpha).to_dict()
                    for fpr in FALSE_POSITIVE_RATES
                ],
                "score": "loss of the base model minus loss of the adapter, nats per text",
                "scores_in": _rounded(gain_in),
                "scores_out": _rounded(gain_out),
            },
        )


_DIFFERENT = (
    "The base model alone already tells the two sides apart, so they differ for another reason "
    "than training."
)


def _allowed(context: AuditContext) -> float | None:
    """Return the largest AUC that the claim allows anyone, if there is a claim that applies."""
    bound = bound_for(context)
    if bound.epsilon is None or bound.delta is None:
        return None
    return stats.largest_auc(bound.epsilon, bound.delta)


def _rounded(scores: Floats) -> list[float]:
    """Return scores as JSON numbers, to a micronat."""
    return [round(float(score), 6) for score in np.asarray(scores)]


def _explain(
    value: float,
    interval: tuple[float, float],
    baseline: float,
    allowed: float | None,
    level: float,
) -> str:
    """Return the finding in plain words."""
    limit = (
        ""
        if allowed is None
        else f" The epsilon that applies allows an attacker {_share(allowed)}."
    )
    return (
        f"Given one planted text and one that was kept out, the attacker names the planted one "
        f"{100 * value:.1f} % of the time ({level:.0f} % interval {100 * interval[0]:.1f} to "
        f"{100 * interval[1]:.1f}); guessing gives 50 %, the base model alone "
        f"{100 * baseline:.1f} %.{limit}"
    )


def _share(allowed: float) -> str:
    """Return a percentage that does not round up to certainty."""
    return "more than 99.9 %" if allowed > 0.999 else f"up to {100 * allowed:.1f} %"
