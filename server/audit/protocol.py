"""The words of the audit suite: what is claimed, what is attacked, what was found.

An audit attacks a finished adapter and compares what the attack found with the epsilon that the
run claims. It reads canaries through an injected :class:`Scorer` and never trains, so this package
needs neither torch nor a model library. Verdicts are ``violation``, ``consistent`` and
``inconclusive``; there is no word for success, because an attack that fails proves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shared import validate
from shared.errors import AuditError, InvalidValue, TooFewCanaries

Floats: TypeAlias = NDArray[np.float64]
Verdict: TypeAlias = Literal["violation", "consistent", "inconclusive"]

MIN_CANARIES = 8
"""Fewest canaries on either side for any number at all."""


class Scorer(Protocol):
    """Reads texts with the model under audit."""

    def losses(self, texts: Sequence[str], *, adapter: bool) -> Floats:
        """Return the negative log-likelihood of each text.

        Args:
            texts: sequences to read.
            adapter: with the fine-tuned adapter, or with the base model alone.

        Returns:
            Shape ``(len(texts),)``, nats summed over the scored tokens of each sequence.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryTexts:
    """Planted secrets, split by the coins that were flipped before training.

    Args:
        included: canaries that were trained on.
        held_out: canaries from the same generator that the coins kept out of training.
        references: fresh draws of the same generator, never planted, to rank against.
        repeats: copies of an included canary in the data of its client.
        commitment: digest of the coin vector, made before the first round.
        per_client: most canaries that one client could hold. One-run bounds at client level need
            each canary to be a client of its own, so anything above 1 makes them inconclusive.
        independent_coins: whether each canary was included by its own fair coin. False for a
            balanced draw, for which the one-run bound does not hold.
    """

    included: tuple[str, ...]
    held_out: tuple[str, ...]
    references: tuple[str, ...]
    repeats: int
    commitment: str
    per_client: int = 1
    independent_coins: bool = True

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing and texts that sit on two sides.

        Raises:
            InvalidValue: if ``repeats`` or ``per_client`` is not a positive integer, or if one
                text is both included and held out, or both a canary and a reference.
        """
        validate.positive_integer(repeats=self.repeats, per_client=self.per_client)
        planted, kept = set(self.included), set(self.held_out)
        shared = len(planted & kept) + len((planted | kept) & set(self.references))
        if shared:
            msg = (
                f"canaries_on_two_sides={shared}, expected 0: a text is included, held out or a "
                "reference, and only one of these."
            )
            raise InvalidValue(msg, hint="Draw canaries and references without replacement.")

    @property
    def count(self) -> int:
        """Number of canaries whose coin was flipped."""
        return len(self.included) + len(self.held_out)

    def require(self, minimum: int = MIN_CANARIES) -> None:
        """Refuse a split with too few canaries on one side.

        Raises:
            TooFewCanaries: if either side holds fewer than ``minimum``.
        """
        n_in, n_out = len(self.included), len(self.held_out)
        if not min(n_in, n_out) >= minimum:
            msg = f"included={n_in}, held_out={n_out} canaries, expected at least {minimum} each."
            raise TooFewCanaries(msg, hint="Raise audit.canaries; 200 give a first answer.")

    def to_dict(self) -> dict[str, object]:
        """Return counts and commitment, never a text."""
        return {
            "included": len(self.included),
            "held_out": len(self.held_out),
            "references": len(self.references),
            "repeats": self.repeats,
            "per_client": self.per_client,
            "independent_coins": self.independent_coins,
            "commitment": self.commitment,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the run says about itself, and the epsilon that a canary may be held against.

    Args:
        mode: privacy mode of the run.
        epsilon: the claimed epsilon at ``delta``; None if the run claims nothing.
        delta: failure probability of the claim.
        unit: ``"example"`` or ``"client"``.
        neighboring_relation: the relation of the claim.
        epsilon_applicable: the epsilon that covers what planting one copy of a canary changes. A
            record canary inside a client turns that client's update into another one, so under
            ``client-central`` this is the *replace-one-client* epsilon, which is larger than the
            add-or-remove figure. None if nobody computed it: then no bound can contradict the
            claim.
    """

    mode: str
    epsilon: float | None
    delta: float | None
    unit: str | None
    neighboring_relation: str | None
    epsilon_applicable: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that are not a guarantee.

        Raises:
            InvalidValue: for an epsilon that is negative or not finite, a delta outside (0, 1),
                or an epsilon without a delta.
        """
        if self.epsilon is not None:
            validate.non_negative(epsilon=self.epsilon)
        if self.epsilon_applicable is not None:
            validate.non_negative(epsilon_applicable=self.epsilon_applicable)
        if self.delta is not None:
            validate.open_unit(delta=self.delta)
        elif self.epsilon is not None:
            msg = "delta=None, expected a number in (0, 1): epsilon means nothing without delta."
            raise InvalidValue(msg)

    def to_dict(self) -> dict[str, object]:
        """Return the keys of the claim in ``audit.json``."""
        return {
            "mode": self.mode,
            "epsilon_claimed": self.epsilon,
            "epsilon_applicable": self.epsilon_applicable,
            "delta": self.delta,
            "unit": self.unit,
            "neighboring_relation": self.neighboring_relation,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class PositiveControl:
    """The same attack on a run that must leak; without it a null result says nothing.

    Args:
        source: where the control comes from, in words.
        detected: for each audit, whether it found the leak there.
        canaries: number of canaries of the control run.
        repeats: copies of each in the control run.
    """

    source: str
    detected: Mapping[str, bool]
    canaries: int
    repeats: int

    @classmethod
    def from_report(cls, report: Mapping[str, object], *, source: str) -> PositiveControl:
        """Read a control from the ``audit.json`` of the non-private twin of a run.

        Args:
            report: the parsed report of the twin.
            source: what to call the twin in the report of this run.

        Returns:
            The control. An audit that the twin did not run counts as not caught.

        Raises:
            AuditError: if the report lacks its canary counts or claims an epsilon itself.
        """
        counts, findings = report.get("canaries"), report.get("findings")
        if not isinstance(counts, Mapping) or not isinstance(findings, Sequence):
            msg = "the control report has no canaries or findings, expected an audit.json."
            raise AuditError(msg)
        if report.get("epsilon_claimed") is not None:
            msg = "the control run claims an epsilon, expected a run without privacy."
            raise AuditError(msg, hint="Run the same scenario with --set privacy.mode=none.")
        detected = {
            str(finding["audit"]): finding.get("detected") is True
            for finding in findings
            if isinstance(finding, Mapping) and "audit" in finding
        }
        canaries = int(counts.get("included", 0)) + int(counts.get("held_out", 0))
        repeats = int(counts.get("repeats", 0))
        return cls(source=source, detected=detected, canaries=canaries, repeats=repeats)

    def caught(self, audit: str, canaries: CanaryTexts) -> bool | None:
        """Tell whether this audit found the leak in a comparable control.

        Returns:
            None if the control was run with other counts and cannot be compared.
        """
        if (self.canaries, self.repeats) != (canaries.count, canaries.repeats):
            return None
        return self.detected.get(audit, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditContext:
    """Everything an audit may look at.

    Args:
        scorer: the model under audit.
        canaries: the planted secrets.
        claim: what the run says about itself.
        seed: seed of permutations and tie-breaking; has nothing to do with the coins.
        alpha: chance of a false alarm that each test is allowed.
        positive_control: the same attack where it must succeed, if there is one.
    """

    scorer: Scorer
    canaries: CanaryTexts
    claim: Claim
    seed: int
    alpha: float = 0.05
    positive_control: PositiveControl | None = None

    def __post_init__(self) -> None:
        """Refuse an alpha that is not a probability.

        Raises:
            InvalidValue: if alpha is outside (0, 1).
        """
        validate.open_unit(alpha=self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one audit found.

    Args:
        audit: name of the audit.
        verdict: ``violation``, ``consistent`` or ``inconclusive``.
        metric: what ``value`` is.
        value: the measured value; None if nothing could be measured.
        interval: confidence interval of the value at ``1 - alpha``.
        ceiling: the most that ``value`` could have been with this many canaries.
        baseline: the same value for the base model without the adapter, or for the null.
        detected: whether the attack told included from held-out canaries at ``alpha``.
        n_in: number of included canaries.
        n_out: number of held-out canaries.
        alpha: chance of a false alarm of this test.
        positive_control: whether the control was caught; None without a comparable control.
        explanation: the finding in plain words, with the reasons for the verdict.
        details: numbers from which the finding can be recomputed.
    """

    audit: str
    verdict: Verdict
    metric: str
    value: float | None
    interval: tuple[float, float] | None
    ceiling: float | None
    baseline: float | None
    detected: bool | None
    n_in: int
    n_out: int
    alpha: float
    positive_control: bool | None
    explanation: str
    details: Mapping[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "audit": self.audit,
            "verdict": self.verdict,
            "metric": self.metric,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
            "ceiling": self.ceiling,
            "baseline": self.baseline,
            "detected": self.detected,
            "n_in": self.n_in,
            "n_out": self.n_out,
            "alpha": self.alpha,
            "positive_control": self.positive_control,
            "explanation": self.explanation,
            "details": dict(self.details),
        }


