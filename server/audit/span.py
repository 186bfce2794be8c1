"""Which tokens a client had, read off its LoRA update by linear algebra.

For ``y = W x + s B A x`` the gradient of A is ``s (delta B)^T X``: its rows lie in the span of the
layer's inputs X. In a first block the input is a normalised embedding, which anybody with the base
model can compute for every token of the vocabulary. A token whose input lies in the row space of
the update was there; while fewer tokens than rows left a trace, no other one does. The gradient of
B is ``s delta^T (X A^T)``: under ``ffa``, where B alone travels, its rows lie in the span of
``A x``, a space of only ``r`` dimensions, which as many tokens fill.

Nothing is optimised and nothing is guessed; DAGER (Petrov et al., "DAGER: Exact Gradient Inversion
for Large Language Models", 2024) goes on from here to whole sentences. The server is trusted with
clipped updates in ``client-central`` and sees no update in ``client-distributed``, so what is
found says which trust a mode asks for; it bounds no epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from server.audit import evidence as read
from server.audit.protocol import AuditContext, Evidence, Finding, Floats, Terms, Verdict
from server.audit.tokenscores import (
    Sighting,
    UpdateProbe,
    View,
    numerical_rank,
    presence_auc,
    token_scores,
)
from shared.errors import AuditError, TooFewCanaries

__all__ = ["Sighting", "Span", "UpdateProbe", "View"]

READABLE = 0.9
"""AUC above which an update is called readable."""

RECOGNISED = 0.99
"""AUC that the positive control must reach: fewer tokens than rows, nothing clipped or noised."""

_CLIENTS = {"smoke": 8, "release": 16, "extended": 32}
_LEAST = 3


class Span:
    """A server reads a client's tokens off its update."""

    name = "span"
    metric = "token_presence_auc"
    threat_model = (
        "A server that follows the protocol, keeps the update of every client and knows the base "
        "model and the adapter it sent."
    )
    needs = ("the base model", "the data of some clients, to know which tokens were theirs")

    def cost(self, context: AuditContext) -> str:
        """Say how many clients train."""
        probe = context.find(UpdateProbe)
        if probe is None:
            return "nothing: there is no client to look at"
        count = min(probe.clients, _CLIENTS[context.effort])
        return f"one local training of {count} clients and {count} made-up ones"

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Score every token of the vocabulary against the updates of some clients.

        Raises:
            MissingArtefact: without a way to see updates.
            TooFewCanaries: with fewer than three clients.
        """
        probe = context.need(UpdateProbe)
        count = min(probe.clients, _CLIENTS[context.effort])
        if not count >= _LEAST:
            msg = f"clients={count}, expected at least {_LEAST} to look at."
            raise TooFewCanaries(msg)
        seen = [probe.sighting(number) for number in range(count)]
        made_up = [probe.control(number) for number in range(count)]
        own, another = [], []
        for number, sighting in enumerate(seen):
            scores = token_scores(sighting)
            own.append(presence_auc(scores, sighting.present))
            # The same update, asked for the tokens of the next client.
            another.append(presence_auc(scores, seen[(number + 1) % count].present))
        control = [presence_auc(token_scores(one), one.present) for one in made_up]
        return {
            "mode": probe.mode,
            "stage": probe.stage,
            "factors": probe.factors,
            "capacity": probe.capacity,
            "vocabulary": int(seen[0].present.size),
            "clients": count,
            "auc": read.stored(np.array(own)),
            "auc_of_another": read.stored(np.array(another)),
            "median_tokens": float(np.median([one.tokens for one in seen])),
            "median_distinct_tokens": float(np.median([one.present.sum() for one in seen])),
            "control_auc": read.stored(np.array(control)),
            "control_tokens": max(one.tokens for one in made_up),
            "noise_alone": _filled(probe.without_text()) if probe.mode == "example" else None,
        }

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Say how much of a client's tokens its update shows, and to whom.

        Raises:
            AuditError: if the evidence is malformed.
        """
        found = _Reading.of(evidence, terms.alpha)
        verdict, reason = _verdict(found, terms)
        masked = found.stage == "masked"
        return Finding(
            audit=self.name,
            verdict=verdict,
            strength="conformance" if found.noise_missing else "descriptive",
            metric=self.metric,
            # Nobody sees a masked update: what its mask hides is in the evidence alone.
            value=None if masked else found.mean,
            interval=None if masked else found.interval,
            ceiling=1.0,
            baseline=None if masked else found.another,
            detected=None if masked else found.told_apart,
            n_in=found.clients,
            n_out=0,
            alpha=terms.alpha,
            positive_control=found.control >= RECOGNISED,
            explanation=f"{found.words()} {reason}",
            evidence={
                **{key: value for key, value in evidence.items() if key != read.DERIVED},
                read.DERIVED: {
                    "auc": found.mean,
                    "interval": list(found.interval),
                    "auc_of_another": found.another,
                    "lead_lower_bound": found.lead,
                    "control_auc": found.control,
                },
            },
        )


