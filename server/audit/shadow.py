"""LiRA: membership by adapters that were trained with and without each text.

An attacker who can train adapters like the audited one learns how the loss of a text looks when it
was trained on, and when it was not, and asks under which of the two the audited adapter's loss is
likelier (Carlini et al., "Membership Inference Attacks From First Principles", 2022). Training
itself stands behind an interface (:mod:`server.audit.shadowscores`); here scores are judged.

With few shadow adapters a spread of its own for each text would be noise, so one spread is shared
by all texts of a set on a side, as the authors advise below 64 shadows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from server.audit import membershipwords as words
from server.audit import stats
from server.audit.canaries import MIN_CANARIES, CanaryTexts, PlantedCanaries
from server.audit.evidence import DERIVED, integer, mapping, mappings, numbers, stored
from server.audit.membership import NATURAL, TextSplit
from server.audit.membershipreads import Sides, measure_sides
from server.audit.membershiptests import (
    FALSE_POSITIVE_RATES,
    Pair,
    ScoredSet,
    Tested,
    preferred,
    run_tests,
)
from server.audit.permutation import permutation_p_values
from server.audit.protocol import AuditContext, Control, Evidence, Finding, Floats, Terms, Verdict
from server.audit.shadowscores import Mask, Shadows, confidences, halves_of, lira_scores
from server.audit.target import Target
from server.audit.verdict import bound_for, judge
from shared.errors import AuditError, TooFewCanaries
from shared.seeding import data_rng, derive_seed

SHADOWS = {"smoke": 4, "release": 4, "extended": 8}
"""Shadow adapters by effort, an even number: each half has its complement."""

MOST = {"smoke": 50, "release": 100, "extended": 200}
"""Most texts of a side, by effort."""

SCORES = ("online", "offline")
"""The scores; the first one, fixed beforehand, gives the value."""

CONTROL = "one more shadow adapter, audited as if it were this one"


class ShadowMembership:
    """Likelihood-ratio attack with shadow adapters, online and offline."""

    name = "shadow-membership"
    metric = "auc"
    threat_model = (
        "Someone who can read the probabilities of the released adapter, has the base model and "
        "texts like the training data, and can train adapters of the same shape."
    )
    needs = (
        "a model to read with, and to train shadow adapters on",
        "planted canaries, or members and non-members split before training",
    )

    def cost(self, context: AuditContext) -> str:
        """Say how many adapters are trained on how many texts."""
        sides = [_cut(one, context) for one in _found(context)]
        texts = sum(len(one.members) + len(one.nonmembers) for one in sides)
        count = SHADOWS[context.effort] + 1
        return (
            f"{count} adapters trained on about {texts // 2} texts each, with which {texts} texts "
            "are read: some minutes for a small model, hours for a large one"
        )

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Train shadow adapters on random halves of all texts, and score the texts.

        Raises:
            MissingArtefact: without a model, without a way to train, or without any texts.
            TooFewCanaries: if no set has enough texts on either side.
            AuditError: if a model answers nonsense.
        """
        target, shadows = context.need(Target), context.need(Shadows)
        found = _found(context)
        if not found:
            context.need(PlantedCanaries)
        least = [s for s in found if min(len(s.members), len(s.nonmembers)) >= MIN_CANARIES]
        if not least:
            msg = f"expected at least {MIN_CANARIES} texts on each side of one set."
            raise TooFewCanaries(msg, hint="Raise audit.canaries, or give longer files.")
        sets = [_cut(one, context) for one in least]
        texts = [p for one in sets for p in (*one.members, *one.nonmembers)]
        copies = [one.repeats for one in sets for _ in (*one.members, *one.nonmembers)]
        count = SHADOWS[context.effort]
        sizes = [len(one.members) + len(one.nonmembers) for one in sets]
        halves = np.array(halves_of(sizes, count, context.seed))
        rows = []
        for number, half in enumerate(halves):
            chosen = [texts[i] for i in np.flatnonzero(half) for _ in range(copies[i])]
            rows.append(confidences(shadows.read(chosen, texts, number=number), len(texts)))
        known = np.array(rows)
        own = confidences(target.read(texts, adapter=True), len(texts))
        entries, start = [], 0
        for one, size in zip(sets, sizes, strict=True):
            cut = np.s_[..., start : start + size]
            scored = _scored(own[cut], known[cut], halves[cut], members=len(one.members))
            entries.append({**measure_sides(one, target, context.seed), **scored})
            start += size
        return {"shadows": count, "recipe": shadows.recipe, "sets": entries}

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Test both scores on every set, and judge.

        Raises:
            AuditError: if the evidence is malformed.
        """
        entries = mappings(evidence, "sets")
        tested = run_tests([ScoredSet.read(entry) for entry in entries], terms) if entries else []
        if not tested:
            msg = "evidence 'sets' is empty, expected at least one set of texts."
            raise AuditError(msg)
        results = _results(entries, tested, terms)
        trusted = [one for one in results if not one.tested.differs]
        first = preferred([one.tested for one in trusted or results])
        main = next(one for one in results if one.tested is first)
        found = any(p < terms.alpha for one in trusted for p in one.p_values.values())
        count = integer(evidence, "shadows", low=4)
        verdict, reason = _verdict(main, results, terms, detected=found)
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="descriptive",
            metric=self.metric,
            value=main.auc("online"),
            interval=stats.auc_interval(*main.pairs["online"], alpha=terms.alpha),
            ceiling=1.0,
            baseline=main.tested.blind_auc,
            detected=found if trusted else None,
            n_in=main.pairs["online"][0].size,
            n_out=main.pairs["online"][1].size,
            alpha=terms.alpha,
            positive_control=main.caught(terms.alpha),
            explanation=f"{_explain(main, results, count, terms)} {reason}",
            evidence={
                **{key: value for key, value in evidence.items() if key != DERIVED},
                DERIVED: {
                    "primary_set": main.tested.scored.name,
                    "primary_score": SCORES[0],
                    "correction": "holm",
                    "sets": {one.tested.scored.name: one.to_dict(terms) for one in results},
                },
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What follows about one set.

    Attributes:
        tested: the same set without shadows: blind attacks, the reference score, what is allowed.
        pairs: members' and non-members' scores, by score.
        p_values: corrected over sets and scores.
        control: scores of the control's members and non-members.
        control_p_value: corrected over sets.
        sets: number of sets.
    """

    tested: Tested
    pairs: Mapping[str, Pair]
    p_values: Mapping[str, float]
    control: Pair
    control_p_value: float
    sets: int

    def auc(self, score: str) -> float:
        """AUC of one score."""
        return stats.auc(*self.pairs[score])

    def caught(self, alpha: float) -> bool:
        """Whether the control's members were told from its non-members."""
        return self.control_p_value < alpha

    def above(self, alpha: float) -> bool:
        """Whether the attack does better than the claim allows, as far as an interval can say."""
        allowed = self.tested.allowed
        low, _ = stats.auc_interval(*self.pairs["online"], alpha=alpha / self.sets)
        return allowed is not None and low > allowed

    def to_dict(self, terms: Terms) -> dict[str, Any]:
        """Return what was worked out, for the report."""
        scores = {
            name: {
                "auc": stats.auc(*pair),
                "interval": list(stats.auc_interval(*pair, alpha=terms.alpha)),
                "p_value": self.p_values[name],
                "detected": self.p_values[name] < terms.alpha,
                "tpr_at_fpr": [
                    stats.tpr_at_fpr(*pair, fpr=fpr, alpha=terms.alpha).to_dict()
                    for fpr in FALSE_POSITIVE_RATES
                ],
            }
            for name, pair in self.pairs.items()
        }
        return {
            "scores": scores,
            "reference_auc": self.tested.auc,
            "auc_allowed": self.tested.allowed,
            "differs_without_training": self.tested.differs,
            "control_auc": stats.auc(*self.control),
            "control_p_value": self.control_p_value,
        }


