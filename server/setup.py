"""What a run is, fixed before its first round, and who is told about its rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.config import RunConfig
from shared.lora import AdapterSpec, Vector
from shared.privacy.plan import PrivacyPlan
from shared.privacy.secagg.keys import Roster


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """Everything a run is, fixed before its first round.

    Attributes:
        run_id: names the run in the ledger.
        config: the scenario.
        plan: the privacy plan made from it.
        spec: names and shapes of the adapter.
        population: number of clients.
        folder: where checkpoints go.
        start: trained factors of an earlier adapter that the run goes on from; None for its own.
        roster: identity keys of all clients (mode client-distributed), else None.
    """

    run_id: str
    config: RunConfig
    plan: PrivacyPlan
    spec: AdapterSpec
    population: int
    folder: Path
    roster: Roster | None = None
    start: Vector | None = None


class NodeDirectory(Protocol):
    """Knows which client each node speaks for, without asking the node."""

    def clients_of(self, nodes: Sequence[int]) -> Mapping[int, int]:
        """Return client by node, of the nodes that are enrolled and not shut out."""

    def flag(self, client: int, code: str) -> None:
        """Note that a client sent something it should not have; ``code`` is an error's code."""


class RoundObserver(Protocol):
    """Is told what happens; decides nothing."""

    def started(self, server_round: int, cohort: int) -> None:
        """A round begins with so many clients."""

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """One more client of the round answered."""

    def finished(self, record: Mapping[str, Any]) -> None:
        """A round is over, checkpointed and charged."""
