"""The runtime of a device with torch: it asks the owner's policy and memory before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.guarding import Guarded
from client.runtime import ClientRuntime, ClientSource, Keyring

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.policy import ClientPolicy
    from shared.config import RunConfig
    from shared.privacy.plan import PrivacyPlan


class GuardedRuntime(Guarded, ClientRuntime):
    """A runtime that answers a round once, within the owner's budgets, to an honest ledger.

    Guarantee:
        Before a private record is touched, the instruction belongs to the plan that the policy was
        checked against, the head of the server's ledger is not older than the last one seen, the
        round was not answered before, and its cost is on the device's disk. A round that fails
        afterwards stays charged.

    Args:
        config: the scenario.
        plan: the privacy plan, already checked against policy and scenario.
        model: the frozen base with its adapter.
        source: where records come from.
        policy: the owner's limits.
        state: the device's state folder.
        keyring: identity and roster, for client-distributed.
    """

    def __init__(
        self,
        *,
        config: RunConfig,
        plan: PrivacyPlan,
        model: AdaptedModel,
        source: ClientSource,
        policy: ClientPolicy,
        state: Path,
        keyring: Keyring | None = None,
    ) -> None:
        super().__init__(config=config, plan=plan, model=model, source=source, keyring=keyring)
        self.guard_by(policy, state)