def _results(
    entries: Sequence[Mapping[str, Any]], tested: Sequence[Tested], terms: Terms
) -> list[_Result]:
    """Read and test the scores of every set.

    Raises:
        AuditError: if they are malformed.
    """
    pairs = {
        (place, score): _read_pair(mapping(entry, "shadow"), score)
        for place, entry in enumerate(entries)
        for score in SCORES
    }
    controls = {place: _read_pair(entry, "control") for place, entry in enumerate(entries)}
    seed = derive_seed(terms.seed, "shadow-membership")
    raw = permutation_p_values(pairs, seed=seed)
    corrected = dict(zip(raw, stats.holm(list(raw.values())).tolist(), strict=True))
    known = permutation_p_values(controls, seed=seed)
    control = dict(zip(known, stats.holm(list(known.values())).tolist(), strict=True))
    return [
        _Result(
            tested=one,
            pairs={score: pairs[place, score] for score in SCORES},
            p_values={score: corrected[place, score] for score in SCORES},
            control=controls[place],
            control_p_value=control[place],
            sets=len(entries),
        )
        for place, one in enumerate(tested)
    ]


def _verdict(
    main: _Result, results: Sequence[_Result], terms: Terms, *, detected: bool
) -> tuple[Verdict, str]:
    """Return the verdict and its reasons; never a violation, as nothing here is certified."""
    bound = bound_for(terms.claim, repeats=main.tested.scored.repeats)
    control = Control(source=CONTROL, detected=main.caught(terms.alpha))
    verdict, reason = judge(
        replace(terms, control=control), bound=bound, ceiling_epsilon=None, detected=detected
    )
    doubts = [words.differs(one.tested) for one in results if one.tested.differs]
    doubts += [
        f"On the {one.tested.scored.name} texts even the lower end of the corrected interval lies "
        "above what the epsilon that applies allows; it is asymptotic and certifies nothing, and "
        "whether the claim is wrong is for the one-run audit to say."
        for one in results
        if one.above(terms.alpha) and not one.tested.differs
    ]
    if not doubts:
        return verdict, reason
    return "inconclusive", " ".join(doubts if verdict == "consistent" else [*doubts, reason])


