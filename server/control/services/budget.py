"""What was spent: a node sees itself and the population, viewers and operators see everyone."""

from __future__ import annotations

from server.control.budgets import BudgetReading, Budgets, finite, scope_label
from server.control.identity import Caller
from server.control.refusals import NotThere
from server.control.requests import page_size
from server.fleetdb import FleetDatabase
from shared.control.fedslm.control.v1 import control_pb2 as pb
from shared.enrolment import require_name
from shared.errors import AccessDenied
from shared.privacy.ledger_signing import SignedHead
from shared.privacy.ledger_state import Spent

CHARGES = 200
_MAX_PAGE = 20


class BudgetService:
    """The service ``Budget``.

    Args:
        budgets: the ledger.
        fleet: the fleet, which says which client a node is.
    """

    def __init__(self, budgets: Budgets, fleet: FleetDatabase) -> None:
        self._budgets = budgets
        self._fleet = fleet

    def get_own(self, request: pb.GetOwnRequest, caller: Caller) -> pb.GetOwnResponse:
        """Return what was spent about the caller."""
        del request
        reading = self._budgets.of_client(caller.client_index, charges=CHARGES)
        return pb.GetOwnResponse(
            name=caller.name,
            client_index=caller.client_index,
            statements=_statements(reading),
            head=_head(reading),
            charges=_charges(reading),
            more_charges=reading.more_charges,
        )

    def get_node(self, request: pb.GetNodeRequest, caller: Caller) -> pb.GetNodeResponse:
        """Return what was spent about a node.

        Raises:
            AccessDenied: if a node asks for another; it is not told whether that one exists.
            NotThere: if nobody was enrolled under the name.
        """
        if caller.role == "node" and request.name != caller.name:
            msg = "a node sees its own budget only."
            raise AccessDenied(msg)
        entry = self._fleet.node_by_name(require_name(request.name))
        if entry is None:
            msg = "nobody was enrolled under this name."
            raise NotThere(msg)
        reading = self._budgets.of_client(entry.client_index, charges=CHARGES)
        return pb.GetNodeResponse(
            name=entry.name,
            client_index=entry.client_index,
            statements=_statements(reading),
            head=_head(reading),
            charges=_charges(reading),
            more_charges=reading.more_charges,
        )

    def list_budgets(
        self, request: pb.ListBudgetsRequest, caller: Caller
    ) -> pb.ListBudgetsResponse:
        """Return a page of all subjects' budgets."""
        del caller
        size = page_size(request.page_size, _MAX_PAGE)
        reading, more = self._budgets.page(request.page, size)
        return pb.ListBudgetsResponse(
            statements=_statements(reading), more=more, head=_head(reading)
        )


def _statements(reading: BudgetReading) -> list[pb.Statement]:
    """Return the figures with everything that gives them a meaning."""
    return [_statement(spent) for spent in reading.spent]


def _statement(spent: Spent) -> pb.Statement:
    """Return one figure; what is infinite is absent."""
    releases = finite(spent.releases)
    return pb.Statement(
        subject=spent.subject,
        scope=scope_label(spent.scope),
        epsilon=finite(spent.epsilon),
        delta=spent.delta,
        unit="" if spent.unit is None else str(spent.unit),
        neighboring_relation="" if spent.relation is None else str(spent.relation),
        releases=None if releases is None else round(releases),
        epsilon_rdp=finite(spent.epsilon_rdp),
        accountant=spent.accountant,
        cap=finite(spent.cap),
        remaining=spent.remaining if finite(spent.cap) is not None else None,
    )


def _head(reading: BudgetReading) -> pb.LedgerHead | None:
    """Return the end of the chain."""
    head = reading.head
    if head is None:
        return None
    if isinstance(head, SignedHead):
        return pb.LedgerHead(
            seq=head.seq, hash=head.hash, public_key=head.public_key, signature=head.signature
        )
    return pb.LedgerHead(seq=head.seq, hash=head.hash)


def _charges(reading: BudgetReading) -> list[pb.Charge]:
    """Return the charges without who else was charged."""
    return [
        pb.Charge(run=charge.run_id, server_round=charge.server_round, state=charge.state)
        for charge in reading.charges
    ]
