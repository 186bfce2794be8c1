"""How far up the ranking of possible secrets a planted secret has moved.

Carlini et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural
Networks" (2019). A canary is ranked among fresh secrets of the same generator. If the model knows
nothing about it, its rank is uniform, and it gains ``e`` bits or more with probability at most
``2^-e``; the mean under chance is about 1.44 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.audit import evidence as stored
from server.audit import stats
from server.audit.canaries import MIN_CANARIES, CanaryTexts, PlantedCanaries
from server.audit.protocol import AuditContext, Claim, Evidence, Finding, Floats, Terms
from server.audit.ranking import (
    CHANCE_BITS,
    block_p_values,
    exposure,
    extrapolated,
    fisher,
    mean_permutation_p_value,
)
from server.audit.target import Target, losses
from server.audit.topbound import TopProof
from shared.errors import AuditError, TooFewCanaries

MIN_REFERENCES = 16
"""Fewest fresh secrets to rank against; 16 allow at most 4.1 bits."""

REPORTED = "loss"
"""The score whose bits are reported, fixed beforehand: how likely the adapter finds a secret."""

CERTIFIED_KIND = "secret"
"""The kind whose secrets are independent draws from a known space, which the bound needs."""

_SIDES = ("included", "held_out", "references")
_SMOKE_REFERENCES = 512
_SCORES = 2


class Exposure:
    """Included canaries against held-out ones, both ranked among the same fresh secrets."""

    name = "exposure"
    metric = "mean_exposure_bits"
    threat_model = (
        "Someone who can read the probabilities of the released adapter and of the base model, "
        "and who knows the form of a secret but not its content."
    )
    needs = ("a model to read with", "planted canaries", "fresh references of the same generator")

    def cost(self, context: AuditContext) -> str:
        """Say how many texts are read."""
        planted = context.find(PlantedCanaries)
        usable = [] if planted is None else [k for k in planted.kinds if _refused(k) is None]
        texts = sum(kind.count + len(_references(kind, context)) for kind in usable)
        return f"{2 * texts} texts read, with and without the adapter"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Read canaries and references with the adapter and without.

        Raises:
            AuditError: if the model answers nonsense, or an artefact is missing.
            TooFewCanaries: if no kind has enough canaries and references.
        """
        target, planted = context.need(Target), context.need(PlantedCanaries)
        refused = {kind.kind: _refused(kind) for kind in planted.kinds}
        usable = [kind for kind in planted.kinds if refused[kind.kind] is None]
        skipped = {name: reason for name, reason in refused.items() if reason is not None}
        if not usable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            msg = f"no kind of canary can be ranked ({reasons or 'none was planted'})."
            raise TooFewCanaries(msg, hint="Raise audit.canaries and audit.references.")
        return {
            "planted": bool(planted.coins),
            "kinds": [_measure(kind, target, context) for kind in usable],
            "skipped": skipped,
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Rank by loss and by loss relative to the base, and compare the two sides.

        Raises:
            AuditError: if the evidence is malformed.
        """
        planted = stored.boolean(evidence, "planted")
        kinds = [_Kind.read(entry) for entry in stored.mappings(evidence, "kinds")]
        if not kinds:
            msg = "evidence 'kinds' is empty, expected at least one kind of canary."
            raise AuditError(msg)
        results = [_Ranked.of(kind, terms, place) for place, kind in enumerate(kinds)]
        tests = _SCORES * len(results)
        smallest = min(min(r.p_values.values()) for r in results)
        p_value = min(1.0, tests * smallest)
        detected = p_value < terms.alpha
        main = next((r for r in results if r.kind.name == CERTIFIED_KIND), results[0])
        score = main.kind.score(REPORTED)
        proof = TopProof.of(
            score["included"],
            score["references"],
            repeats=main.kind.repeats,
            doubt=_doubt(main.kind, planted, terms.claim),
            terms=terms,
        )
        verdict, reason = proof.judge(terms, detected=detected)
        null = float(main.bits["base"].mean())
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="certified" if verdict == "violation" else "descriptive",
            metric=self.metric,
            value=main.mean,
            interval=stats.bootstrap_mean(main.included, seed=terms.seed, alpha=terms.alpha),
            ceiling=math.log2(main.kind.references + 1),
            baseline=null,
            detected=detected,
            n_in=main.included.size,
            n_out=main.held_out.size,
            alpha=terms.alpha,
            positive_control=None if terms.control is None else terms.control.caught,
            explanation=f"{main.explain(null)} {_tested(p_value, tests, detected)} {reason}",
            evidence={
                **{key: value for key, value in evidence.items() if key != stored.DERIVED},
                stored.DERIVED: {
                    "p_value": p_value,
                    "tests": tests,
                    "chance_bits": CHANCE_BITS,
                    "main_kind": main.kind.name,
                    "bound": proof.to_dict(),
                    "kinds": {r.kind.name: r.to_dict() for r in results},
                },
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """The losses of one kind, as evidence holds them: by model and side, nats."""

    name: str
    repeats: int
    per_client: int
    clients_per_canary: int
    tuned: Mapping[str, Floats]
    base: Mapping[str, Floats]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> _Kind:
        """Read and check one entry of the evidence."""
        tuned = _read_losses(stored.mapping(entry, "tuned"), None)
        return cls(
            name=stored.text(entry, "kind"),
            repeats=stored.integer(entry, "repeats", low=1),
            per_client=stored.integer(entry, "per_client", low=1),
            clients_per_canary=stored.integer(entry, "clients_per_canary", low=1),
            tuned=tuned,
            base=_read_losses(stored.mapping(entry, "base"), tuned),
        )

    @property
    def references(self) -> int:
        """Number of fresh secrets."""
        return self.tuned["references"].size

    def score(self, name: str) -> Mapping[str, Floats]:
        """Return what is ranked, by side: lower for what the adapter knows better."""
        if name == "base":
            return self.base
        if name == "loss":
            return self.tuned
        return {side: self.tuned[side] - self.base[side] for side in _SIDES}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranked:
    """The exposure of one kind: included canaries in bits, by score, and the tests.

    Scores are ``loss`` (the one of the Secret Sharer, and the one that is reported), ``gain``
    (loss relative to the base), and ``base``, the loss under the base model alone: the null.
    """

    kind: _Kind
    bits: Mapping[str, Floats]
    held_out: Floats
    p_values: Mapping[str, float]
    p_value_base: float
    fisher: float | None
    tail: Floats | None

    @classmethod
    def of(cls, kind: _Kind, terms: Terms, place: int) -> _Ranked:
        """Rank one kind."""
        bits, p_values = {}, {}
        for number, name in enumerate(("gain", "loss", "base")):
            score = kind.score(name)
            bits[name] = exposure(score["included"], score["references"])
            others = exposure(score["held_out"], score["references"])
            p_values[name] = mean_permutation_p_value(
                bits[name], others, seed=terms.seed + 3 * place + number
            )
        score = kind.score(REPORTED)
        blocks = block_p_values(score["included"], score["references"], seed=terms.seed)
        return cls(
            kind=kind,
            bits=bits,
            held_out=exposure(score["held_out"], score["references"]),
            p_value_base=p_values.pop("base"),
            p_values=p_values,
            fisher=None if blocks is None else fisher(blocks),
            tail=extrapolated(score["included"], score["references"]),
        )

    @property
    def included(self) -> Floats:
        """Bits of the included canaries by the reported score."""
        return self.bits[REPORTED]

    @property
    def mean(self) -> float:
        """Mean bits of the included canaries by the reported score."""
        return float(self.included.mean())

    def explain(self, null: float) -> str:
        """Say what was found about this kind."""
        told = (
            f"Canaries of kind {self.kind.name!r} that were trained on reach {self.mean:.2f} bits "
            f"of exposure on average, those that were kept out {self.held_out.mean():.2f}; chance "
            f"is about {CHANCE_BITS:.2f}, the base model alone gives {null:.2f}, and "
            f"{self.kind.references} references can show at most "
            f"{math.log2(self.kind.references + 1):.2f}."
        )
        if self.p_value_base < 0.01:
            told += (
                " The two sides already differ under the base model, so part of what the loss "
                "shows is not training."
            )
        return told

    def to_dict(self) -> dict[str, object]:
        """Return the derived numbers, with the bits of every canary."""
        mean_tail = None if self.tail is None else round(float(self.tail.mean()), 3)
        return {
            "mean_included": self.mean,
            "mean_held_out": float(self.held_out.mean()),
            "max_included": float(self.included.max()),
            "mean_by_gain": float(self.bits["gain"].mean()),
            "mean_by_base": float(self.bits["base"].mean()),
            "mean_extrapolated": mean_tail,
            "p_value_gain": self.p_values["gain"],
            "p_value_loss": self.p_values["loss"],
            "p_value_base_differs": self.p_value_base,
            "p_value_fisher": self.fisher,
            "included": stored.stored(self.included),
            "held_out": stored.stored(self.held_out),
        }


def _doubt(kind: _Kind, planted: bool, claim: Claim) -> str:
    """Return why the ranks of a kind certify nothing; empty if they do."""
    if kind.name != CERTIFIED_KIND or not planted:
        return "these secrets were not drawn independently from a known space."
    if kind.clients_per_canary > 1:
        return "a canary sits in more than one client."
    if claim.unit == "client" and kind.per_client > 1:
        return "a client may hold more than one canary."
    return ""


def _refused(kind: CanaryTexts) -> str | None:
    """Return why a kind cannot be ranked, or None."""
    found = len(kind.references)
    if not found >= MIN_REFERENCES:
        return f"references={found}, expected at least {MIN_REFERENCES}"
    n_in, n_out = len(kind.included), len(kind.held_out)
    if not min(n_in, n_out) >= MIN_CANARIES:
        return f"included={n_in}, held_out={n_out}, expected at least {MIN_CANARIES} each"
    return None


def _references(kind: CanaryTexts, context: AuditContext) -> tuple[Any, ...]:
    """Return the references to read, which are fewer in a smoke test."""
    return kind.references[:_SMOKE_REFERENCES] if context.effort == "smoke" else kind.references


def _measure(kind: CanaryTexts, target: Target, context: AuditContext) -> dict[str, Any]:
    """Return the losses of one kind, by model and side."""
    sides = dict(
        zip(_SIDES, (kind.included, kind.held_out, _references(kind, context)), strict=True)
    )
    found: dict[str, Any] = {
        name: {
            side: stored.stored(losses(target, texts, adapter=adapter))
            for side, texts in sides.items()
        }
        for name, adapter in (("tuned", True), ("base", False))
    }
    return {
        "kind": kind.kind,
        "repeats": kind.repeats,
        "per_client": kind.per_client,
        "clients_per_canary": kind.clients_per_canary,
        **found,
    }


def _read_losses(
    entry: Mapping[str, Any], like: Mapping[str, Floats] | None
) -> Mapping[str, Floats]:
    """Read losses by side, as many on each as the other model has, or as an audit needs."""
    found = {
        side: stored.numbers(entry, side, size=None if like is None else like[side].size)
        for side in _SIDES
    }
    least = {"included": MIN_CANARIES, "held_out": MIN_CANARIES, "references": MIN_REFERENCES}
    for side, values in found.items():
        if not values.size >= least[side]:
            msg = f"evidence {side!r} has {values.size} losses, expected at least {least[side]}."
            raise AuditError(msg)
    return found


def _tested(p_value: float, tests: int, detected: bool) -> str:
    """Say what the test between the two sides gave."""
    found = "rank higher than" if detected else "cannot be told from"
    return (
        f"The trained-on canaries {found} the others (p = {p_value:.2g}, corrected for {tests} "
        "tests)."
    )
