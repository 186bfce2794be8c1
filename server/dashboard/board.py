"""Everything that the pages draw from: one object for one server folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from server.dashboard.budget import Account, Budget, Chain
from server.dashboard.controls import Controls
from server.dashboard.files import FileCache
from server.dashboard.fleetview import Node, nodes_of
from server.dashboard.forms import Seal
from server.dashboard.health import Health, read_health
from server.dashboard.runs import Runs
from server.dashboard.sessions import Brake, Sessions
from server.dashboard.store import USERS, UserFile
from server.dashboard.users import STRONG, Cost, UserStore
from server.fleetdb import FleetDatabase
from server.fleetruns import FleetRuns
from server.home import ServerHome

if TYPE_CHECKING:
    from server.registry import AdapterRegistry


class Board:
    """What the dashboard of one server knows and may do.

    Args:
        home: the server's folder.
        controls: starts runs.
        cost: of password hashes.
    """

    def __init__(self, home: ServerHome, *, controls: Controls, cost: Cost = STRONG) -> None:
        file = UserFile(home.path / USERS)
        self.home = home
        self.controls = controls
        self.users = UserStore(file, cost=cost)
        self.sessions = Sessions(file)
        self.brake = Brake(file)
        self.seal = Seal(home.read_secret(home.session_key))
        self.fleet = FleetDatabase(home.fleet_database)
        self.orders = FleetRuns(home)
        self.runs = Runs(home.runs, FileCache())
        self.budget = Budget(home.ledger, self._ledger_key)
        # One password at a time: a hash takes 128 MiB, and a crowd of logins must not take more.
        self.hashing = threading.BoundedSemaphore(1)

    @cached_property
    def registry(self) -> AdapterRegistry:
        """Return the adapter registry, opened when first asked for."""
        from server.registry import AdapterRegistry
        from shared.crypto import SigningKey
        from shared.sealingkeys import sealer_from_environment

        key = SigningKey.load_or_create(self.home.adapter_key)
        sealer = sealer_from_environment(os.environ)
        return AdapterRegistry(self.home.adapters, signer=key, sealer=sealer)

    def nodes(self, now: float) -> list[Node]:
        """Return every enrolled device, revoked ones last; people are left out."""
        return [node for node in nodes_of(self.fleet, now=now) if node.role == "node"]

    def people(self, now: float) -> list[Node]:
        """Return everybody else with a certificate."""
        return [node for node in nodes_of(self.fleet, now=now) if node.role != "node"]

    def accounts(self) -> tuple[Account, ...]:
        """Return every account of the ledger with the names of nodes."""
        return self.budget.accounts(self._clients())

    def chain(self) -> Chain:
        """Return whether the ledger verifies."""
        return self.budget.chain()

    def health(self) -> Health:
        """Return how the server's processes are."""
        return read_health(self.home)

    def _clients(self) -> Mapping[int, str]:
        """Return the node that speaks for each client, the one in force before revoked ones."""
        found: dict[int, str] = {}
        for entry in sorted(self.fleet.nodes(), key=lambda node: node.revoked_at is None):
            if entry.client_index is not None:
                found[entry.client_index] = entry.name
        return found

    def _ledger_key(self) -> str | None:
        """Return the public key that signs the ledger, if the server has one."""
        from shared.privacy.ledger_signing import LedgerSigner

        if not self.home.ledger_key.exists():
            return None
        return LedgerSigner.load_or_create(self.home.ledger_key).public_key
