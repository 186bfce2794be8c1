"""Whole runs of a mixture: every mode, a run that was stopped, and Flower's engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.errors import AdapterIncompatible
from shared.mixture import ROUTER
from tests.integration.scenario import run_small
from tests.integration.test_modes import DISTRIBUTED, _stop_after_first_round
from tests.integration.test_schedules import SMALL, adapter, same

pytestmark = pytest.mark.slow

MIXED = (*SMALL, "run.rounds=2", "mixture.adapters=2")
EXAMPLE = ("privacy.mode=example", "clients.max_participations=2")
NAME = f"base_model.model.{ROUTER}.weight"


@pytest.mark.parametrize("mode", [(), EXAMPLE], ids=["central", "example"])
def test_a_stopped_run_ends_at_the_same_bits_and_all_of_it_is_released(
    mode: tuple[str, ...], tmp_path: Path
) -> None:
    """The noise of every release covers the router too: no coordinate of it stays where it was."""
    settings = (*MIXED, *mode)
    whole = run_small(tmp_path / "whole", settings)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        _stop_after_first_round(stopped, settings)
    assert same(run_small(stopped, settings, resume=True), whole)
    factors = adapter(whole)
    trained = sum(v.size for n, v in factors.items() if "lora_B" in n) + factors[NAME].size
    assert whole.summary["lora"]["trainable_parameters"] == trained
    assert whole.summary["lora"]["mixture"] == {"adapters": 2, "sharpness": 1.0}
    frozen = run_small(tmp_path / "frozen", [*settings, "mixture.router=frozen"])
    assert (adapter(frozen)[NAME] != factors[NAME]).all()
    assert frozen.summary["lora"]["trainable_parameters"] == trained - factors[NAME].size


@pytest.mark.parametrize(
    "mode",
    [(*DISTRIBUTED, "clients.population=12", "clients.cohort=8.0"), ("privacy.mode=none",)],
    ids=["distributed", "none"],
)
def test_other_modes_train_it_too(mode: tuple[str, ...], tmp_path: Path) -> None:
    result = run_small(tmp_path / "run", [*MIXED, *mode])
    assert result.summary["status"] == "completed"
    assert any(value.any() for name, value in adapter(result).items() if "lora_B" in name)
    losses = result.summary["client_losses"]["after"]
    assert losses["mean"] is not None
    assert losses["worst_decile"] >= losses["median"]


def test_fedavg_trains_both_factors_and_the_router(tmp_path: Path) -> None:
    plain = ("privacy.mode=none", "aggregation.policy=fedavg")
    one = adapter(run_small(tmp_path / "one", [*MIXED, *plain]))
    other = adapter(run_small(tmp_path / "two", [*MIXED, *plain, "run.rounds=1"]))
    moved = {name for name in one if not np.array_equal(one[name], other[name])}
    assert moved == one.keys()


def test_clients_in_groups_end_at_the_adapter_of_clients_alone(tmp_path: Path) -> None:
    settings = (*MIXED, "clients.local_steps=2", "privacy.clipping_norm=0.5")
    alone = run_small(tmp_path / "alone", [*settings, "performance.cohort_batch=1"])
    together = run_small(tmp_path / "together", [*settings, "performance.cohort_batch=4"])
    one, other = adapter(alone), adapter(together)
    length = np.sqrt(sum(np.square(v).sum() for n, v in one.items() if "lora_B" in n))
    apart = np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in one))
    assert 0 < apart <= 1e-4 * length


def test_a_run_goes_on_from_a_mixture_and_from_no_other(tmp_path: Path) -> None:
    """A plain adapter of the same total rank is another model: the router would be missing."""
    settings = (*MIXED, "privacy.mode=none", "run.rounds=1")
    first = run_small(tmp_path / "first", settings)
    second = run_small(tmp_path / "second", [*settings, f"run.warm_start={first.folder}"])
    assert second.summary["loss_before"] == pytest.approx(first.summary["loss_after"], rel=1e-5)
    plain = [*settings, "mixture.adapters=1", "lora.r=4", "lora.alpha=16.0"]
    with pytest.raises(AdapterIncompatible):
        run_small(tmp_path / "third", [*plain, f"run.warm_start={first.folder}"])
