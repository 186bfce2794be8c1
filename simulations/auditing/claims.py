"""What a run claims, as its summary states it, and the epsilon that a planted record is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.audit.protocol import Claim
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import NeighboringRelation
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import CLIENT_MODES


def claim_of(privacy: Mapping[str, Any], plan: PrivacyPlan) -> Claim:
    """Return the claim of a run's summary, and the epsilon that one planted record is held against.

    A planted record turns its client's update into another one: in the client modes that is the
    replace-one-client relation, whatever relation the claim itself is under. Where local steps are
    DP-SGD as well, a planted record is an example, and the smaller of the two figures holds if both
    are at one delta.

    Args:
        privacy: the ``privacy`` object of ``summary.json``.
        plan: the frozen plan.
    """
    epsilon, delta = privacy.get("epsilon"), privacy.get("delta")
    mode = str(privacy.get("mode", plan.mode))
    if epsilon is None or delta is None:
        return Claim(mode=mode, epsilon=None, delta=None, unit=None, neighboring_relation=None)
    applicable = float(epsilon)
    releases = int(privacy.get("releases", 0))
    if plan.mode in CLIENT_MODES and releases > 0:
        events = plan.dearest_events(releases)
        replaced = epsilon_of(events, delta=delta, relation=NeighboringRelation.REPLACE_ONE)
        applicable = max(applicable, replaced)
    inner = privacy.get("example")
    if isinstance(inner, Mapping) and inner.get("delta") == delta:
        applicable = min(applicable, float(inner["epsilon"]))
    return Claim(
        mode=mode,
        epsilon=float(epsilon),
        delta=float(delta),
        unit=str(privacy["unit"]),
        neighboring_relation=str(privacy["neighboring_relation"]),
        epsilon_applicable=applicable,
    )
