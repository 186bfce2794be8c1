"""A ledger of a server with charges of two clients and the population."""

from __future__ import annotations

from server.budget import RunBudget
from server.home import ServerHome
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_signing import LedgerSigner
from tests.ledgers import plan_of

SCOPE = "../shared/data/records.jsonl"


def charge(home: ServerHome, *, rounds: int = 2, first: int = 1) -> None:
    """Charge clients 0 and 1 a round each and the population as often, as a run does it."""
    signer = LedgerSigner.load_or_create(home.ledger_key)
    local = plan_of(
        mode="example",
        unit="example",
        noise_multiplier=1.0,
        sampling_probability=0.05,
        population=2,
        dataset_size=200,
        max_participations=6,
        releases_per_round=4,
        max_grad_norm=1.0,
        clipping_norm=None,
    )
    with Ledger(home.ledger, signer=signer) as ledger:
        for run, plan in (("local", local), ("central", plan_of(cap=8.0))):
            budget = RunBudget(ledger, plan=plan, run_id=run, scope=f"{SCOPE}-{run}")
            for server_round in range(first, first + rounds):
                budget.commit(budget.reserve(server_round, [0] if server_round % 2 else [0, 1]))
