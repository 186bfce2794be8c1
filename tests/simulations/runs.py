"""Made-up run folders for the tests of the report; every number in them is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.simulations import auditreports

Json = dict[str, Any]


def invented_metrics(rounds: int, *, private: bool) -> list[Json]:
    return [
        {
            "round": n,
            "loss": 3.1 + 1.6 * 0.9**n if n % 2 == 0 or n == 1 else None,
            "perplexity": float(np.exp(3.1 + 1.6 * 0.9**n)) if n % 2 == 0 or n == 1 else None,
            "epsilon": 7.94 * (n / rounds) ** 0.6 if private else None,
            "epsilon_rdp": 8.9 * (n / rounds) ** 0.6 if private else None,
            "cap": 9.5 if private else None,
            "cohort": 90 + 7 * n % 20,
            "bytes_up_per_client": 24_700,
            "bytes_down_per_client": 24_900,
            "seconds": 3.5,
        }
        for n in range(1, rounds + 1)
    ]


def invented_summary(*, private: bool, rounds: int, audit: Json) -> Json:
    return {
        "status": "completed",
        "scenario": "made-up figures",
        "seed": 7,
        "rounds": rounds,
        "population": 1000,
        "cohort": 100.0,
        "base_model": "demo",
        "base_digest": "ab" * 32,
        "quantization": "int8",
        "lora": {
            "r": 4,
            "alpha": 8.0,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "trainable_parameters": 6144,
        },
        "aggregation": "ffa" if private else "fedavg",
        "data": {"source": "invented", "train_examples": 12000, "dropped": 0},
        "loss_before": 4.7,
        "loss_after": 3.3,
        "perplexity_before": 109.9,
        "perplexity_after": 27.1,
        "privacy": {
            "mode": "client-central" if private else "none",
            "unit": "client" if private else None,
            "neighboring_relation": "add-or-remove-one" if private else None,
            "epsilon": 7.94 if private else None,
            "delta": 5e-4 if private else None,
            "noise_multiplier": 0.62 if private else 0.0,
            "clipping_norm": 0.5 if private else None,
            "max_grad_norm": None,
            "sampling_probability": 0.1,
            "releases": rounds,
            "accountant": "pld" if private else None,
            "epsilon_rdp": 8.9 if private else None,
            "cap": 9.5 if private else None,
            "observer_epsilon": 31.2 if private else None,
            "noise_source": "seeded-simulation" if private else None,
        },
        "statement": {
            "clauses": [
                {"topic": "unit", "text": "One client with all its text.", "alarm": False},
                {"topic": "not-protected", "text": "What the base learned.", "alarm": False},
                {"topic": "noise-source", "text": "The noise was seeded.", "alarm": True},
            ]
        },
        "warnings": ["epsilon 7.94 is large; below 1 is strong."] if private else [],
        "bytes_up_per_client_round": 24_700,
        "bytes_down_per_client_round": 24_900,
        "seconds": 131.2,
        "peak_rss_bytes": 1_410_000_000,
        "audit": audit,
        "engine": "inprocess",
        "config_digest": "cd" * 32,
        "versions": {"python": "3.11.2", "fedslm": "0.1.0"},
    }


def make_run(folder: Path, *, private: bool = True, rounds: int = 20, gain: float = 0.4) -> Path:
    """Write all files of an invented run and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    audit = auditreports.small(gain, private=private)
    rng = np.random.default_rng(3)
    before = 4.7 + 0.3 * rng.standard_normal(300)
    after = before - 1.4 + 0.25 * rng.standard_normal(300)
    names = [f"clinic-{index:04d}" for index in range(300)]
    evaluation = {
        "before": dict(zip(names, before.tolist(), strict=True)),
        "after": dict(zip(names, after.tolist(), strict=True)),
    }
    summary = invented_summary(private=private, rounds=rounds, audit=audit)
    for name, value in (
        ("summary.json", summary),
        ("audit.json", audit),
        ("evaluation.json", evaluation),
    ):
        (folder / name).write_text(json.dumps(value))
    lines = [json.dumps(record) for record in invented_metrics(rounds, private=private)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "config.toml").write_text('[run]\nname = "made-up figures"  # scenario\n')
    return folder