def _explain(main: _Result, results: Sequence[_Result], count: int, terms: Terms) -> str:
    """Return the finding in plain words, without its verdict."""
    low, high = stats.auc_interval(*main.pairs["online"], alpha=terms.alpha)
    inside, outside = main.pairs["online"]
    rest = "; ".join(
        f"{one.tested.scored.name} {100 * one.auc('online'):.1f} % online, "
        f"{100 * one.auc('offline'):.1f} % offline"
        for one in results
    )
    return (
        f"With {count} shadow adapters an attacker names the one of two texts that was trained on "
        f"({main.tested.scored.source}, {inside.size} and {outside.size}) "
        f"{100 * main.auc('online'):.1f} % of the time ({100 * low:.1f} to {100 * high:.1f}); "
        f"guessing gives 50 %, comparing with the base model {100 * main.tested.auc:.1f} %. By "
        f"set: {rest}. On {CONTROL}, the attack reached {100 * stats.auc(*main.control):.1f} %. "
        "Shadow adapters are trained on pooled texts in plain steps, not by federated rounds, so "
        "they imitate the audited adapter only roughly."
    )


def _scored(own: Floats, known: Floats, halves: Mask, *, members: int) -> dict[str, Any]:
    """Return the scores of one set under the audited adapter, and under the control.

    Each set has its own shift and spread: canaries move further than natural texts.

    Args:
        own: confidences under the audited adapter, members first, shape ``(n,)``.
        known: the same under the shadows, the control last, shape ``(k + 1, n)``.
        halves: what they were trained on, of the same shape.
        members: number of members.
    """
    scores = lira_scores(own, known[:-1], halves[:-1])
    control = lira_scores(known[-1], known[:-1], halves[:-1])["online"]
    return {
        "shadow": {name: _pair(scores[name][:members], scores[name][members:]) for name in SCORES},
        "control": _pair(control[halves[-1]], control[~halves[-1]]),
    }


def _found(context: AuditContext) -> list[Sides]:
    """Return every set of texts that is there."""
    planted, split = context.find(PlantedCanaries), context.find(TextSplit)
    found = [] if planted is None else [_of_canaries(kind) for kind in planted.kinds]
    if split is not None:
        found.append(
            Sides(
                name=NATURAL,
                source=split.source,
                members=split.members,
                nonmembers=split.nonmembers,
                population=(),
                planted=False,
                by_chance=split.by_chance,
            )
        )
    return found


def _of_canaries(kind: CanaryTexts) -> Sides:
    """Return the canaries of one kind as members and non-members."""
    return Sides(
        name=kind.kind,
        source=f"planted canaries ({kind.kind})",
        members=kind.included,
        nonmembers=kind.held_out,
        population=(),
        planted=True,
        by_chance=kind.independent_coins,
        repeats=kind.repeats,
        one_client=kind.per_client == 1 and kind.clients_per_canary == 1,
    )


def _cut(sides: Sides, context: AuditContext) -> Sides:
    """Draw as many texts of each side as the effort allows."""
    rng = data_rng(context.seed, "shadow-membership", sides.name)
    drawn = [
        tuple(side[i] for i in rng.permutation(len(side))[: MOST[context.effort]])
        for side in (sides.members, sides.nonmembers)
    ]
    return replace(sides, members=drawn[0], nonmembers=drawn[1])


def _pair(inside: Floats, outside: Floats) -> dict[str, list[float]]:
    """Return two sides as evidence holds them: rounded and sorted."""
    return {"in": stored(np.sort(inside)), "out": stored(np.sort(outside))}


def _read_pair(entry: Mapping[str, Any], key: str) -> Pair:
    """Return both sides of a score.

    Raises:
        AuditError: if a side is malformed, or too small for an interval.
    """
    both = mapping(entry, key)
    inside, outside = numbers(both, "in"), numbers(both, "out")
    if not min(inside.size, outside.size) >= 2:
        msg = f"evidence {key!r} has {inside.size} and {outside.size} scores, expected 2 each."
        raise AuditError(msg)
    return inside, outside
