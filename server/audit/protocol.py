"""The words of the audit suite: what is claimed, what is attacked, what was found.

An audit attacks a finished adapter, or the run that made it, and compares what it found with the
epsilon that the run claims. It works in two halves. :meth:`Audit.measure` looks at artefacts (a
model, a ledger, releases, one client's update) and returns *evidence*: counts and scores, never a
text. :meth:`Audit.conclude` turns evidence into a finding, and is a pure function, so that anybody
can repeat it later from the report alone (``fedslm audit verify``).

Verdicts are ``violation``, ``consistent`` and ``inconclusive``; there is no word for success,
because an attack that fails proves little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared import validate
from shared.errors import InvalidValue, MissingArtefact

Floats: TypeAlias = NDArray[np.float64]
Evidence: TypeAlias = Mapping[str, Any]
Verdict: TypeAlias = Literal["violation", "consistent", "inconclusive"]
Effort: TypeAlias = Literal["smoke", "release", "extended"]
Strength: TypeAlias = Literal["certified", "parametric", "conformance", "descriptive"]

T = TypeVar("T")

VERDICTS: tuple[Verdict, ...] = ("consistent", "violation", "inconclusive")
ALPHA = 0.05
"""Chance of a false violation that an audit is allowed, all its tests together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the run says about itself, and the epsilon that a canary may be held against.

    Args:
        mode: privacy mode of the run.
        epsilon: the claimed epsilon at ``delta``; None if the run claims nothing.
        delta: failure probability of the claim.
        unit: ``"example"`` or ``"client"``.
        neighboring_relation: the relation of the claim.
        epsilon_applicable: the epsilon that covers what planting one copy of a record canary
            changes. A record canary inside a client turns that client's update into another one, so
            under ``client-central`` this is the *replace-one-client* epsilon, which is larger than
            the add-or-remove figure. None if nobody computed it: then no bound on record canaries
            can contradict the claim.
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
        """Return the keys of the claim in a report."""
        return {
            "mode": self.mode,
            "epsilon_claimed": self.epsilon,
            "epsilon_applicable": self.epsilon_applicable,
            "delta": self.delta,
            "unit": self.unit,
            "neighboring_relation": self.neighboring_relation,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Claim:
        """Read the keys of a claim from a report.

        Raises:
            InvalidValue: if they are not a claim; KeyError and TypeError do not escape.
        """
        try:
            return cls(
                mode=str(data["mode"]),
                epsilon=data["epsilon_claimed"],
                delta=data["delta"],
                unit=data["unit"],
                neighboring_relation=data["neighboring_relation"],
                epsilon_applicable=data["epsilon_applicable"],
            )
        except (KeyError, TypeError) as error:
            msg = "the report's claim lacks a key or has a wrong type."
            raise InvalidValue(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """The same audit where it must succeed; without it a null result says nothing.

    Args:
        source: where the control comes from, in words ("the non-private twin of this run").
        detected: whether the attack worked there; None if it could not be run there.
        comparable: whether the control had as many canaries, as often repeated.
        value: the metric in the control, for showing both side by side.
        interval: its confidence interval, if it has one.
    """

    source: str
    detected: bool | None
    comparable: bool = True
    value: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def caught(self) -> bool | None:
        """Whether the control was caught; None where it cannot be compared."""
        return self.detected if self.comparable else None

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "source": self.source,
            "detected": self.detected,
            "comparable": self.comparable,
            "value": self.value,
            "interval": None if self.interval is None else list(self.interval),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Control:
        """Read the JSON form.

        Raises:
            InvalidValue: if a key is missing or has a wrong type.
        """
        try:
            interval = data["interval"]
            return cls(
                source=str(data["source"]),
                detected=data["detected"],
                comparable=bool(data["comparable"]),
                value=data["value"],
                interval=None if interval is None else (float(interval[0]), float(interval[1])),
            )
        except (KeyError, TypeError, ValueError) as error:
            msg = "a control of the report lacks a key or has a wrong type."
            raise InvalidValue(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a conclusion may use besides the evidence; all of it stands in the report.

    Args:
        claim: what the run says about itself.
        alpha: chance of a false alarm that the audit is allowed, all its tests together.
        seed: seed of permutations, bootstraps and tie-breaking; nothing to do with the coins.
        control: the same audit where it must succeed, if there is one.
    """

    claim: Claim
    seed: int
    alpha: float = ALPHA
    control: Control | None = None

    def __post_init__(self) -> None:
        """Refuse an alpha that is not a probability.

        Raises:
            InvalidValue: if alpha is outside (0, 1).
        """
        validate.open_unit(alpha=self.alpha)


class AuditContext:
    """Everything an audit may look at: artefacts, each found by its type.

    Args:
        claim: what the run says about itself.
        seed: seed of whatever an audit draws.
        effort: how much work the profile asks for.
        artefacts: models, canaries, ledgers and so on; at most one of each type. A class is found
            under itself and under every class that it derives from.
    """

    def __init__(
        self,
        *,
        claim: Claim,
        seed: int,
        effort: Effort = "smoke",
        artefacts: Sequence[object] = (),
    ) -> None:
        self.claim = claim
        self.seed = seed
        self.effort: Effort = effort
        self._artefacts = tuple(artefacts)

    def find(self, kind: type[T]) -> T | None:
        """Return the artefact of a type, or None."""
        for artefact in self._artefacts:
            if isinstance(artefact, kind):
                return artefact
        return None

    def need(self, kind: type[T]) -> T:
        """Return the artefact of a type.

        Raises:
            MissingArtefact: if there is none; the message is the first line of its docstring.
        """
        found = self.find(kind)
        if found is None:
            what = (kind.__doc__ or kind.__name__).strip().splitlines()[0].rstrip(".")
            msg = f"This audit needs what is not here ({kind.__name__}): {what}."
            raise MissingArtefact(msg)
        return found

    def plus(self, *artefacts: object) -> AuditContext:
        """Return a context with further artefacts, which come before the known ones."""
        return AuditContext(
            claim=self.claim,
            seed=self.seed,
            effort=self.effort,
            artefacts=(*artefacts, *self._artefacts),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one audit found.

    Args:
        audit: name of the audit.
        verdict: ``violation``, ``consistent`` or ``inconclusive``.
        strength: what kind of statement the value is: ``certified`` (holds at ``1 - alpha``
            whatever the mechanism), ``parametric`` (assumes a Gaussian trade-off curve),
            ``conformance`` (a test of what ran against what was declared) or ``descriptive``
            (an attack's success, which bounds nothing).
        metric: what ``value`` is.
        value: the measured value; None if nothing could be measured.
        interval: confidence interval of the value at ``1 - alpha``.
        ceiling: the most that ``value`` could have been with this much evidence.
        baseline: the same value for the base model without the adapter, or for the null.
        detected: whether the attack worked (told members from others, found a secret, saw noise
            missing) at ``alpha``.
        n_in: number of included canaries, members, or trials.
        n_out: number of held-out canaries or non-members.
        alpha: chance of a false alarm of this audit.
        positive_control: whether the control was caught; None without a comparable control.
        explanation: the finding in plain words, with the reasons for the verdict.
        evidence: numbers from which the finding can be concluded again; no text, no prompt.
    """

    audit: str
    verdict: Verdict
    strength: Strength
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
    evidence: Evidence = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "audit": self.audit,
            "verdict": self.verdict,
            "strength": self.strength,
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
            "evidence": dict(self.evidence),
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
        """What must be there for it to run, in words."""

    def cost(self, context: AuditContext) -> str:
        """Say what it will cost, before it runs; never raises."""

    def measure(self, context: AuditContext) -> dict[str, Any]:
        """Attack, and return evidence: JSON values, no text, no prompt, no tensor.

        Raises:
            AuditError: if an artefact is missing or answers nonsense.
        """

    def conclude(self, evidence: Evidence, terms: Terms) -> Finding:
        """Turn evidence into a finding; a pure function, the same for ever.

        Raises:
            AuditError: if the evidence is malformed.
        """
