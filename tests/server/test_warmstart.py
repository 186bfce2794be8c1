"""Going on from an earlier adapter: what is refused, and what a folder keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS, write_adapter
from server.warmstart import START, describe, keep_start, open_warm_start, read_start
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import AdapterCorrupt, AdapterIncompatible, NotResumable
from shared.lora import AdapterSpec, Factor, Factors, initial_factors
from tests.integration.scenario import TABLES

BASE = "ab" * 32
SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(2, 6)),
        Factor(name="m.lora_B.weight", kind="B", shape=(5, 2)),
    ),
    r=2,
    lora_alpha=8.0,
    target_modules=("m",),
)
CLAIM = {
    "mode": "example",
    "epsilon": 2.5,
    "delta": 1e-5,
    "unit": "example",
    "neighboring_relation": "add-or-remove-one",
}


def config(*said: str) -> RunConfig:
    return resolve(TABLES, said, source="test").config


def trained(seed: int = 5) -> Factors:
    """A of the seed, B as if it had been trained."""
    values = np.random.default_rng(1).standard_normal((5, 2)).astype(np.float32)
    return {**initial_factors(SPEC, seed), "m.lora_B.weight": values}


def written(folder: Path, factors: Factors, *, spec: AdapterSpec = SPEC, **manifest: Any) -> Path:
    """A finished run folder."""
    (folder / "adapter").mkdir(parents=True)
    facts = {"base_digest": BASE, "rounds": 7, "plan_digest": "cd" * 32, "ledger_head": "ef" * 32}
    write_adapter(
        folder / "adapter",
        spec=spec,
        factors=factors,
        base_model="demo",
        dropout=0.0,
        manifest={**facts, **manifest},
    )
    (folder / "summary.json").write_text(json.dumps({"privacy": CLAIM}), encoding="utf-8")
    return folder


def opened(path: Path, *said: str, base: str = BASE) -> Any:
    return open_warm_start(path, config=config(*said), spec=SPEC, base_digest=base)


def test_the_trained_factors_and_the_earlier_guarantee_are_read(tmp_path: Path) -> None:
    factors = trained()
    run = written(tmp_path / "run", factors)
    start = opened(run)
    assert np.array_equal(start.vector, factors["m.lora_B.weight"].reshape(-1))
    assert start.note["privacy"] == CLAIM
    assert (start.note["rounds"], start.note["plan_digest"]) == (7, "cd" * 32)
    alone = opened(run / "adapter")
    assert np.array_equal(alone.vector, start.vector)
    assert alone.note["privacy"] is None
    both = opened(run, "privacy.mode=none", "aggregation.policy=fedavg", "lora.seed=9")
    assert np.array_equal(both.vector, SPEC.flatten(factors))


def test_a_frozen_a_must_be_the_earlier_one(tmp_path: Path) -> None:
    run = written(tmp_path / "run", trained(seed=11))
    with pytest.raises(AdapterIncompatible, match=r"frozen A .* lora\.seed=5"):
        opened(run)
    assert np.array_equal(opened(run, "lora.seed=11").vector, opened(run, "run.seed=11").vector)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"r": 1}, "r=1, the scenario 2"),
        ({"lora_alpha": 4.0}, "alpha=4.0, the scenario 8.0"),
        ({"use_rslora": True}, "rslora=True, the scenario False"),
        ({"target_modules": ["n"]}, "target_modules="),
    ],
)
def test_another_form_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    run = written(tmp_path / "run", trained())
    path = run / "adapter" / PEFT_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(AdapterIncompatible, match=f"earlier adapter has lora.{why}"):
        opened(run)


def test_another_base_changed_weights_and_missing_files_are_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "run", trained())
    with pytest.raises(AdapterIncompatible, match="belongs to base 'abab"):
        opened(run, base="12" * 32)
    weights = run / "adapter" / WEIGHTS
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(AdapterCorrupt, match="names other weights"):
        opened(run)
    (run / "adapter" / MANIFEST).write_text("[1]")
    with pytest.raises(AdapterCorrupt, match="no JSON object"):
        opened(run)
    with pytest.raises(AdapterCorrupt, match="cannot be read"):
        opened(tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    factors = trained()
    factors["m.lora_B.weight"][0, 0] = np.nan
    with pytest.raises(AdapterCorrupt, match="not finite"):
        opened(written(tmp_path / "run", factors))


def test_a_folder_keeps_the_start_and_knows_another_one(tmp_path: Path) -> None:
    start = opened(written(tmp_path / "run", trained()))
    digest = keep_start(tmp_path, start)
    found = read_start(tmp_path, size=10, digest=digest)
    assert np.array_equal(found.vector, start.vector)
    assert found.note == start.note
    with pytest.raises(NotResumable, match="10 values"):
        read_start(tmp_path, size=9, digest=digest)
    kept = (tmp_path / START).read_bytes()
    for spoilt in (kept[:-1], b"x" + kept[1:]):
        (tmp_path / START).write_bytes(spoilt)
        with pytest.raises(NotResumable, match="damaged"):
            read_start(tmp_path, size=10, digest=digest)
    (tmp_path / START).unlink()
    with pytest.raises(NotResumable, match="missing"):
        read_start(tmp_path, size=10, digest=None)


@pytest.mark.parametrize(
    ("claim", "together", "private", "expected"),
    [
        (None, False, True, "no guarantee is known"),
        ({**CLAIM, "mode": "none", "epsilon": None}, False, True, "no guarantee is known"),
        (CLAIM, False, False, "whoever is in both has none"),
        (CLAIM, True, True, "of the two together"),
        (CLAIM, False, True, "sum of the epsilons"),
    ],
)
def test_what_is_said_depends_on_what_is_known(
    claim: object, together: bool, private: bool, expected: str
) -> None:
    assert expected in describe({"privacy": claim}, charged_together=together, private=private)
