"""Correlated noise and a crash: nobody sees two sums under one row of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server import strategy
from server.aggregation import CorrelatedCentral
from server.checkpoint import write_checkpoint
from server.strategy import FederatedRun
from tests.integration.scenario import run_small

SETTINGS = (
    "privacy.mechanism=correlated",
    "privacy.noise_source=os-entropy",
    "clients.cohort=4.0",
    "run.rounds=6",
    "evaluation.every=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_crash_at_a_checkpoint_shows_no_client(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as a checkpoint is written; one client of the repeated round does not answer.

    Were two adapters of one round sent out, their difference would be that client's update: with a
    process that measured before it checkpointed, its cosine with the update was 1.
    """
    sent: dict[str, list[Any]] = {}
    measure = FederatedRun.measure

    def spied(self: FederatedRun, messenger: Any, clients: Any, vector: Any, *, group: str) -> Any:
        sent.setdefault(group, []).append(np.array(vector))
        return measure(self, messenger, clients, vector, group=group)

    writes = 0

    def killed(*arguments: Any, **more: Any) -> None:
        nonlocal writes
        writes += 1
        if writes == write:
            raise KeyboardInterrupt
        write_checkpoint(*arguments, **more)

    monkeypatch.setattr(FederatedRun, "measure", spied)
    monkeypatch.setattr(strategy, "write_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run_small(tmp_path / "run", SETTINGS)
    add, calls = CorrelatedCentral.add, 0

    def one_less(self: CorrelatedCentral, vector: Any) -> float:
        nonlocal calls
        calls += 1
        return add(self, vector) if calls > 1 else float(np.linalg.norm(vector))

    monkeypatch.setattr(CorrelatedCentral, "add", one_less)
    result = run_small(tmp_path / "run", SETTINGS, resume=True)
    assert result.summary["status"] == "completed"
    rounds = {name: vectors for name, vectors in sent.items() if name.startswith("m")}
    for vectors in rounds.values():
        for again in vectors[1:]:
            np.testing.assert_array_equal(again, vectors[0])
    assert set(rounds) >= {"m2", "m3", "m4", "m5", "m6"}
