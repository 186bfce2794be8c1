"""What the owner of a device allows, whatever a server asks for.

Read from a file of the owner's, never from a message. What a round costs is counted on the
device's own terms (:mod:`client.charges`), and what was spent is kept by the device itself
(:mod:`client.state`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.charges import (
    Budget,
    Charge,
    client_charge,
    example_charge,
    unprotected_charge,
)
from client.policyfile import BudgetSection, ExampleSection, PolicyFile, read_policy_file
from shared.config import RunConfig
from shared.errors import ConflictingSettings, PolicyRefused
from shared.privacy.accountant import relation_of
from shared.privacy.events import PrivacyUnit
from shared.privacy.noise import SEEDED
from shared.privacy.plan import PrivacyPlan

_ABSURD = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureAggregationLimits:
    """What mode client-distributed asks of the other clients.

    Attributes:
        roster: the file of enrolled clients; only they may be in a cohort.
        roster_digest: SHA-256 of that file, or ``None``.
        min_cohort: fewest clients in a round.
        honest_fraction: share of any cohort that the owner trusts not to help the server.
    """

    roster: Path
    roster_digest: str | None
    min_cohort: int
    honest_fraction: float

    def read_roster(self) -> bytes:
        """Return the contents of the roster.

        Raises:
            PolicyRefused: if it is missing or not the one that the policy names.
        """
        try:
            contents = self.roster.read_bytes()
        except OSError as error:
            msg = f"The roster {self.roster.name} cannot be read ({error.strerror})."
            raise PolicyRefused(msg, hint="Mode client-distributed needs it.") from error
        if self.roster_digest not in {None, hashlib.sha256(contents).hexdigest()}:
            msg = f"The roster {self.roster.name} is not the one that the policy names."
            raise PolicyRefused(msg, hint="Compare secure_aggregation.roster_digest.")
        return contents


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One reason to refuse: the limit, what was found, what is allowed."""

    limit: str
    found: str
    allowed: str

    def __str__(self) -> str:
        """Return the reason in one clause."""
        return f"{self.limit}: found {self.found}, allowed {self.allowed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPolicy:
    """The limits of one device.

    Attributes:
        modes: privacy modes the owner accepts; ``"none"`` only if it is named, and then alone.
        base_models: digests of the base models that may be trained on.
        aggregation: aggregation policies accepted.
        max_rounds: most rounds of one run.
        max_repeats: how often one round may be answered again, each time charged in full.
        example: budget of one record; ``None`` where the modes do not protect records.
        client: budget of all records together; ``None`` where they do not protect clients. With
            both, every plan must protect both.
        server_key: the key that signs the server's ledger, or ``None`` to trust the first one seen.
        seeded_noise: whether noise that the server knows is accepted (a rehearsal).
        votes: whether a plan may ask for votes by held-out records.
        secure_aggregation: what mode ``client-distributed`` needs, else ``None``.
        asynchronous: whether rounds are accepted in which the time of an answer decides where it is
            counted.
    """

    modes: frozenset[str]
    base_models: frozenset[str]
    aggregation: frozenset[str]
    max_rounds: int
    max_repeats: int = 0
    example: Budget | None = None
    client: Budget | None = None
    server_key: str | None = None
    seeded_noise: bool = False
    votes: bool = False
    secure_aggregation: SecureAggregationLimits | None = None
    asynchronous: bool = False

    @classmethod
    def load(cls, path: Path) -> ClientPolicy:
        """Read a policy file.

        Raises:
            PolicyRefused: if there is none; a device without a policy takes part in nothing.
            ConfigError: naming every problem of the file.
        """
        file = read_policy_file(path)
        return cls(
            modes=frozenset(file.modes),
            base_models=frozenset(file.base_models),
            aggregation=frozenset(file.aggregation),
            max_rounds=file.max_rounds,
            max_repeats=file.max_repeats,
            example=_budget(file.example, PrivacyUnit.EXAMPLE),
            client=_budget(file.client, PrivacyUnit.CLIENT),
            server_key=file.server_key,
            seeded_noise=file.seeded_noise,
            votes=file.votes,
            secure_aggregation=_secure_aggregation(file, path.parent),
            asynchronous=file.asynchronous,
        )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """Return the budgets that the owner set."""
        return tuple(budget for budget in (self.example, self.client) if budget is not None)

    def check(self, plan: PrivacyPlan, config: RunConfig, *, base_digest: str) -> None:
        """Refuse a run that the owner does not allow.

        Args:
            plan: what the server says it will release.
            config: the scenario.
            base_digest: of the base model on this device.

        Raises:
            PolicyRefused: naming every limit, what was found and what is allowed.
        """
        reasons = self.refusals(plan, config, base_digest=base_digest)
        if reasons:
            msg = f"This device's policy refuses the run; {'; '.join(map(str, reasons))}."
            raise PolicyRefused(msg, hint="Only the owner of the device may change its policy.")

    def refusals(
        self, plan: PrivacyPlan, config: RunConfig, *, base_digest: str | None
    ) -> tuple[Refusal, ...]:
        """Return every reason to refuse a run; none means that the device would take part.

        Args:
            plan: what the server says it will release.
            config: the scenario.
            base_digest: of the base model, or ``None`` where it is not known yet.
        """
        cheap = [*self._run_refusals(plan, config, base_digest), *self._noise_refusals(plan)]
        # Epsilon of absurd numbers is expensive, and they are refused already.
        return tuple(cheap or self._epsilon_refusals(plan))

    def charges(self, plan: PrivacyPlan) -> tuple[Charge, ...]:
        """Return what one answer under a plan costs; one charge per privacy unit.

        Raises:
            PolicyRefused: if the plan does not protect each unit that the policy has a budget for.
            ConflictingSettings: if no noise is left that the server does not know.
        """
        if plan.mode == "none":
            return (unprotected_charge(plan),)
        charges: list[Charge] = []
        for unit, inner in _protected(plan).items():
            budget = self.example if unit is PrivacyUnit.EXAMPLE else self.client
            if budget is not None and unit is PrivacyUnit.EXAMPLE:
                charges.append(example_charge(inner, budget))
            elif budget is not None:
                charges.append(client_charge(inner, budget, honest_fraction=self._honest))
        if len(charges) != len(self.budgets) or not charges:
            units = ", ".join(map(str, _protected(plan)))
            msg = f"The plan protects {units}; the policy has other budgets."
            raise PolicyRefused(msg)
        return tuple(charges)

    @property
    def _honest(self) -> float:
        """Return the share of clients that the owner trusts."""
        return 1.0 if self.secure_aggregation is None else self.secure_aggregation.honest_fraction

    def _run_refusals(
        self, plan: PrivacyPlan, config: RunConfig, base_digest: str | None
    ) -> Iterator[Refusal]:
        """Yield what is wrong with the run itself."""
        if config.attack.used:
            yield _refusal("attack", repr(config.attack.kind), "'none': attackers are simulated")
        if config.buffer.used and not self.asynchronous:
            yield _refusal("buffer.size", str(config.buffer.size), "only with asynchronous = true")
        if plan.mode not in self.modes:
            yield _refusal("mode", repr(plan.mode), _words(self.modes))
        if base_digest is not None and base_digest not in self.base_models:
            short = ", ".join(sorted(digest[:12] for digest in self.base_models))
            yield _refusal("base model", base_digest[:12], short)
        if config.policy not in self.aggregation:
            yield _refusal("aggregation", repr(config.policy), _words(self.aggregation))
        if not plan.rounds <= self.max_rounds:
            yield _refusal("rounds", str(plan.rounds), f"at most {self.max_rounds}")
        seeded = any(part.noise_source == SEEDED for part in _protected(plan).values())
        if seeded and not self.seeded_noise:
            yield _refusal("noise_source", f"{SEEDED!r}, which the server knows", "'os-entropy'")
        if plan.vote is not None and not self.votes:
            yield _refusal("votes", f"one in {plan.vote.every} rounds", "none")
        if plan.distributed is not None and self.secure_aggregation is not None:
            found, least = plan.distributed.min_cohort, self.secure_aggregation.min_cohort
            if not found >= least:
                yield _refusal("min_cohort", str(found), f"at least {least}")

    def _noise_refusals(self, plan: PrivacyPlan) -> Iterator[Refusal]:
        """Yield what is wrong with units, relations, noise and sampling."""
        protected = _protected(plan)
        if plan.mode == "none" or plan.mode not in self.modes:
            return
        for budget in self.budgets:
            name = str(budget.unit)
            inner = protected.get(budget.unit)
            if inner is None:
                units = ", ".join(map(str, protected))
                yield _refusal("privacy_unit", units, f"plans that protect the {name}")
                continue
            relation = inner.neighboring_relation
            if relation != budget.neighboring_relation:
                expected = repr(str(budget.neighboring_relation))
                yield _refusal(f"{name}.neighboring_relation", repr(str(relation)), expected)
            yield from self._floor(inner, budget)
            most = budget.max_sampling_probability
            if most is not None and not inner.sampling_probability <= most:
                found = f"{inner.sampling_probability:g}"
                yield _refusal(f"{name}.sampling_probability", found, f"at most {most:g}")

    def _floor(self, plan: PrivacyPlan, budget: Budget) -> Iterator[Refusal]:
        """Yield that there is too little noise of the kind that counts for a budget."""
        limit, floor = (
            f"{budget.unit}.noise_multiplier",
            f"at least {budget.min_noise_multiplier:g}",
        )
        noise = plan.least_noise_multiplier
        if budget.unit is PrivacyUnit.CLIENT:
            try:
                charge = client_charge(plan, budget, honest_fraction=self._honest)
            except ConflictingSettings:
                yield _refusal(limit, "none that the server does not know", floor)
                return
            noise = charge.plan.least_noise_multiplier
        if noise is None or not noise >= budget.min_noise_multiplier:
            yield _refusal(limit, f"{noise or 0.0:g}", floor)

    def _epsilon_refusals(self, plan: PrivacyPlan) -> Iterator[Refusal]:
        """Yield what the whole plan would spend beyond the budgets."""
        if plan.mode == "none":
            return
        for charge in self.charges(plan):
            most = charge.plan.cap or 0.0
            spends = charge.plan.epsilon(accountant="rdp")
            # The quick bound is loose, but not that loose; the exact figure of an absurd number of
            # steps would take minutes, which a server could ask for again and again.
            if spends <= _ABSURD * (1.0 + most):
                spends = charge.plan.epsilon()
            if not spends <= most:
                unit = charge.plan.unit
                found = f"{spends:.4g} for the whole run"
                allowed = f"at most {most:g} at delta {charge.plan.delta:g}"
                yield _refusal(f"{unit}.epsilon", found, allowed)


