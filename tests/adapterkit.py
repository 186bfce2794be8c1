"""Small real adapters with real audit reports, for the tests of registry, store and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from server.adapters import write_adapter
from server.audit.report import AuditReport
from server.audit.run import run_audits
from server.registry import AdapterRegistry, AdapterVersion
from shared.crypto import SigningKey
from shared.lora import AdapterSpec, Factor, Factors
from shared.manifest import WEIGHTS
from shared.sealing import Sealer
from tests.server.audit import oracles

SIGNER = SigningKey(b"\x07" * 32)
STRANGER = SigningKey(b"\x08" * 32)
BASE = "ba" * 32
PLAN = "1a" * 32
HEAD = "1e" * 32


def small_spec(*, r: int = 2, layers: int = 2) -> AdapterSpec:
    """Return the factors of a few layers of 6 by 5."""
    factors = []
    for layer in range(layers):
        stem = f"base_model.model.model.layers.{layer}.q_proj.lora_"
        factors.append(Factor(name=f"{stem}A.weight", kind="A", shape=(r, 5)))
        factors.append(Factor(name=f"{stem}B.weight", kind="B", shape=(6, r)))
    return AdapterSpec(factors=tuple(factors), r=r, lora_alpha=4.0, target_modules=("q_proj",))


def write_folder(
    folder: Path, seed: int = 1, *, spec: AdapterSpec | None = None, base: str = BASE
) -> str:
    """Write an adapter's folder; return the SHA-256 of its weights."""
    shape = spec or small_spec()
    rng = np.random.default_rng(seed)
    factors: Factors = {
        f.name: (0.1 * rng.standard_normal(f.shape)).astype(np.float32) for f in shape.factors
    }
    return write_adapter(
        folder,
        spec=shape,
        factors=factors,
        base_model="demo",
        dropout=0.0,
        manifest={"base_digest": base, "plan_digest": PLAN, "ledger_head": HEAD, "rounds": 1},
    )


@cache
def _report(verdict: str) -> AuditReport:
    """A report that its own evidence leads to a verdict."""
    if verdict == "violation":
        context = oracles.context(gain=40.0, claim=oracles.client_claim(1.0, 2.0))
        found = run_audits(context, ["exposure"], profile="smoke")
    elif verdict == "consistent":
        context = oracles.context(gain=0.0, claim=oracles.client_claim(3.0, 5.0))
        controls = {"exposure": oracles.caught()}
        found = run_audits(context, ["exposure"], profile="smoke", controls=controls)
    else:
        context = oracles.context(gain=0.0, claim=oracles.client_claim(3.0, 5.0))
        found = run_audits(context, ["exposure"], profile="smoke")
    assert found.verdict == verdict
    return found


def report_about(weights: str, verdict: str = "consistent") -> dict[str, Any]:
    """Return the JSON of a report about some weights."""
    report = replace(_report(verdict), subject={"weights_sha256": weights})
    parsed: dict[str, Any] = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    return parsed


def open_registry(root: Path, *, sealer: Sealer | None = None) -> AdapterRegistry:
    return AdapterRegistry(root, signer=SIGNER, sealer=sealer)


def add(
    registry: AdapterRegistry,
    folder: Path,
    seed: int = 1,
    *,
    verdict: str | None = "consistent",
    base: str = BASE,
    **more: Any,
) -> AdapterVersion:
    """Write an adapter and add it."""
    weights = write_folder(folder, seed, base=base)
    return registry.add(
        folder,
        name="small",
        base_digest=base,
        plan_digest=PLAN,
        ledger_head=HEAD,
        audit=None if verdict is None else report_about(weights, verdict),
        **more,
    )


def files_of(registry: AdapterRegistry, version: AdapterVersion) -> dict[str, bytes]:
    """Return a version's files as a download gives them."""
    return {entry.name: registry.read(entry.sha256, 0, entry.size) for entry in version.facts.files}


def weights_digest(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def rewrite(path: Path, change: Mapping[str, Any]) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
