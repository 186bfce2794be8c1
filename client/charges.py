"""What one round costs the owner of a device, counted on the device's own terms.

The plan says what is released; the device says at which delta and relation it counts, and what the
server knows. Epsilon of a client is never amplified by the sampling of clients here: the device
knows that the server knows that it takes part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from shared.errors import ConflictingSettings
from shared.privacy.events import NeighboringRelation, PrivacyEvent, PrivacyUnit
from shared.privacy.plan import PrivacyPlan

EXAMPLE = "device/example"
CLIENT = "device/client"
UNPROTECTED = "device/unprotected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the data of one device may spend in one privacy unit.

    Attributes:
        unit: whose presence is hidden: one record, or all records of the device.
        max_epsilon: most that all runs together may spend.
        delta: of every epsilon here.
        neighboring_relation: of every epsilon here.
        min_noise_multiplier: floor under the noise multiplier of a release.
        max_sampling_probability: of a record in a local step (unit example), else ``None``.
    """

    unit: PrivacyUnit
    max_epsilon: float
    delta: float
    neighboring_relation: NeighboringRelation
    min_noise_multiplier: float
    max_sampling_probability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What one answer costs one subject of the device's ledger.

    Attributes:
        subject: :data:`EXAMPLE`, :data:`CLIENT`, or :data:`UNPROTECTED` in mode none.
        plan: the server's plan with the device's delta, relation, cap and knowledge.
        event: what one answer releases at most, part of ``plan``.
        once: whether the event pays for all answers of a run together.
        separation: fewest rounds from one answer of a run to the next.
    """

    subject: str
    plan: PrivacyPlan
    event: PrivacyEvent
    once: bool = False
    separation: int = 1

    def at(self, server_round: int) -> Charge:
        """Return the charge of one round, where rounds have different noise."""
        if self.once:
            return self
        return replace(self, event=self.plan.event_for_participation(server_round))


def example_charge(plan: PrivacyPlan, budget: Budget) -> Charge:
    """Return what a participation in DP-SGD costs one record.

    The sampling of records is this device's own and secret, so its amplification counts.

    Args:
        plan: of mode example.
        budget: the owner's, of unit example.
    """
    own = replace(
        plan,
        delta=budget.delta,
        cap=budget.max_epsilon,
        neighboring_relation=budget.neighboring_relation,
    )
    return Charge(subject=EXAMPLE, plan=own, event=own.event_for_participation())


def client_charge(plan: PrivacyPlan, budget: Budget, *, honest_fraction: float) -> Charge:
    """Return what a participation costs all records of the device together.

    Against whoever knows that the device took part: the event is not amplified. In mode
    ``client-central`` the noise is the server's, so the figure holds against everybody but the
    server. In mode ``client-distributed`` only the noise that the server cannot know counts, with
    the owner's own belief about how many clients help it.

    Args:
        plan: of a client mode.
        budget: the owner's, of unit client.
        honest_fraction: share of a cohort that the owner trusts not to help the server (mode
            client-distributed).

    Raises:
        ConflictingSettings: if no noise is left that the server does not know.
    """
    own = replace(
        plan,
        example=None,
        sampling_probability=1.0,
        delta=budget.delta,
        cap=budget.max_epsilon,
        neighboring_relation=budget.neighboring_relation,
    )
    if own.distributed is not None and own.noise_multiplier is not None:
        fraction = min(own.distributed.honest_fraction, honest_fraction)
        terms = replace(own.distributed, honest_fraction=fraction)
        hidden = own.noise_multiplier * math.sqrt(terms.hidden_share)
        own = replace(own, distributed=terms, noise_multiplier=hidden)
    if own.correlated is not None:
        return Charge(
            subject=CLIENT,
            plan=own,
            event=own.event_for_participation(),
            once=True,
            separation=own.correlated.min_separation,
        )
    return Charge(subject=CLIENT, plan=own, event=own.event_for_participation())


def unprotected_charge(plan: PrivacyPlan) -> Charge:
    """Return the mark that an answer of mode none leaves in the device's ledger.

    Raises:
        ConflictingSettings: in another mode.
    """
    if plan.mode != "none":
        msg = f"mode={plan.mode!r} is not without protection."
        raise ConflictingSettings(msg)
    return Charge(subject=UNPROTECTED, plan=plan, event=plan.event_for_participation())
