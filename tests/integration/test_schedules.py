"""Whole runs whose rate and noise change over the rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.privacy.events import GaussianEvent
from shared.privacy.ledger import Ledger
from simulations.simulate import Result
from tests.integration.scenario import run_small
from tests.integration.test_modes import _stop_after_first_round

pytestmark = pytest.mark.slow

SMALL = ("clients.population=6", "clients.cohort=4.0", "audit.canaries=0")
SCHEDULED = (
    *SMALL,
    "clients.schedule=cosine",
    "clients.warmup_rounds=1",
    "privacy.noise_schedule=linear",
    "privacy.noise_final=0.5",
)
EXAMPLE = ("privacy.mode=example", "clients.max_participations=2")


def adapter(result: Result) -> dict[str, Any]:
    return dict(load_file(result.folder / "adapter" / "adapter_model.safetensors"))


def same(one: Result, other: Result, tolerance: float = 0.0) -> bool:
    a, b = adapter(one), adapter(other)
    return all(np.allclose(a[name], b[name], rtol=0, atol=tolerance) for name in a)


@pytest.mark.parametrize("mode", [(), EXAMPLE], ids=["central", "example"])
def test_noise_that_falls_is_charged_and_resumed(mode: tuple[str, ...], tmp_path: Path) -> None:
    """Every round's own noise is in the ledger; a run that was stopped ends at the same bits."""
    settings = (*SCHEDULED, *mode)
    whole = run_small(tmp_path / "whole", settings)
    privacy = whole.summary["privacy"]
    assert privacy["noise_schedule"] == {"form": "linear", "final": 0.5}
    assert privacy["epsilon"] <= 50.0
    z = privacy["noise_multiplier"]
    with Ledger(whole.folder / "ledger.sqlite", read_only=True) as ledger:
        charged = {
            charge.server_round: charge.event.noise_multiplier
            for charge in ledger.charges("builtin:clinics")
            if isinstance(charge.event, GaussianEvent)
        }
    assert charged == pytest.approx({1: z, 2: 0.75 * z, 3: 0.5 * z})
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    assert same(run_small(stopped, settings, resume=True), whole)


def test_the_audits_know_the_noise_of_each_round(tmp_path: Path) -> None:
    """Two audits test releases and installed code against the size that was declared."""
    result = run_small(tmp_path / "run", [*SCHEDULED, "audit.profile=smoke"])
    assert result.summary["audit"]["verdict"] != "violation"


@pytest.mark.parametrize("mode", [(), ("privacy.mechanism=correlated",)], ids=["gauss", "banded"])
def test_noise_inside_clients_has_a_schedule_of_its_own(
    mode: tuple[str, ...], tmp_path: Path
) -> None:
    """Beside a client mode: each client pays the noise of its round, whatever the server adds."""
    said = (
        *SMALL,
        *mode,
        "example.neighboring_relation=add-or-remove-one",
        "example.noise_multiplier=2.0",
        "example.delta=1e-3",
        "example.max_grad_norm=0.5",
        "example.sampling_probability=0.5",
        "example.noise_schedule=linear",
        "example.noise_final=0.5",
    )
    whole = run_small(tmp_path / "whole", said)
    inner = whole.summary["privacy"]["example"]
    assert inner["noise_schedule"] == {"form": "linear", "final": 0.5}
    with Ledger(whole.folder / "ledger.sqlite", read_only=True) as ledger:
        ledger.verify()
        charged = {
            charge.server_round: charge.event.noise_multiplier
            for charge in ledger.charges("builtin:clinics")
            if isinstance(charge.event, GaussianEvent) and "population" not in charge.subjects
        }
        clients = [s for s, _ in ledger.subjects() if s.startswith("client-")]
        worst = max(ledger.spent(s, "builtin:clinics").epsilon for s in clients)
    assert charged == pytest.approx({1: 2.0, 2: 1.5, 3: 1.0})
    assert inner["epsilon"] == pytest.approx(worst)
