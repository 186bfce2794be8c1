"""A whole run with many clients at once, against the same run with one after another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from shared.privacy.ledger import Ledger
from simulations.simulate import Result
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

MEASURED = {"loss", "perplexity", "seconds"}
CENTRAL = ("privacy.clipping_norm=0.5", "clients.local_steps=2")


def lines(result: Result) -> list[dict[str, Any]]:
    read = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in read]


def charged(result: Result) -> list[Any]:
    with Ledger(result.folder / "ledger.sqlite", read_only=True) as ledger:
        return sorted(ledger.subjects())


@pytest.mark.parametrize(
    "privacy", [CENTRAL, ("privacy.mode=example",)], ids=["central", "example"]
)
def test_a_run_ends_at_the_same_adapter(privacy: tuple[str, ...], tmp_path: Path) -> None:
    """To 1e-4 of the adapter's length after three rounds; the ledger and all else to the byte."""
    one = run_small(tmp_path / "one", [*privacy, "performance.cohort_batch=1"])
    many = run_small(tmp_path / "many", [*privacy, "performance.cohort_batch=5"])
    a, b = (load_file(r.folder / "adapter" / "adapter_model.safetensors") for r in (one, many))
    length = np.sqrt(sum(float(np.square(a[name]).sum()) for name in a if "lora_B" in name))
    apart = np.sqrt(sum(float(np.square(a[name] - b[name]).sum()) for name in a))
    assert length > 0
    assert apart <= 1e-4 * length
    assert charged(one) == charged(many)
    assert one.summary["privacy"] == many.summary["privacy"]
    assert one.summary["config_digest"] == many.summary["config_digest"]
    for first, second in zip(lines(one), lines(many), strict=True):
        for key in first.keys() - MEASURED:
            assert first[key] == second[key], key
        assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert many.summary["loss_before"] == pytest.approx(one.summary["loss_before"], rel=1e-6)
    assert many.summary["loss_after"] == pytest.approx(one.summary["loss_after"], rel=1e-5)
