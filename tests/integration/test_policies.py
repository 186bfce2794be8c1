"""Whole small runs under every aggregation policy: clients, wire, server, folder and audits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from simulations.simulate import Result
from tests.integration.scenario import run_small

pytestmark = pytest.mark.slow

ROLORA = "aggregation.policy=rolora"
FLEXLORA = "aggregation.policy=flexlora"
PLAIN = ("privacy.mode=none", "audit.canaries=0", "evaluation.clients=1", "server.optimizer=mean")
LOCAL = ("clients.local_steps=2",)
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
    "privacy.epsilon=5.0",
    "privacy.delta=1e-3",
)


def adapter(result: Result) -> dict[str, np.ndarray]:
    return load_file(result.folder / "adapter" / "adapter_model.safetensors")


def lines(result: Result) -> list[dict[str, Any]]:
    read = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in read]


def assert_close(one: Result, other: Result, tolerance: float) -> None:
    a, b = adapter(one), adapter(other)
    length = np.sqrt(sum(float(np.square(v).sum()) for k, v in a.items() if "lora_B" in k))
    apart = np.sqrt(sum(float(np.square(a[name] - b[name]).sum()) for name in a))
    assert length > 0
    assert apart <= tolerance * length


@pytest.mark.parametrize(
    "settings",
    [
        (ROLORA,),
        (ROLORA, *PLAIN, *LOCAL),
        (ROLORA, "privacy.mode=example"),
        (ROLORA, *DISTRIBUTED),
        (FLEXLORA, *PLAIN, *LOCAL),
    ],
    ids=["rolora-central", "rolora-none", "rolora-example", "rolora-distributed", "flexlora-none"],
)
def test_one_after_another_and_together_give_the_same_adapter(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    few = ("run.rounds=3", *settings)
    one = run_small(tmp_path / "one", [*few, "performance.cohort_batch=1"])
    many = run_small(tmp_path / "many", [*few, "performance.cohort_batch=5"])
    assert_close(one, many, 1e-4)
    if FLEXLORA in settings:
        return
    # A begins with orthonormal rows, and has left them.
    a = [factor for name, factor in adapter(one).items() if "lora_A" in name]
    assert any(np.abs(rows @ rows.T - np.eye(len(rows))).max() > 1e-4 for rows in a)


def test_flexlora_learns_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    settings = [FLEXLORA, *PLAIN, *LOCAL, "clients.learning_rate=0.2", "evaluation.clients=12"]
    one, two = (run_small(tmp_path / name, settings) for name in ("one", "two"))
    for name, factor in adapter(one).items():
        np.testing.assert_array_equal(factor, adapter(two)[name])
    assert one.summary["loss_after"] < one.summary["loss_before"]


REFACTOR = "aggregation.refactor_every=1"


@pytest.mark.parametrize("mode", [(), DISTRIBUTED], ids=["central", "distributed"])
def test_a_new_basis_in_every_round_changes_no_product(
    mode: tuple[str, ...], tmp_path: Path
) -> None:
    """Clients take steps of SGD and the server takes means: neither sees the basis."""
    few = ("run.rounds=2", "server.optimizer=mean", "audit.canaries=0", *mode)
    if mode:
        # The grid rounds in the coordinates of the basis, and its noise is drawn in them.
        turned = run_small(tmp_path / "turned", [*few, REFACTOR])
        assert turned.summary["loss_after"] < turned.summary["loss_before"]
    else:
        quiet = ("privacy.mode=none",)
        turned = run_small(tmp_path / "turned", [*few, *quiet, REFACTOR])
        plain = run_small(tmp_path / "plain", [*few, *quiet])
        assert products_apart(turned, plain) < 1e-4
    for name, factor in adapter(turned).items():
        if "lora_A" in name:
            np.testing.assert_allclose(factor @ factor.T, np.eye(2), atol=1e-5)


def products_apart(one: Result, other: Result) -> float:
    """Return how far the products are apart, in lengths of the second."""
    a, b = adapter(one), adapter(other)
    apart = length = 0.0
    for name in b:
        if "lora_B" in name:
            down = name.replace("lora_B", "lora_A")
            product = b[name] @ b[down]
            apart += float(np.square(a[name] @ a[down] - product).sum())
            length += float(np.square(product).sum())
    assert length > 0
    return float(np.sqrt(apart / length))
