"""Personal adapters are measured client by client, and nothing about them travels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.engine import InProcessGrid
from simulations.personal import gain, spread
from tests.integration.scenario import run_small
from tests.integration.test_schedules import SMALL, same


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
def test_the_spread_is_numpys(values: list[float]) -> None:
    found = spread({str(i): value for i, value in enumerate(values)})
    worst = np.sort(values)[-int(np.ceil(len(values) / 10)) :]
    expected = [np.mean(values), np.median(values), np.mean(worst)]
    shown = [found[key] for key in ("mean", "median", "worst_decile")]
    assert np.allclose(np.array(shown, dtype=float), expected)


def test_nobody_measured_is_no_gain() -> None:
    assert gain({}) is None
    assert spread({}) == {"mean": None, "median": None, "worst_decile": None}
    found = gain({"shared": {"a": 2.0, "b": 1.0}, "own": {"a": 1.0, "b": 1.5}})
    assert found is not None
    assert (found["clients"], found["better"]) == (2, 1)


@pytest.mark.slow
def test_no_message_carries_a_personal_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same messages, byte for byte in number, with and without; the gain is in the summary."""
    sent: list[int] = []
    push = InProcessGrid.push_messages

    def counted(self: InProcessGrid, messages: Any) -> Any:
        found = list(messages)
        sent.append(len(found))
        return push(self, found)

    monkeypatch.setattr(InProcessGrid, "push_messages", counted)
    settings = [*SMALL, "run.rounds=1", "privacy.mode=none", "data.holdout=0.5"]
    without = run_small(tmp_path / "without", settings)
    plain, sent[:] = list(sent), []
    said = ["personal.steps=3", "personal.learning_rate=0.3", "personal.clients=4"]
    result = run_small(tmp_path / "with", [*settings, *said])
    assert sent == plain
    assert same(without, result)
    personal = result.summary["personal"]
    assert personal["clients"] == 4
    assert personal["own"]["mean"] < personal["shared"]["mean"]
    losses = json.loads((result.folder / "evaluation.json").read_text())
    assert personal["own"]["mean"] == pytest.approx(np.mean(list(losses["personal-own"].values())))
    assert without.summary["personal"] is None
    assert "their own" in (result.folder / "report.html").read_text()
