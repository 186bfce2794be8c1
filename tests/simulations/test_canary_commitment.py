"""What a run commits to before training, and what its opening shows."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

from server.audit.commitment import read_coins, verify_commitment
from simulations.canaries import plan_canaries
from simulations.canaryplan import CanaryPlan


def plan(**settings: Any) -> CanaryPlan:
    given: dict[str, Any] = {"count": 13, "population": 30, "seed": 1, "repeats": 2}
    return plan_canaries(**{**given, **settings})


def by_hand(value: object) -> str:
    """Return canonical JSON by the standard library alone."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def test_anybody_can_compute_the_commitment_from_the_opening() -> None:
    opening = json.loads(json.dumps(plan().opening()))
    said = f"fedslm-canary-commitment-v1\n{by_hand(opening)}"
    assert plan().digest() == sha256(said.encode()).hexdigest()
    assert verify_commitment(opening, plan().digest())


def test_the_opening_tells_the_coins_and_who_knows_the_seed_can_show_a_text() -> None:
    planned = plan()
    opening = planned.opening()
    assert read_coins(opening) == [canary.included for canary in planned.canaries]
    assert opening["salt"] == sha256(by_hand(["fedslm-canary-salt-v1", 1]).encode()).hexdigest()
    key = sha256(by_hand(["fedslm-canary-key-v1", 1]).encode()).hexdigest()
    third = planned.canaries[3]
    shown = ["fedslm-canary-text-v1", key, 3, "secret", third.client, third.prompt, third.text]
    assert opening["digests"][3] == sha256(by_hand(shown).encode()).hexdigest()
    assert key not in json.dumps(opening)


def test_the_commitment_binds_every_part() -> None:
    planned = plan()
    first, *rest = planned.canaries
    changed = [
        replace(first, included=not first.included),
        replace(first, client=first.client + 1),
        replace(first, text=" other"),
        replace(first, prompt="other"),
        replace(first, kind="rare-token"),
    ]
    plans = [replace(planned, canaries=(canary, *rest)) for canary in changed]
    plans += [replace(planned, repeats=3), replace(planned, seed=2)]
    digests = {planned.digest(), *(other.digest() for other in plans)}
    assert len(digests) == 8
    assert plan().digest() == planned.digest()
    assert not any(verify_commitment(other.opening(), planned.digest()) for other in plans)
