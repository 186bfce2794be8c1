"""Which methods each port serves, to whom, and at what price."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from server.control.budgets import Budgets
from server.control.guard import Endpoint
from server.control.health import CHECK, HEALTH, REFLECTION, Health, reflection_endpoint
from server.control.identity import Caller
from server.control.runstates import RunStates
from server.control.services.budget import BudgetService
from server.control.services.enrolment import Announced, Certifier
from server.control.services.fleet import FleetService
from server.control.services.registry import Adapters, RegistryService
from server.control.services.runs import RunsService
from server.control.settings import ControlSettings
from server.fleetdb import FleetDatabase
from shared.control.methods import ENROLMENT, METHODS
from shared.enrolment import Role
from shared.errors import FedSLMError
from shared.pki import Authority

Roles = frozenset[Role]
EVERYONE: Final[Roles] = frozenset({"node", "viewer", "operator"})
STAFF: Final[Roles] = frozenset({"viewer", "operator"})
OPERATORS: Final[Roles] = frozenset({"operator"})
# On the enrolment port nobody is known yet.
NOBODY: Final[Roles] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the service reads and writes.

    Attributes:
        fleet: the fleet.
        authority: issues certificates.
        adapters: the registry.
        budgets: the ledger.
        runs: the run folders.
        announced: what devices are told at enrolment.
    """

    fleet: FleetDatabase
    authority: Authority
    adapters: Adapters
    budgets: Budgets
    runs: RunStates
    announced: Announced

    def good(self) -> bool:
        """Tell whether the fleet can be read, without which nothing can be answered."""
        try:
            self.fleet.node_by_key(b"health")
        except (FedSLMError, sqlite3.Error):
            return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One method with who may call it.

    Attributes:
        roles: who.
        call: what it does.
        cost: what it counts for in the limit of calls a minute.
    """

    roles: Roles
    call: Callable[[Any, Caller], Message | Iterable[Message]]
    cost: float = 1.0


def for_certificates(held: Holdings, settings: ControlSettings) -> list[Endpoint]:
    """Return what the control port serves."""
    certifier = Certifier(held.fleet, held.authority, settings, held.announced)
    registry, runs = RegistryService(held.adapters), RunsService(held.runs)
    budget = BudgetService(held.budgets, held.fleet)
    fleet = FleetService(held.fleet, settings, fingerprint=held.authority.fingerprint)
    bound = {
        "Certificates.Renew": Binding(roles=EVERYONE, call=certifier.renew, cost=10),
        "Certificates.Leave": Binding(roles=EVERYONE, call=certifier.leave),
        "Registry.ListAdapters": Binding(roles=EVERYONE, call=registry.list_adapters),
        "Registry.GetManifest": Binding(roles=EVERYONE, call=registry.get_manifest),
        "Registry.GetOrder": Binding(roles=EVERYONE, call=registry.get_order),
        "Registry.Download": Binding(roles=EVERYONE, call=registry.download, cost=2),
        "Budget.GetOwn": Binding(roles=EVERYONE, call=budget.get_own, cost=2),
        "Budget.GetNode": Binding(roles=EVERYONE, call=budget.get_node, cost=2),
        "Budget.ListBudgets": Binding(roles=STAFF, call=budget.list_budgets, cost=5),
        "Runs.ListRuns": Binding(roles=EVERYONE, call=runs.list_runs),
        "Runs.GetRun": Binding(roles=EVERYONE, call=runs.get_run),
        "Runs.GetAudit": Binding(roles=EVERYONE, call=runs.get_audit, cost=2),
        "Fleet.ListNodes": Binding(roles=STAFF, call=fleet.list_nodes, cost=2),
        "Fleet.Revoke": Binding(roles=OPERATORS, call=fleet.revoke),
        "Fleet.NewToken": Binding(roles=OPERATORS, call=fleet.new_token, cost=5),
    }
    served = [_endpoint(name, binding, settings) for name, binding in bound.items()]
    services = sorted({endpoint.method.service for endpoint in served})
    return [*served, *_common(services, EVERYONE, STAFF, held, settings)]


def for_tokens(held: Holdings, settings: ControlSettings) -> list[Endpoint]:
    """Return what the enrolment port serves: to nobody known, and next to nothing."""
    certifier = Certifier(held.fleet, held.authority, settings, held.announced)
    enroll = Binding(roles=NOBODY, call=certifier.enroll)
    served = [_endpoint("Enrolment.Enroll", enroll, settings)]
    return [*served, *_common([ENROLMENT], NOBODY, NOBODY, held, settings)]


def _endpoint(name: str, binding: Binding, settings: ControlSettings) -> Endpoint:
    """Bind one method of the interface."""
    method = METHODS[name]
    return Endpoint(
        method=method,
        roles=binding.roles,
        call=binding.call,
        seconds=settings.stream_seconds if method.streaming else settings.call_seconds,
        cost=binding.cost,
    )


def _common(
    services: list[str],
    everyone: Roles,
    reflected_to: Roles,
    held: Holdings,
    settings: ControlSettings,
) -> list[Endpoint]:
    """Return health, and reflection where somebody may ask for it."""
    health = Health([*services, HEALTH], held.good)
    seconds = settings.call_seconds
    found = [Endpoint(method=CHECK, roles=everyone, call=health.check, seconds=seconds)]
    reflection = reflection_endpoint([*services, HEALTH, REFLECTION]) if reflected_to else None
    if reflection is not None:
        method, call = reflection
        found.append(
            Endpoint(method=method, roles=reflected_to, call=call, seconds=seconds, many=True)
        )
    return found
