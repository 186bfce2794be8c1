"""How much of a client's text comes back from its update: gradient inversion, with and without DP.

A server that sees one update, and knows the model and what it sent, looks for the texts whose
gradient that update is. The attack itself needs the model (:mod:`server.audit.inverter`); here its
success is measured by ROUGE against the true text, beside what could be had without the update: the
model's own guess, and other clients' texts. Only rates are kept.

The same texts are attacked plain, clipped, noised and summed over clients, so that it shows which
of the protections does what; the value is about what the plan really sends. An attack that fails
bounds nothing, and one that succeeds contradicts no epsilon: finding a text says which trust in
the server a mode asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from server.audit import evidence as read
from server.audit.inverter import Inverter, Recovered
from server.audit.protocol import AuditContext, Evidence, Finding, Floats, Terms, Verdict
from server.audit.rouge import matched_rouge
from shared.errors import AuditError, TooFewCanaries

READABLE = 0.5
"""Mean ROUGE-1 above which the texts behind an update are called readable."""

CLEAR = 0.2
"""By how much the positive control must beat what could be guessed, on average."""

CONTROL = "control"
_COLUMNS = ("rouge_1", "rouge_2", "guess_1", "guess_2", "other_1", "other_2", "exact")
_LEAST = 3
_UPDATES = {"smoke": 3, "release": 3, "extended": 4}
_BATCHES = {"smoke": (1,), "release": (1,), "extended": (1, 2, 4)}
_WORDS = {
    "plain": "as it is",
    "clipped": "clipped",
    "noised": "clipped and noised",
    "summed": "summed over clients",
}


class Inversion:
    """A server looks for the text behind an update."""

    name = "inversion"
    metric = "rouge_1"
    threat_model = (
        "A server that follows the protocol, keeps what it receives, knows the base model, the "
        "adapter it sent, and how many texts of how many tokens an update comes from."
    )
    needs = ("the base model", "the data of some clients, to know what their texts were")

    def cost(self, context: AuditContext) -> str:
        """Say how many texts are looked for, and with how many gradients each at most."""
        inverter = context.find(Inverter)
        if inverter is None:
            return "nothing: there is no client to look at"
        texts = sum(
            count * (inverter.together if arm == "summed" else batch)
            for arm, batch, count in _attacks(inverter, context)
        )
        texts += _updates(inverter, context)
        return (
            f"{texts} texts of {inverter.tokens} tokens are looked for, each with up to "
            f"{inverter.evaluations:,} gradients of the model: some 10 seconds each for a small "
            "one, hours for a large one"
        )

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Attack updates of some clients in every arm.

        Raises:
            MissingArtefact: without a way to see and invert updates.
            TooFewCanaries: with fewer than three clients.
        """
        inverter = context.need(Inverter)
        updates = _updates(inverter, context)
        if not updates >= _LEAST:
            msg = f"clients={updates}, expected at least {_LEAST} to look at."
            raise TooFewCanaries(msg)
        results = []
        for arm, batch, count in _attacks(inverter, context):
            attacked = [inverter.attack(arm, number, batch=batch) for number in range(count)]
            results.append({"arm": arm, "batch": batch, **_scores(attacked)})
        made_up = [inverter.control(number) for number in range(updates)]
        return {
            "mode": inverter.mode,
            "factors": inverter.factors,
            "sent": inverter.sent,
            "tokens": inverter.tokens,
            "together": inverter.together,
            "results": [*results, {"arm": CONTROL, "batch": 1, **_scores(made_up)}],
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Say how much of a text its update shows, and to whom.

        Raises:
            AuditError: if the evidence is malformed.
        """
        found = _Read.of(evidence)
        own, control = found.sent, found.control
        low, high = own.interval(terms.alpha)
        detected = own.lead(terms.alpha) > 0
        caught = control.lead(terms.alpha) > 0 and control.mean_lead >= CLEAR
        verdict, reason = _verdict(
            found, terms, caught=caught, detected=detected, readable=low > READABLE
        )
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="descriptive",
            metric=self.metric,
            value=own.mean,
            interval=(low, high),
            ceiling=1.0,
            baseline=own.baseline,
            detected=detected,
            n_in=own.updates,
            n_out=0,
            alpha=terms.alpha,
            positive_control=caught,
            explanation=f"{found.words(terms.alpha)} {reason}",
            evidence={
                **{key: value for key, value in evidence.items() if key != read.DERIVED},
                read.DERIVED: {"results": [one.to_dict(terms.alpha) for one in found.results]},
            },
        )


def _updates(inverter: Inverter, context: AuditContext) -> int:
    """Return how many clients are looked at."""
    return min(inverter.clients, _UPDATES[context.effort])


def _attacks(inverter: Inverter, context: AuditContext) -> list[tuple[str, int, int]]:
    """Return arm, batch size and number of updates of every attack.

    Larger batches are attacked plain and as they are sent, on as few clients as give an interval.
    """
    updates = _updates(inverter, context)
    few = min(updates, _LEAST)
    found = [(arm, 1, few if arm == "summed" else updates) for arm in inverter.arms]
    for batch in _BATCHES[context.effort][1:]:
        if batch <= inverter.largest_batch:
            arms = dict.fromkeys(("plain", inverter.sent))
            found += [(arm, batch, few) for arm in arms if arm != "summed"]
    return found


def _scores(attacked: Sequence[Recovered]) -> dict[str, list[float]]:
    """Return ROUGE of each attack, of the model's guess and of other texts."""
    rows = []
    for one in attacked:
        size = len(one.truth)
        groups = [one.others[i : i + size] for i in range(0, len(one.others) - size + 1, size)]
        if not groups:
            msg = f"others={len(one.others)} texts, expected at least {size}."
            raise AuditError(msg)
        others = np.mean([matched_rouge(group, one.truth) for group in groups], axis=0)
        found, guess = (
            matched_rouge(texts, one.truth) for texts in (one.found, (one.guess,) * size)
        )
        exact = len(set(one.found) & set(one.truth)) / size
        rows.append((*found, *guess, *others, exact))
    table = np.array(rows, dtype=np.float64).T
    return {name: read.stored(column) for name, column in zip(_COLUMNS, table, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """Attacks on one arm.

    Attributes:
        arm: what was attacked.
        batch: texts of a client behind an update.
        columns: rates in [0, 1], each of shape ``(updates,)``.
    """

    arm: str
    batch: int
    columns: Mapping[str, Floats]

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> _Result:
        """Read one arm of the evidence.

        Raises:
            AuditError: if it is malformed.
        """
        size = read.numbers(entry, "rouge_1").size
        columns = {name: read.numbers(entry, name, size=size) for name in _COLUMNS}
        inside = all(((values >= 0) & (values <= 1)).all() for values in columns.values())
        if not (inside and size >= _LEAST):
            msg = f"evidence 'results' has {size} updates, or a rate outside [0, 1]."
            raise AuditError(msg)
        return cls(
            arm=read.text(entry, "arm"),
            batch=read.integer(entry, "batch", low=1),
            columns=columns,
        )

    @property
    def updates(self) -> int:
        """Number of updates."""
        return self.columns["rouge_1"].size

    @property
    def mean(self) -> float:
        """Mean ROUGE-1."""
        return float(self.columns["rouge_1"].mean())

    @property
    def _without(self) -> Floats:
        """ROUGE-1 of the better of guess and other texts, by update."""
        return np.maximum(self.columns["guess_1"], self.columns["other_1"])

    @property
    def baseline(self) -> float:
        """Mean ROUGE-1 of what could be had without the update."""
        return float(self._without.mean())

    @property
    def mean_lead(self) -> float:
        """By how much the attack beats that on average."""
        return self.mean - self.baseline

    def lead(self, alpha: float) -> float:
        """Return a one-sided lower bound on the lead, Student's over updates."""
        lead = self.columns["rouge_1"] - self._without
        return float(lead.mean()) - _reach(lead, alpha)

    def interval(self, alpha: float) -> tuple[float, float]:
        """Return Student's interval of the mean, within [0, 1]."""
        half = _reach(self.columns["rouge_1"], alpha / 2)
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    def to_dict(self, alpha: float) -> dict[str, Any]:
        """Return what was worked out, for the report."""
        return {
            "arm": self.arm,
            "batch": self.batch,
            "updates": self.updates,
            "rouge_1": self.mean,
            "rouge_2": float(self.columns["rouge_2"].mean()),
            "exact": float(self.columns["exact"].mean()),
            "interval": list(self.interval(alpha)),
            "baseline": self.baseline,
            "lead_lower_bound": self.lead(alpha),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """What the evidence says."""

    mode: str
    factors: str
    tokens: int
    together: int
    sent: _Result
    control: _Result
    results: tuple[_Result, ...]

    @classmethod
    def of(cls, evidence: Evidence) -> _Read:
        """Read evidence.

        Raises:
            AuditError: if it is malformed, or an arm is missing.
        """
        results = tuple(_Result.of(entry) for entry in read.mappings(evidence, "results"))
        known = {(one.arm, one.batch): one for one in results}
        wanted = read.text(evidence, "sent")
        if (wanted, 1) not in known or (CONTROL, 1) not in known or len(known) != len(results):
            msg = "evidence 'results' lacks an arm or has one twice, expected the sent one, once."
            raise AuditError(msg)
        return cls(
            mode=read.text(evidence, "mode"),
            factors=read.text(evidence, "factors"),
            tokens=read.integer(evidence, "tokens", low=2),
            together=read.integer(evidence, "together", low=1),
            sent=known[wanted, 1],
            control=known[CONTROL, 1],
            results=results,
        )

    def words(self, alpha: float) -> str:
        """Return what was measured in plain words."""
        own, control = self.sent, self.control
        low, high = own.interval(alpha)
        kinds = "A and B" if self.factors == "AB" else f"{self.factors} alone"
        arms = "; ".join(
            f"{_WORDS.get(one.arm, one.arm)}"
            f"{f' ({one.batch} texts)' if one.batch > 1 else ''} {one.mean:.2f}"
            for one in self.results
            if one.arm != CONTROL
        )
        return (
            f"From updates of one step on a text of {self.tokens} tokens ({kinds}), as this run "
            f"sends them ({_WORDS.get(own.arm, own.arm)}), the attack gets ROUGE-1 {own.mean:.2f} "
            f"({low:.2f} to {high:.2f}, {own.updates} updates); without the update, the model's "
            f"own guess or another client's text gets {own.baseline:.2f}. All arms: {arms} (summed "
            f"over {self.together} clients). On plain updates of a short text it reached "
            f"{control.mean:.2f}, where {control.baseline:.2f} could be had without."
        )


def _verdict(
    found: _Read, terms: Terms, *, caught: bool, detected: bool, readable: bool
) -> tuple[Verdict, str]:
    """Decide: whom the mode trusts says what readable text means."""
    if terms.claim.epsilon is None:
        return "inconclusive", "The run claims no epsilon, so there is nothing to contradict."
    if not caught:
        return "inconclusive", (
            f"The positive control was not caught (a clear lead of {CLEAR} was expected): the "
            "attack is too weak here."
        )
    who = {
        "client-central": "In this mode the server is trusted with clipped updates, and its "
        "epsilon is about the released adapter: nothing here is a violation of it.",
        "client-distributed": "In this mode the server opens the noised sum alone, here one of "
        "very few clients, and ROUGE bounds no epsilon.",
    }.get(
        found.mode, "The noise in the update is all that protects it here; ROUGE bounds no epsilon."
    )
    if readable:
        advice = (
            "Use client-distributed, more text per update, or a smaller rank to avoid it."
            if found.mode != "client-distributed"
            else "Use larger cohorts or more noise."
        )
        return "inconclusive", f"{who} But a server can read clients' text. {advice}"
    seen = "Something of a client's text shows." if detected else ""
    return "consistent", f"{who} {seen} A stronger attack may find more.".replace("  ", " ")


def _reach(values: Floats, tail: float) -> float:
    """Return by how far Student's interval reaches to one side, with ``tail`` beyond it."""
    quantile = float(special.stdtrit(values.size - 1, 1 - tail))
    return quantile * float(values.std(ddof=1)) / math.sqrt(values.size)