def _protected(plan: PrivacyPlan) -> dict[PrivacyUnit, PrivacyPlan]:
    """Return the units that a plan protects, each with the part that does it."""
    found = {} if plan.unit is None else {plan.unit: plan}
    if plan.example is not None:
        found[PrivacyUnit.EXAMPLE] = plan.example
    return found


def _budget(section: BudgetSection | None, unit: PrivacyUnit) -> Budget | None:
    """Turn a section of the file into a budget."""
    if section is None:
        return None
    most = section.max_sampling_probability if isinstance(section, ExampleSection) else None
    return Budget(
        unit=unit,
        max_epsilon=section.max_epsilon,
        delta=section.delta,
        neighboring_relation=relation_of(section.neighboring_relation),
        min_noise_multiplier=section.min_noise_multiplier,
        max_sampling_probability=most,
    )


def _secure_aggregation(file: PolicyFile, folder: Path) -> SecureAggregationLimits | None:
    """Turn the section of the file into limits; the roster lies beside the file."""
    section = file.secure_aggregation
    if section is None:
        return None
    return SecureAggregationLimits(
        roster=folder / section.roster,
        roster_digest=section.roster_digest,
        min_cohort=section.min_cohort,
        honest_fraction=section.honest_fraction,
    )


def _refusal(limit: str, found: str, allowed: str) -> Refusal:
    """Make a reason."""
    return Refusal(limit=limit, found=found, allowed=allowed)


def _words(words: frozenset[str]) -> str:
    """List words for a message."""
    return ", ".join(repr(word) for word in sorted(words))
