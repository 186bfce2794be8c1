"""A certified lower bound on epsilon from one training run.

The auditor guesses, by the score of each canary, which side of its coin came up;
:mod:`server.audit.guessing` says what the right guesses prove. The number of guesses is fixed
before anything is scored: taking the best of several counts would raise false alarms well above
alpha. Each kind of canary is a test of its own, held to its share of alpha.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.audit import evidence as read
from server.audit import fdp, gdp, stats
from server.audit.canaries import MIN_CANARIES, PlantedCanaries
from server.audit.canaryscores import ScoredKind, measure_kind, read_kinds, read_scattered
from server.audit.guessing import correct_guesses, epsilon_lower_bound, guesses_per_side
from server.audit.protocol import AuditContext, Evidence, Finding, Terms, Verdict
from server.audit.target import Target
from server.audit.verdict import Bound, bound_for, judge, stated_delta
from shared.errors import TooFewCanaries

PARAMETRIC_DELTA = 1e-5
"""Delta of the parametric bounds where nothing that is claimed names one."""

_PERMUTATIONS = 999
"""Enough for a p-value that is only shown beside the bound."""


class OneRun:
    """The auditor knows every canary and the two models, and guesses who was trained on."""

    name = "one-run"
    metric = "epsilon_lower_bound"
    threat_model = (
        "Someone who holds the released adapter and the base model and knows the canaries, but "
        "not the coins."
    )
    needs = (
        "a model that gives losses",
        "canaries included by independent fair coins",
        "one canary per unit",
    )

    def cost(self, context: AuditContext) -> str:
        """Say how many texts are read."""
        planted = context.find(PlantedCanaries)
        count = 0 if planted is None else sum(texts.count for texts in planted.kinds)
        return f"{2 * count} texts read, with and without the adapter (shared with other audits)"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Score the canaries: by how many nats the adapter made each likelier.

        Raises:
            AuditError: if there is no model, if there are no canaries, or if a loss is not finite.
            TooFewCanaries: if no kind has enough of them on both sides, unless the planting is
                broken, which is then the finding.
        """
        target, planted = context.need(Target), context.need(PlantedCanaries)
        enough = [
            texts
            for texts in planted.kinds
            if min(len(texts.included), len(texts.held_out)) >= MIN_CANARIES
        ]
        scattered = any(texts.clients_per_canary > 1 for texts in planted.kinds)
        if not (enough or scattered):
            for texts in planted.kinds:
                texts.require()
            msg = "kinds=0 of canaries, expected at least one."
            raise TooFewCanaries(msg, hint="Plant canaries before training: audit.canaries.")
        return {
            "score": "minus the loss under the adapter, nats per canary",
            "kinds": [measure_kind(target, texts) for texts in enough],
            "left_out": [texts.to_dict() for texts in planted.kinds if texts not in enough],
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Guess the coins from the scores, and certify what the guesses prove.

        Raises:
            AuditError: if the evidence is malformed.
        """
        kinds, tests = read_kinds(evidence)
        judged = [_judge_kind(kind, terms, terms.alpha / tests) for kind in kinds]
        certified = [one for one in judged if not one.doubt]
        value = max((one.value for one in certified), default=None)
        ceiling = max((one.ceiling for one in certified), default=None)
        detected = None if value is None else value > 0
        scattered = read_scattered(evidence)
        verdict, reason = _broken(scattered) if scattered else _verdict(judged, terms)
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="conformance" if scattered else "certified",
            metric=self.metric,
            value=value,
            interval=None,
            ceiling=ceiling,
            baseline=0.0,
            detected=detected,
            n_in=sum(kind.included.size for kind in kinds),
            n_out=sum(kind.held_out.size for kind in kinds),
            alpha=terms.alpha,
            positive_control=None if terms.control is None else terms.control.caught,
            explanation=_explain(judged, reason),
            evidence={
                **{key: entry for key, entry in evidence.items() if key != read.DERIVED},
                read.DERIVED: {
                    "tests": tests,
                    "alpha_each": terms.alpha / tests,
                    "guess_rule": "the highest and the lowest scores, so many of each, fixed by m",
                    "detected_if": "a certified lower bound lies above zero",
                    "kinds": [one.derived for one in judged],
                },
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What the guesses about one kind prove."""

    name: str
    value: float
    ceiling: float
    bound: Bound
    doubt: str
    told: str
    derived: Mapping[str, Any]

    @property
    def violated(self) -> bool:
        """Whether a certified bound lies above the epsilon that covers these canaries."""
        return not self.doubt and self.bound.epsilon is not None and self.value > self.bound.epsilon

    @property
    def reach(self) -> float:
        """Share of the applicable epsilon that could have been certified."""
        if self.bound.epsilon is None:
            return -1.0
        return self.ceiling / max(self.bound.epsilon, 1e-12)


def _judge_kind(kind: ScoredKind, terms: Terms, alpha: float) -> _Judged:
    """Guess the coins of one kind and certify what the guesses prove."""
    per_side = guesses_per_side(kind.m)
    guesses = 2 * per_side
    correct = correct_guesses(kind.included, kind.held_out, per_side=per_side, seed=terms.seed)
    bound = bound_for(terms.claim, repeats=kind.repeats)
    delta = stated_delta(terms.claim, bound)

    def certify(tried: int, right: int) -> float:
        return _down(
            epsilon_lower_bound(m=kind.m, guesses=tried, correct=right, delta=delta, alpha=alpha)
        )

    value, ceiling = certify(guesses, correct), certify(guesses, guesses)
    doubt = kind.doubt(terms.claim)
    derived = {
        "kind": kind.name,
        "m": kind.m,
        "guesses": guesses,
        "correct": correct,
        "delta": delta,
        "epsilon_lower_bound": None if doubt else value,
        "ceiling": ceiling,
        "perfect_attacker": certify(kind.m, kind.m),
        "epsilon_applicable": bound.epsilon,
        "adjacency": bound.note,
        "not_certified": doubt,
        "permutation_p_value": stats.permutation_p_value(
            kind.included, kind.held_out, seed=terms.seed, permutations=_PERMUTATIONS
        ),
        "parametric": _parametric(kind, guesses, correct, delta, alpha),
    }
    return _Judged(
        name=kind.name,
        value=value,
        ceiling=ceiling,
        bound=bound,
        doubt=doubt,
        told=_told(kind.name, guesses, correct, value, ceiling, certified=not doubt),
        derived=derived,
    )


def _parametric(
    kind: ScoredKind, guesses: int, correct: int, delta: float, alpha: float
) -> dict[str, Any]:
    """Return bounds that assume a Gaussian trade-off curve, for information."""
    shown = delta if delta > 0 else PARAMETRIC_DELTA
    counts = gdp.sweep(kind.included, kind.held_out)
    by_guesses = fdp.mu_lower_bound(m=kind.m, guesses=guesses, correct=correct, alpha=alpha)
    by_rates = gdp.mu_lower_bound(counts, alpha=alpha)
    by_ratio = gdp.ratio_lower_bound(counts, delta=shown, alpha=alpha)
    return {
        "delta": shown,
        "f_dp_one_run": {
            "assumes": "a Gaussian trade-off curve",
            "mu": _down(by_guesses),
            "epsilon": _down(gdp.epsilon(by_guesses, shown)),
        },
        "gdp_thresholds": {
            "assumes": "a Gaussian trade-off curve and independent scores",
            "mu": _down(by_rates),
            "epsilon": _down(gdp.epsilon(by_rates, shown)),
        },
        "rate_ratio": {"assumes": "independent scores", "epsilon": _down(by_ratio)},
    }


def _broken(kinds: Sequence[str]) -> tuple[Verdict, str]:
    """Return the verdict where a canary sits in several clients."""
    return "violation", (
        f"The harness put canaries into more than one client ({', '.join(kinds)}). Whatever is "
        "claimed is claimed for one client or one example, so these canaries are not covered by "
        "it and nothing about them was certified: the plan was not carried out as declared, which "
        "is a fault of the harness and says nothing about the noise."
    )


def _verdict(judged: Sequence[_Judged], terms: Terms) -> tuple[Verdict, str]:
    """Return the verdict over all kinds, with its reasons."""
    doubts = list(dict.fromkeys(one.doubt for one in judged if one.doubt))
    certified = [one for one in judged if not one.doubt]
    if not certified:
        return "inconclusive", " ".join([*doubts, "So no bound is certified."])
    violating = [one for one in certified if one.violated]
    # The kind that could have said most about the claim decides what its silence is worth.
    best = max(violating or certified, key=lambda one: one.reach)
    verdict, reason = judge(
        terms,
        bound=best.bound,
        ceiling_epsilon=best.ceiling,
        detected=any(one.value > 0 for one in certified),
        violated=bool(violating),
    )
    named = [f"That is kind {' and '.join(one.name for one in violating)}."] if violating else []
    return verdict, " ".join([*doubts, best.bound.note, reason, *named])


def _explain(judged: Sequence[_Judged], reason: str) -> str:
    """Return the finding in plain words."""
    told = [one.told for one in judged]
    if len(judged) > 1:
        told.append("The bounds are corrected for looking at several kinds.")
    return " ".join([*told, reason])


def _told(
    kind: str, guesses: int, correct: int, value: float, ceiling: float, *, certified: bool
) -> str:
    """Return in plain words what the guesses about one kind prove."""
    said = (
        f"{correct} of {guesses} guesses about which canaries of kind {kind} were trained on were "
        "right; chance is half."
    )
    if not certified:
        return said
    return (
        f"{said} That certifies an epsilon of at least {value:.2f}, where all guesses right would "
        f"have certified {ceiling:.2f}."
    )


def _down(bound: float) -> float:
    """Round a lower bound down to six digits, so that it stays one and compares everywhere."""
    return math.floor(bound * 1e6) / 1e6
