"""How far up the ranking of possible secrets a planted secret has moved.

Carlini et al., "The Secret Sharer" (2019). A canary is ranked among fresh secrets of the same
generator. If the model knows nothing about it, its rank is uniform, and it gains ``e`` bits or more
with probability at most ``2^-e``; the mean under chance is about 1.44 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from server.audit import stats
from server.audit.onerun import epsilon_lower_bound
from server.audit.protocol import AuditContext, CanaryTexts, Finding, Floats, read_losses
from server.audit.verdict import claim_delta, judge
from shared.errors import InvalidValue, TooFewCanaries

MIN_REFERENCES = 16
"""Fewest fresh secrets to rank against; 16 allow at most 4.1 bits."""

CHANCE_BITS = 1 / math.log(2)
"""Mean exposure of a secret that the model never saw, for many references."""

_TESTS = 2


class Exposure:
    """Included canaries against held-out ones, both ranked among the same fresh secrets."""

    name = "exposure"
    metric = "mean_exposure_bits"
    threat_model = (
        "Someone who can read the probabilities of the released adapter and of the base model, "
        "and who knows the form of a secret but not its content."
    )
    needs = ("canaries", "fresh references of the same generator")

    def cost(self, canaries: CanaryTexts) -> str:
        """Say how many texts are read."""
        texts = canaries.count + len(canaries.references)
        return f"{2 * texts} texts read, with and without the adapter"

    def run(self, context: AuditContext) -> Finding:
        """Rank canaries by loss and by loss relative to the base, and compare the two sides.

        Raises:
            AuditError: if the scorer answers nonsense.
            TooFewCanaries: if one side or the references are too few.
        """
        canaries = context.canaries
        canaries.require()
        _require_references(canaries)
        sides = (canaries.included, canaries.held_out, canaries.references)
        tuned = [read_losses(context.scorer, texts, adapter=True) for texts in sides]
        base = [read_losses(context.scorer, texts, adapter=False) for texts in sides]
        gained = [with_adapter - alone for with_adapter, alone in zip(tuned, base, strict=True)]
        referenced = _compare(gained, context.seed)
        plain = _compare(tuned, context.seed + 1)
        null = _compare(base, context.seed + 2)
        # Two scores were tried, so the smaller p-value is doubled.
        p_value = min(1.0, _TESTS * min(referenced.p_value, plain.p_value))
        ceiling = math.log2(len(canaries.references) + 1)
        reach = min(_perfect(context), ceiling * math.log(2))
        detected = p_value < context.alpha
        verdict, caught, reason = judge(
            context, audit=self.name, ceiling_epsilon=reach, detected=detected
        )
        told = _explain(referenced, null, ceiling, p_value, detected=detected)
        return Finding(
            audit=self.name,
            verdict=verdict,
            metric=self.metric,
            value=referenced.mean_in,
            interval=stats.bootstrap_mean(
                referenced.included, seed=context.seed, alpha=context.alpha
            ),
            ceiling=ceiling,
            baseline=null.mean_in,
            detected=detected,
            n_in=len(canaries.included),
            n_out=len(canaries.held_out),
            alpha=context.alpha,
            positive_control=caught,
            explanation=f"{told} {reason}",
            details={
                "p_value": p_value,
                "tests": _TESTS,
                "chance_bits": CHANCE_BITS,
                "references": len(canaries.references),
                "ceiling_epsilon": reach,
                "base_referenced": referenced.to_dict(),
                "loss": plain.to_dict(),
                "base_model": null.to_dict(),
            },
        )


def exposure(losses: Floats, references: Floats, *, space: int | None = None) -> Floats:
    """Return the exposure of each canary, in bits, by sampling.

    The rank of a canary is one more than the number of references that the model finds at least
    as likely: ties count against the canary. By default the canary counts itself among the
    candidates, so that ``2^-exposure = rank / (|Q| + 1)`` is an exact p-value and the ceiling is
    ``log2(|Q| + 1)``.

    Args:
        losses: shape ``(n,)``; lower is likelier.
        references: shape ``(|Q|,)``, losses of fresh secrets.
        space: number of candidates; ``|Q|`` gives the convention of the Secret Sharer code.

    Returns:
        Shape ``(n,)``.

    Raises:
        InvalidValue: without references, or if ``space`` is below their number.
    """
    candidates = references.size + 1 if space is None else space
    if not (references.size >= 1 and candidates >= references.size):
        msg = f"references={references.size}, space={candidates}, expected 1 <= references <= space"
        raise InvalidValue(msg)
    rank = 1 + np.searchsorted(np.sort(references), losses, side="right")
    return np.asarray(np.log2(candidates / rank), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The exposure of both sides under one score, in bits, and the test between them."""

    included: Floats
    held_out: Floats
    p_value: float

    @property
    def mean_in(self) -> float:
        """Mean exposure of the included canaries."""
        return float(self.included.mean())

    @property
    def mean_out(self) -> float:
        """Mean exposure of the held-out canaries."""
        return float(self.held_out.mean())

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, with the bits of every canary."""
        return {
            "mean_included": self.mean_in,
            "mean_held_out": self.mean_out,
            "max_included": float(self.included.max()),
            "p_value": self.p_value,
            "included": [round(float(bits), 6) for bits in self.included],
            "held_out": [round(float(bits), 6) for bits in self.held_out],
        }


def _compare(losses: list[Floats], seed: int) -> Comparison:
    """Compare the exposure of both sides, given losses of included, held-out, references."""
    included, held_out = (exposure(side, losses[2]) for side in losses[:2])
    p_value = stats.permutation_p_value(included, held_out, seed=seed)
    return Comparison(included=included, held_out=held_out, p_value=p_value)


def _perfect(context: AuditContext) -> float:
    """Return the epsilon that a perfect attacker could certify with these canaries."""
    m = context.canaries.count
    return epsilon_lower_bound(
        m=m, guesses=m, correct=m, delta=claim_delta(context), alpha=context.alpha
    )


def _require_references(canaries: CanaryTexts) -> None:
    """Refuse to rank among too few secrets."""
    found = len(canaries.references)
    if not found >= MIN_REFERENCES:
        msg = f"references={found}, expected at least {MIN_REFERENCES}."
        raise TooFewCanaries(msg, hint="Raise audit.references.")


def _explain(
    ranked: Comparison, null: Comparison, ceiling: float, p_value: float, *, detected: bool
) -> str:
    """Return the finding in plain words."""
    found = "rank higher than" if detected else "cannot be told from"
    return (
        f"Secrets that were trained on reach {ranked.mean_in:.2f} bits of exposure on average, "
        f"secrets that were kept out {ranked.mean_out:.2f}; chance is about {CHANCE_BITS:.2f}, "
        f"the base model alone gives {null.mean_in:.2f}, and this test can show at most "
        f"{ceiling:.2f}. The trained-on secrets {found} the others (p = {p_value:.2g}, corrected "
        "for two scores)."
    )
