"""Whether the adapter tells what it was trained on from what it was not.

Members and non-members must be one population, split by chance before training: then nothing but
training can tell them apart. Planted canaries are that by construction; for other texts a blind
attack, which never looks at the adapter, checks it (:mod:`server.audit.blind`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from server.audit import membershipwords as words
from server.audit.canaries import MIN_CANARIES, CanaryTexts, PlantedCanaries
from server.audit.evidence import DERIVED, mappings
from server.audit.membershipreads import POPULATION, Sides, measure_sides
from server.audit.membershiptests import ScoredSet, Tested, preferred, run_tests
from server.audit.protocol import AuditContext, Effort, Evidence, Finding, Terms, Verdict
from server.audit.target import Passage, Target
from server.audit.verdict import bound_for, judge
from shared.errors import AuditError, InvalidValue, TooFewCanaries
from shared.seeding import data_rng

NATURAL = "natural"
"""What the audit calls texts that nobody planted."""

MOST: dict[Effort, int] = {"smoke": 500, "release": 2_000, "extended": 12_000}
"""Most texts of a side that are scored; the rate at 0.1 % false positives needs 10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSplit:
    """Member and non-member texts of one source, split by chance before training.

    Args:
        members: what the adapter was trained on.
        nonmembers: texts from the same source that it was not trained on.
        source: where they come from, in words; it is printed, so it may quote nothing.
        population: further texts of the source that were never trained on, for attacks that need
            some; without them a part of the non-members is set aside.
        by_chance: whether the program itself drew the split. False for a user's own files, whose
            sides are one population on the user's word alone.

    Raises:
        InvalidValue: if a text is on two sides, or twice on one.
    """

    members: tuple[Passage, ...]
    nonmembers: tuple[Passage, ...]
    source: str
    population: tuple[Passage, ...] = ()
    by_chance: bool = False

    def __post_init__(self) -> None:
        """Refuse a text that counts twice."""
        texts = (*self.members, *self.nonmembers, *self.population)
        twice = len(texts) - len(set(texts))
        if twice:
            msg = f"texts_that_are_there_twice={twice}, expected 0, over both sides."
            raise InvalidValue(msg, hint="Remove duplicates; a text is a member or it is not.")


class Membership:
    """A panel of published scores, each tested on its own and all corrected together."""

    name = "membership"
    metric = "auc"
    threat_model = (
        "Someone who can read the probabilities of the released adapter and of the base model, "
        "and who holds a text and asks whether it was trained on."
    )
    needs = (
        "a model to read with",
        "planted canaries, or members and non-members split before training",
    )

    def cost(self, context: AuditContext) -> str:
        """Say how many texts are read."""
        sides = [_cut(found, context) for found in _found(context)]
        texts = sum(len(s.members) + len(s.nonmembers) + len(s.population) for s in sides)
        return (
            f"{2 * texts} texts read, with and without the adapter, and once more with it in "
            "lower case"
        )

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Score both sides of every set of texts.

        Scores are kept sorted, so that nothing ties one to its text.

        Raises:
            MissingArtefact: without a model, or without any texts.
            TooFewCanaries: if no set has enough texts on either side.
            AuditError: if the model answers nonsense.
        """
        target = context.need(Target)
        found = _found(context)
        if not found:
            context.need(PlantedCanaries)
        small = [s for s in found if min(len(s.members), len(s.nonmembers)) < MIN_CANARIES]
        usable = [_cut(sides, context) for sides in found if sides not in small]
        if not usable:
            counts = ", ".join(f"{s.name} {len(s.members)}/{len(s.nonmembers)}" for s in small)
            msg = (
                f"members/non-members: {counts or 'none'}, expected at least {MIN_CANARIES} on "
                "each side of one set."
            )
            raise TooFewCanaries(msg, hint="Raise audit.canaries, or give longer files.")
        return {
            "sets": [measure_sides(sides, target, context.seed) for sides in usable],
            "skipped": [
                {"name": s.name, "n_in": len(s.members), "n_out": len(s.nonmembers)} for s in small
            ],
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Test every score on every set, and judge.

        Raises:
            AuditError: if the evidence is malformed.
        """
        sets = [ScoredSet.read(entry) for entry in mappings(evidence, "sets")]
        if not sets:
            msg = "evidence 'sets' is empty, expected at least one set of texts."
            raise AuditError(msg)
        if len({one.name for one in sets}) != len(sets):
            msg = "evidence 'sets' has two sets of one name, expected each once."
            raise AuditError(msg)
        tested = run_tests(sets, terms)
        trusted = [one for one in tested if not one.differs]
        main = preferred(trusted or tested)
        found = [name for one in trusted for name in one.detected(terms.alpha)]
        verdict, reason = _judge(main, tested, terms, detected=bool(found))
        inside, outside = main.primary
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="descriptive",
            metric=self.metric,
            value=main.auc,
            interval=main.interval,
            ceiling=1.0,
            baseline=main.blind_auc,
            detected=bool(found) if trusted else None,
            n_in=inside.size,
            n_out=outside.size,
            alpha=terms.alpha,
            positive_control=None if terms.control is None else terms.control.caught,
            explanation=f"{words.explain(main, tested, terms)} {reason}",
            evidence={
                **{key: value for key, value in evidence.items() if key != DERIVED},
                DERIVED: {
                    "primary_set": main.scored.name,
                    "primary_score": main.scored.primary_score,
                    "tests": sum(len(one.p_values) for one in tested),
                    "correction": "holm",
                    "sets": {one.scored.name: one.to_dict(terms) for one in tested},
                },
            },
        )


def _judge(
    main: Tested, tested: list[Tested], terms: Terms, *, detected: bool
) -> tuple[Verdict, str]:
    """Return the verdict and its reasons; never a violation, as nothing here is certified."""
    bound = bound_for(terms.claim, repeats=main.scored.repeats)
    verdict, reason = judge(terms, bound=bound, ceiling_epsilon=None, detected=detected)
    doubts = [words.differs(one) for one in tested if one.differs]
    doubts += [words.above(one) for one in tested if one.above and not one.differs]
    if not doubts:
        return verdict, reason
    return "inconclusive", " ".join(doubts if verdict == "consistent" else [*doubts, reason])


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
                population=split.population,
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
        population=kind.references,
        planted=True,
        by_chance=kind.independent_coins,
        repeats=kind.repeats,
        one_client=kind.per_client == 1 and kind.clients_per_canary == 1,
    )


def _cut(sides: Sides, context: AuditContext) -> Sides:
    """Draw as many texts of each side as the effort allows."""
    most = MOST[context.effort]
    rng = data_rng(context.seed, "membership", sides.name)
    return Sides(
        name=sides.name,
        source=sides.source,
        members=_drawn(sides.members, most, rng),
        nonmembers=_drawn(sides.nonmembers, most, rng),
        population=_drawn(sides.population, POPULATION, rng),
        planted=sides.planted,
        by_chance=sides.by_chance,
        repeats=sides.repeats,
        one_client=sides.one_client,
    )


def _drawn(texts: tuple[Passage, ...], most: int, rng: np.random.Generator) -> tuple[Passage, ...]:
    """Draw texts without replacement; all of them if there are no more."""
    if len(texts) <= most:
        return texts
    return tuple(texts[i] for i in rng.permutation(len(texts))[:most])
