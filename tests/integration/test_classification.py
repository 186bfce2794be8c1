"""Whole runs of a tiny classifier: every privacy mode, both engines, stopped and gone on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from shared.configfile import resolve
from shared.errors import ConfigError
from simulations.progress import PlainProgress
from simulations.simulate import Result, simulate
from simulations.summarytable import rows
from tests.encoders import LABELS, save_corpus, save_encoder

pytestmark = pytest.mark.slow

TABLES: dict[str, dict[str, Any]] = {
    "run": {"name": "intents", "rounds": 5, "seed": 3},
    "model": {"base": "encoder"},
    "task": {"kind": "classification", "labels": list(LABELS)},
    "lora": {"r": 2, "alpha": 4.0},
    "data": {
        "path": "intents.csv",
        "text": "text",
        "label": "category",
        "partitioner": "iid",
        "max_length": 16,
    },
    "clients": {
        "population": 6,
        "local_steps": 12,
        "batch_size": 8,
        "learning_rate": 0.03,
        "optimizer": "adamw",
    },
    "privacy": {
        "mode": "none",
        "neighboring_relation": "add-or-remove-one",
        "epsilon": 50.0,
        "delta": 1e-3,
        "noise_source": "seeded-simulation",
    },
    "audit": {"profile": "none"},
    "performance": {"threads": 1},
}
CENTRAL = ("privacy.mode=client-central", "privacy.clipping_norm=0.5", "run.rounds=2")
EXAMPLE = (
    "privacy.mode=example",
    "privacy.max_grad_norm=0.5",
    "privacy.sampling_probability=0.25",
    "run.rounds=2",
)
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.clipping_norm=0.5",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
    "run.rounds=2",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("home")
    save_encoder(root / "encoder")
    save_corpus(root / "intents.csv")
    return root


class _Impatient(PlainProgress):
    """Interrupts a run when its first round is reported."""

    def finished(self, record: Any) -> None:
        raise KeyboardInterrupt


def run(
    home: Path,
    name: str,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    stop: bool = False,
) -> Result:
    resolved = resolve(TABLES, overrides, source="test")
    kind = _Impatient if stop else PlainProgress
    progress = kind(resolved.config.run.rounds, Console(quiet=True))
    return simulate(resolved, folder=home / name, resume=resume, progress=progress, base_dir=home)


def adapter(result: Result) -> dict[str, np.ndarray]:
    return load_file(result.folder / "adapter" / "adapter_model.safetensors")


def test_it_learns_and_says_so(home: Path) -> None:
    result = run(home, "learns")
    summary = result.summary
    assert summary["labels"] == list(LABELS)
    assert summary["loss_before"] == pytest.approx(np.log(len(LABELS)), rel=1e-5)
    assert summary["accuracy_after"] > 0.8
    assert summary["macro_f1_after"] > 0.8
    assert summary["perplexity_after"] is None
    last = json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] == summary["accuracy_after"]
    assert {"accuracy", "macro-F1"} <= {name for name, _ in rows(summary)}
    page = (result.folder / "report.html").read_text()
    assert "Macro-F1" in page
    assert "nats per text" in page
    manifest = json.loads((result.folder / "adapter" / "fedslm.json").read_text())
    assert manifest["labels"] == list(LABELS)


@pytest.mark.parametrize(
    "settings",
    [
        CENTRAL,
        EXAMPLE,
        (*EXAMPLE, "performance.clipper=microbatch", "clients.local_steps=2"),
        DISTRIBUTED,
    ],
    ids=["central", "example", "microbatch", "distributed"],
)
def test_a_private_run_that_was_stopped_goes_on_to_the_same_adapter(
    home: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    name = tmp_path.name
    whole = run(home, f"{name}-whole", settings)
    with pytest.raises(KeyboardInterrupt):
        run(home, f"{name}-stopped", settings, stop=True)
    resumed = run(home, f"{name}-stopped", settings, resume=True)
    expected, found = adapter(whole), adapter(resumed)
    assert all(np.array_equal(expected[key], value) for key, value in found.items())
    assert expected["base_model.model.classifier.bias"].any()
    for key in ("loss_after", "accuracy_after", "privacy"):
        assert resumed.summary[key] == whole.summary[key]
    assert whole.summary["privacy"]["epsilon"] <= 50


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ('task.labels=["card"]', "task.labels"),
        ('task.labels=["card", "card"]', "task.labels"),
        ("model.quantization=nf4", "model.quantization"),
        ("audit.profile=smoke", "audit.profile"),
        ("audit.canaries=4", "audit.profile"),
        ("aggregation.policy=rolora", "aggregation.policy"),
        ("data.path=builtin:clinics", "data.label"),
        ("task.kind=causal-lm", "task.labels"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_key(override: str, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(TABLES, [override], source="test")
    assert key in [problem.key for problem in caught.value.problems]