def _filled(sighting: Sighting) -> bool:
    """Tell whether every matrix has all the rank that noise gives it."""
    return all(numerical_rank(view.rows) == min(view.rows.shape) for view in sighting.views)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What the evidence says, with intervals.

    Attributes:
        mode: of the run.
        stage: of an update.
        factors: that travel.
        capacity: tokens that rows can tell apart exactly.
        clients: that were looked at.
        tokens: median number of positions that left a trace.
        mean: AUC, mean over clients.
        interval: of the mean, Student's t over clients.
        another: mean AUC of the same updates for the tokens of another client.
        lead: one-sided lower bound on the difference.
        control: smallest AUC of the positive control.
        noise_missing: whether a client without text sent less than noise where noise is promised.
    """

    mode: str
    stage: str
    factors: str
    capacity: int
    clients: int
    tokens: float
    mean: float
    interval: tuple[float, float]
    another: float
    lead: float
    control: float
    noise_missing: bool

    @classmethod
    def of(cls, evidence: Evidence, alpha: float) -> _Reading:
        """Read and summarise evidence.

        Raises:
            AuditError: if it is malformed.
        """
        clients = read.integer(evidence, "clients", low=_LEAST)
        own = _rates(evidence, "auc", clients)
        another = _rates(evidence, "auc_of_another", clients)
        control = _rates(evidence, "control_auc", clients)
        mode = read.text(evidence, "mode")
        missing = mode == "example" and not read.boolean(evidence, "noise_alone")
        low, high = _mean_interval(own, alpha / 2)
        return cls(
            mode=mode,
            stage=read.text(evidence, "stage"),
            factors=read.text(evidence, "factors"),
            capacity=read.integer(evidence, "capacity", low=0),
            clients=clients,
            tokens=read.number(evidence, "median_tokens", low=0),
            mean=float(own.mean()),
            interval=(max(0.0, low), min(1.0, high)),
            another=float(another.mean()),
            lead=_mean_interval(own - another, alpha)[0],
            control=float(control.min()),
            noise_missing=missing,
        )

    @property
    def told_apart(self) -> bool:
        """Whether updates tell their own client's tokens from another client's."""
        return self.lead > 0

    @property
    def readable(self) -> bool:
        """Whether the interval lies above what counts as readable."""
        return self.interval[0] > READABLE

    def words(self) -> str:
        """Return what was measured in plain words."""
        sent = "A and B" if self.factors == "AB" else f"{self.factors} alone"
        what = "Without their masks, updates" if self.stage == "masked" else "Updates"
        few = "fewer" if self.tokens <= self.capacity else "more"
        return (
            f"{what} of {self.clients} clients ({sent}, {self.stage}) rank a token that the client "
            f"trained on above another one with probability {self.mean:.3f} "
            f"({self.interval[0]:.3f} to {self.interval[1]:.3f}); the tokens of another client get "
            f"{self.another:.3f}, chance is 0.5. A typical update comes from {self.tokens:g} token "
            f"positions, {few} than the {self.capacity} that its rows can tell apart. On made-up "
            f"texts that are short enough, unclipped and without noise, the attack reached at "
            f"least {self.control:.3f}."
        )


def _verdict(found: _Reading, terms: Terms) -> tuple[Verdict, str]:
    """Decide: whom the mode trusts says what a readable update means."""
    if found.noise_missing:
        return "violation", (
            "A client without any text sent an update that is not full of noise, though this mode "
            "promises noise in every update."
        )
    if found.stage == "masked":
        return "consistent", (
            "Secure aggregation is on: the server receives every update under a mask and opens "
            "only the sum, as long as the clients that it trusts do not help it."
        )
    if terms.claim.epsilon is None:
        return "inconclusive", "The run claims no epsilon, so there is nothing to contradict."
    if not found.control >= RECOGNISED:
        return "inconclusive", (
            f"The positive control was not caught (at least {RECOGNISED} was expected): the attack "
            "is too weak here."
        )
    trusted = found.mode == "client-central"
    who = (
        "In this mode the server is trusted with clipped updates, and its epsilon is about the "
        "released adapter: nothing here is a violation of it."
        if trusted
        else "The noise in the update is all that protects it here, and an AUC bounds no epsilon."
    )
    if found.readable:
        advice = "Use client-distributed, more tokens per update, or a smaller rank to avoid it."
        return "inconclusive", f"{who} But the server can read which tokens a client had. {advice}"
    seen = "Something of a client's tokens shows in its update." if found.told_apart else ""
    return "consistent", f"{who} {seen}".strip()


def _rates(evidence: Evidence, key: str, size: int) -> Floats:
    """Read one AUC for each client.

    Raises:
        AuditError: if they are not numbers in [0, 1].
    """
    values = read.numbers(evidence, key, size=size)
    if not ((values >= 0) & (values <= 1)).all():
        msg = f"evidence {key!r}: an entry lies outside [0, 1]."
        raise AuditError(msg)
    return values


def _mean_interval(values: Floats, tail: float) -> tuple[float, float]:
    """Return Student's interval of a mean, ``tail`` of the probability on each side."""
    reach = float(special.stdtrit(values.size - 1, 1 - tail))
    half = reach * float(values.std(ddof=1)) / math.sqrt(values.size)
    mean = float(values.mean())
    return mean - half, mean + half