class Audit(Protocol):
    """One attack, with what it assumes and what it costs."""

    @property
    def name(self) -> str:
        """Name used in scenarios, reports and on the command line."""

    @property
    def metric(self) -> str:
        """What the value of its finding is."""

    @property
    def threat_model(self) -> str:
        """Who attacks and what they can see."""

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there for it to run."""

    def cost(self, canaries: CanaryTexts) -> str:
        """Say what it will cost, before it runs."""

    def run(self, context: AuditContext) -> Finding:
        """Attack and report.

        Raises:
            AuditError: if the scorer answers nonsense; TooFewCanaries if a side is too small.
        """


def read_losses(scorer: Scorer, texts: Sequence[str], *, adapter: bool) -> Floats:
    """Return the losses of texts, checked.

    Returns:
        Shape ``(len(texts),)``, nats.

    Raises:
        AuditError: if the scorer returns another shape or a value that is not finite.
    """
    losses = np.asarray(scorer.losses(texts, adapter=adapter), dtype=np.float64)
    if losses.shape != (len(texts),):
        msg = f"losses.shape={losses.shape}, expected ({len(texts)},)."
        raise AuditError(msg)
    if not np.isfinite(losses).all():
        bad = int(np.count_nonzero(~np.isfinite(losses)))
        msg = f"{bad} of {len(texts)} losses are not finite, expected finite nats."
        raise AuditError(msg, hint="The adapter has probably diverged; lower the learning rate.")
    return losses


class CachedScorer:
    """Reads each text once however many audits ask for it.

    Args:
        scorer: the scorer that does the work.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[tuple[bool, str], float] = {}

    def losses(self, texts: Sequence[str], *, adapter: bool) -> Floats:
        """Return the losses of texts, reading only those not read before."""
        fresh = list(dict.fromkeys(t for t in texts if (adapter, t) not in self._known))
        if fresh:
            values = read_losses(self._scorer, fresh, adapter=adapter)
            self._known.update(
                ((adapter, text), float(value)) for text, value in zip(fresh, values, strict=True)
            )
        return np.array([self._known[adapter, text] for text in texts], dtype=np.float64)
