"""Whether planted secrets and personal facts can be got out of the model word for word.

Carlini et al., "Quantifying Memorization Across Neural Language Models" (2022), for greedy
decoding; Hayes et al., "Measuring memorization through probabilistic discoverable extraction"
(2024), for sampling: a text is (n, p)-discoverable if n samples give it with probability p.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.audit import evidence as stored
from server.audit import pii
from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.extractable import (
    SETTINGS,
    Trace,
    found,
    mcnemar_p_value,
    restore,
    store,
    stratified_p_value,
    summary,
)
from server.audit.facts import PersonalFacts
from server.audit.inline import read_inline
from server.audit.protocol import AuditContext, Evidence, Finding, Terms
from server.audit.stats import clopper_pearson
from server.audit.target import Passage, Reading, Target
from server.audit.verdict import bound_for, judge
from shared.errors import AuditError, MissingArtefact

MOST_SHOWN = 50
"""Most tokens of a text without a prompt that the attacker is taken to know (Carlini et al.)."""

_MAIN = "secret"
_SIDES = ("included", "held_out")
_MODELS = (("tuned", True), ("base", False))


class Extraction:
    """Trained-on secrets and facts against ones that were kept out, and against the base model."""

    name = "extraction"
    metric = "share_extractable_n1000_p0.1"
    threat_model = (
        "Someone who can sample from the released adapter and knows what stands before a secret or "
        "personal fact, or the name of the person."
    )
    needs = ("a model to read with", "planted canaries or personal facts of the training data")

    def cost(self, context: AuditContext) -> str:
        """Say how many texts are read and written."""
        planted, facts = context.find(PlantedCanaries), context.find(PersonalFacts)
        texts = 0 if planted is None else 2 * sum(kind.count for kind in planted.kinds)
        if facts is None:
            return f"{texts} texts read (most of them shared with other audits)"
        texts += pii.reads(facts, context.effort)
        written = 0 if facts.holders is None else 2 * pii.GENERATIONS[context.effort]
        return f"{texts} texts read, {written} written"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Read secrets and facts as an attacker would try to get them out.

        Raises:
            AuditError: if the model answers nonsense.
            MissingArtefact: without a model, or with neither canaries nor facts.
        """
        target = context.need(Target)
        planted, facts = context.find(PlantedCanaries), context.find(PersonalFacts)
        kinds = [] if planted is None else [k for k in planted.kinds if k.included]
        if not kinds and facts is None:
            msg = "This audit needs planted canaries or personal facts, and neither is here."
            raise MissingArtefact(msg)
        return {
            "kinds": [_measure(kind, target) for kind in kinds],
            "facts": None if facts is None else pii.measure(facts, target, context),
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Count what can be extracted, and test it against what was kept out.

        Raises:
            AuditError: if the evidence is malformed.
        """
        kinds = [_Kind.read(entry) for entry in stored.mappings(evidence, "kinds")]
        facts = _facts(evidence)
        p_values = _p_values(kinds, facts)
        p_value = min(1.0, len(p_values) * min(p_values.values()))
        detected = p_value < terms.alpha
        main = next((kind for kind in kinds if kind.name == _MAIN), kinds[0] if kinds else None)
        counts = _Counts.of(main, facts)
        verdict, reason = judge(
            terms,
            bound=bound_for(terms.claim, repeats=1 if main is None else main.repeats),
            ceiling_epsilon=None,
            detected=detected,
        )
        told = [kind.explain() for kind in kinds] + ([] if facts is None else [facts.explain()])
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="descriptive",
            metric=self.metric,
            value=counts.tuned / counts.n_in,
            interval=clopper_pearson(counts.tuned, counts.n_in, alpha=terms.alpha),
            ceiling=1.0,
            baseline=counts.base / counts.n_in,
            detected=detected,
            n_in=counts.n_in,
            n_out=counts.n_out,
            alpha=terms.alpha,
            positive_control=None if terms.control is None else terms.control.caught,
            explanation=" ".join([*told, _tested(p_value, len(p_values), detected), reason]),
            evidence={
                **{key: value for key, value in evidence.items() if key != stored.DERIVED},
                stored.DERIVED: {
                    "p_value": p_value,
                    "p_values": p_values,
                    "settings": [list(setting) for setting in SETTINGS],
                    "kinds": {kind.name: kind.to_dict() for kind in kinds},
                    "facts": None if facts is None else facts.to_dict(),
                },
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """The traces of one kind of canary; keys are side and model."""

    name: str
    repeats: int
    traces: Mapping[tuple[str, str], list[Trace]]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> _Kind:
        """Read one kind from the evidence."""
        traces = {
            (side, model): restore(stored.mapping(entry, side), model)
            for side in _SIDES
            for model, _ in _MODELS
        }
        n_in = len(traces["included", "tuned"])
        if not n_in or any(
            len(traces[side, "tuned"]) != len(traces[side, "base"]) for side in _SIDES
        ):
            msg = "evidence 'kinds' has no included canary, or other ones for the base model."
            raise AuditError(msg)
        return cls(
            name=stored.text(entry, "kind"),
            repeats=stored.integer(entry, "repeats", low=1),
            traces=traces,
        )

    def count(self, side: str, model: str) -> int:
        """Return how many canaries are extractable in the setting that is tested."""
        return sum(found(self.traces[side, model]))

    def table(self) -> tuple[int, int, int, int]:
        """Return extractable and all canaries, included and held out."""
        return (
            self.count("included", "tuned"),
            len(self.traces["included", "tuned"]),
            self.count("held_out", "tuned"),
            len(self.traces["held_out", "tuned"]),
        )

    def against_base(self) -> float:
        """Return the p-value of "the adapter gives away no more canaries than the base"."""
        tuned, base = (found(self.traces["included", model]) for model, _ in _MODELS)
        return mcnemar_p_value(tuned, base)

    def explain(self) -> str:
        """Say what was found of this kind."""
        hits, members, others_hit, others = self.table()
        greedy = sum(trace.greedy for trace in self.traces["included", "tuned"])
        tries, chance = SETTINGS[0]
        return (
            f"Of {members} canaries of kind {self.name!r} that were trained on, greedy decoding "
            f"writes {greedy} word for word, and {hits} come out of {tries} samples with a chance "
            f"of {chance:.0%} or more; so do {others_hit} of {others} that were kept out, and "
            f"{self.count('included', 'base')} under the base model."
        )

    def to_dict(self) -> dict[str, object]:
        """Return the derived numbers of this kind."""
        derived: dict[str, object] = {
            "p_value": stratified_p_value([self.table()]),
            "p_value_against_base": self.against_base(),
        }
        for side in _SIDES:
            derived[side] = {model: summary(self.traces[side, model]) for model, _ in _MODELS}
        return derived


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """The counts behind the value: of the secrets, or of all facts where there are none."""

    tuned: int
    base: int
    n_in: int
    n_out: int

    @classmethod
    def of(cls, main: _Kind | None, facts: pii.FactsFound | None) -> _Counts:
        """Count canaries of the main kind, or facts."""
        if main is not None:
            tuned, n_in, _, n_out = main.table()
            return cls(tuned=tuned, base=main.count("included", "base"), n_in=n_in, n_out=n_out)
        if facts is None or not facts.trained:
            msg = "the evidence holds neither canaries nor facts that could be read."
            raise AuditError(msg)
        return cls(
            tuned=facts.extractable("trained", "tuned"),
            base=facts.extractable("trained", "base"),
            n_in=facts.trained,
            n_out=facts.fresh,
        )


def _facts(evidence: Evidence) -> pii.FactsFound | None:
    """Read the facts' part of the evidence, if there is one."""
    if evidence.get("facts") is None:
        return None
    return pii.FactsFound.read(stored.mapping(evidence, "facts"))


def _p_values(kinds: Sequence[_Kind], facts: pii.FactsFound | None) -> dict[str, float]:
    """Return the p-value of each attack, before correction.

    Canaries are held against those that were kept out; where nothing was kept out, against the
    base model.
    """
    values = {} if facts is None else facts.p_values()
    compared = [kind for kind in kinds if kind.traces["held_out", "tuned"]]
    if compared:
        values["canaries"] = stratified_p_value([kind.table() for kind in compared])
    for kind in kinds:
        if kind not in compared:
            values[f"against_base:{kind.name}"] = kind.against_base()
    if not values:
        msg = "the evidence holds neither canaries nor facts."
        raise AuditError(msg)
    return values


def _measure(kind: CanaryTexts, target: Target) -> dict[str, Any]:
    """Return the traces of one kind, by side and model."""
    beginning = _beginning(kind)
    entry: dict[str, Any] = {"kind": kind.kind, "repeats": kind.repeats}
    for side, passages in zip(_SIDES, (kind.included, kind.held_out), strict=True):
        entry[side] = {
            model: store([Trace.of(r) for r in _read(passages, beginning, target, adapter=adapter)])
            for model, adapter in _MODELS
        }
    return entry


def _read(
    passages: Sequence[Passage], beginning: str, target: Target, *, adapter: bool
) -> list[Reading]:
    """Read what is secret in canaries, which is what an attacker does not know already.

    The answer to a prompt; or what follows the beginning that all running text of the kind shares;
    or, of any other text, what follows its first half or first 50 tokens.
    """
    if beginning:
        texts = [(beginning, passage.text.removeprefix(beginning)) for passage in passages]
        readings = [r for r in read_inline(target, texts, adapter=adapter) if r is not None]
        if len(readings) != len(texts):
            msg = f"{len(texts) - len(readings)} of {len(texts)} canaries were cut off in reading."
            raise AuditError(msg, hint="Raise data.max_length.")
        return readings
    read = target.read(passages, adapter=adapter)
    return [
        reading if passage.prompt else _rest(reading, min(MOST_SHOWN, reading.rank.size // 2))
        for passage, reading in zip(passages, read, strict=True)
    ]


def _rest(reading: Reading, shown: int) -> Reading:
    """Return a reading without its first tokens."""
    return Reading(
        log_probability=reading.log_probability[shown:],
        expected=reading.expected[shown:],
        spread=reading.spread[shown:],
        rank=reading.rank[shown:],
        log_mass=reading.log_mass[shown:],
    )


def _beginning(kind: CanaryTexts) -> str:
    """Return what all running text of a kind begins with, up to the space before it parts."""
    everything = (*kind.included, *kind.held_out, *kind.references)
    if len(everything) == 1 or any(passage.prompt for passage in everything):
        return ""
    first, last = (choose(p.text for p in everything) for choose in (min, max))
    same = [a == b for a, b in zip(first, last, strict=False)]
    common = first[: same.index(False) if False in same else len(same)]
    return common[: common.rfind(" ")] if " " in common else ""


def _tested(p_value: float, tests: int, detected: bool) -> str:
    """Say what the tests against chance gave."""
    found_more = "are" if detected else "are not demonstrably"
    return (
        f"Trained-on secrets and facts {found_more} easier to get out than ones that were kept out "
        f"(p = {p_value:.2g}, corrected for {tests} tests). Extraction bounds no epsilon."
    )
