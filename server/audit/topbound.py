"""What the top of an exposure ranking proves: a certified lower bound on epsilon.

If the released model is (epsilon, delta)-private with respect to replacing one secret by another,
a secret cannot lie at the top of the ranking much more often than the top's share of the space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy import stats as distributions

from server.audit.protocol import Claim, Floats, Terms, Verdict
from server.audit.verdict import Bound, bound_for, judge, stated_delta
from shared import validate
from shared.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class TopProof:
    """The canaries at the top of the ranking, and the epsilon that they certify.

    Args:
        bound: the guarantee that replacing one secret is held against.
        doubt: why the ranks certify nothing; empty if they do.
        top: how many references mark the top.
        hits: included canaries that are likelier than all but ``top - 1`` references.
        share: upper confidence bound on the top's share of the space.
        delta: delta at which the bound is stated.
        epsilon: the lower bound.
        ceiling: the bound that all canaries at the top would have given.
    """

    bound: Bound
    doubt: str
    top: int
    hits: int
    share: float
    delta: float
    epsilon: float
    ceiling: float

    @classmethod
    def of(
        cls, included: Floats, references: Floats, *, repeats: int, doubt: str, terms: Terms
    ) -> TopProof:
        """Count the canaries at the top, and bound epsilon by them.

        Half of alpha is spent on the share of the space that lies above the references, which is
        not known exactly, and half on the number of canaries there.

        Args:
            included: shape ``(n,)``, losses of the planted secrets.
            references: shape ``(|Q|,)``, losses of fresh ones.
            repeats: copies of each secret.
            doubt: why nothing is certified; empty if the assumptions hold.
            terms: claim and alpha.
        """
        bound = _substitution(terms.claim, repeats)
        delta, level = stated_delta(terms.claim, bound), terms.alpha / 2
        top = top_of(references.size)
        share = largest_share(top=top, references=references.size, alpha=level)
        hits = in_top(included, references, top=top)
        epsilon, ceiling = (
            epsilon_from_top(
                hits=found, canaries=included.size, share=share, delta=delta, alpha=level
            )
            for found in (hits, included.size)
        )
        return cls(
            bound=bound,
            doubt=doubt,
            top=top,
            hits=hits,
            share=share,
            delta=delta,
            epsilon=epsilon,
            ceiling=ceiling,
        )

    def judge(self, terms: Terms, *, detected: bool) -> tuple[Verdict, str]:
        """Return the verdict and its reasons."""
        limit = self.bound.epsilon
        violated = not self.doubt and limit is not None and self.epsilon > limit
        verdict, reason = judge(
            terms,
            bound=self.bound,
            ceiling_epsilon=self.ceiling,
            detected=detected,
            violated=violated,
        )
        if self.doubt:
            return "inconclusive", f"No bound on epsilon is certified: {self.doubt} {reason}"
        above = "all references" if self.top == 1 else f"all but {self.top - 1} references"
        told = (
            f"{self.hits} trained-on canaries are likelier than {above}, which certifies an "
            f"epsilon of at least {self.epsilon:.2f}; all of them there would have certified "
            f"{self.ceiling:.2f}."
        )
        note = f" {self.bound.note}" if self.bound.epsilon is not None else ""
        return verdict, f"{told}{note} {reason}"

    def to_dict(self) -> dict[str, object]:
        """Return the derived numbers."""
        return {
            "certified": not self.doubt,
            "top": self.top,
            "hits": self.hits,
            "largest_share": self.share,
            "delta": self.delta,
            "epsilon_lower_bound": self.epsilon,
            "ceiling_epsilon": self.ceiling,
            "epsilon_applicable": self.bound.epsilon,
        }


def top_of(references: int) -> int:
    """Return how many references mark the top of the ranking; fixed before anything is read."""
    return max(1, references // 1024)


def in_top(losses: Floats, references: Floats, *, top: int) -> int:
    """Return how many canaries are strictly likelier than the ``top``-th likeliest reference.

    Raises:
        InvalidValue: unless ``1 <= top <= |Q|``.
    """
    validate.positive_integer(top=top)
    if not top <= references.size:
        msg = f"top={top}, expected at most references={references.size}."
        raise InvalidValue(msg)
    limit = np.sort(references)[top - 1]
    return int(np.count_nonzero(losses < limit))


def largest_share(*, top: int, references: int, alpha: float) -> float:
    """Return an upper confidence bound on the share of the space above a reference.

    The share of all secrets that are strictly likelier than the ``top``-th likeliest of ``|Q|``
    fresh ones is at most Beta(top, |Q| - top + 1) distributed, whatever the model.
    """
    validate.positive_integer(top=top, references=references)
    validate.open_unit(alpha=alpha)
    return float(distributions.beta.ppf(1 - alpha, top, references - top + 1))


def epsilon_from_top(
    *, hits: int, canaries: int, share: float, delta: float, alpha: float
) -> float:
    """Return a lower bound on epsilon from how many secrets made it to the top of the ranking.

    Let every secret be an independent draw from the space, and let replacing one secret by another
    be covered by (epsilon, delta). Given the released model and the secrets before it, a secret
    then lies in any set of share ``s`` with probability at most ``e^epsilon s + eta``, where the
    mean of ``eta`` is at most delta. So the number of hits is at most a Binomial(n, e^epsilon s)
    plus a count of mean ``n delta``, which by Markov exceeds ``j`` with probability at most
    ``n delta / (j + 1)``. This is inverted for every ``j``; with delta 0 only ``j = 0`` matters,
    and the bound is ``ln(p_lo / s)`` with the Clopper-Pearson bound ``p_lo`` on the rate of hits.

    Args:
        hits: secrets in the top set.
        canaries: secrets that were planted.
        share: share of the space that the top set covers, or an upper bound on it.
        delta: delta of the guarantee.
        alpha: chance that the bound is above the truth.

    Returns:
        The bound; 0 where nothing is proven.

    Raises:
        InvalidValue: for counts, a share or a level that cannot be.
    """
    validate.positive_integer(canaries=canaries)
    validate.probability(share=share)
    validate.open_unit(alpha=alpha)
    validate.non_negative(delta=delta)
    if not 0 <= hits <= canaries:
        msg = f"hits={hits}, expected 0 to canaries={canaries}."
        raise InvalidValue(msg)
    spent = np.arange(hits if delta > 0 else min(hits, 1), dtype=np.float64)
    levels = alpha - canaries * delta / (spent + 1)
    spent, levels = spent[levels > 0], levels[levels > 0]
    if not spent.size:
        return 0.0
    rates = special.betaincinv(hits - spent, canaries - hits + spent + 1, levels)
    return max(0.0, math.log(float(rates.max()) / share)) if rates.max() > 0 else 0.0


def _substitution(claim: Claim, repeats: int) -> Bound:
    """Return the guarantee that covers replacing one secret by another in all its copies.

    At client level that is one client with other data. At example level under add-or-remove, each
    copy is one example removed and another added.
    """
    swapped = claim.unit == "example" and claim.neighboring_relation != "replace-one"
    return bound_for(claim, repeats=2 * repeats if swapped else repeats)
