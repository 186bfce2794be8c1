"""A registry of a server with real, small adapters."""

from __future__ import annotations

import numpy as np

from server.adapters import write_adapter
from server.audit.protocol import Claim
from server.audit.report import AuditReport
from server.home import ServerHome
from server.registry import AdapterRegistry, AdapterVersion
from shared.crypto import SigningKey
from shared.lora import AdapterSpec, Factor
from shared.sealing import Sealer

BASE = "b" * 64


def spec_of(width: int) -> AdapterSpec:
    return AdapterSpec(
        factors=tuple(
            Factor(
                name=f"base_model.model.model.layers.0.self_attn.q_proj.lora_{kind}.weight",
                kind=kind,
                shape=shape,
            )
            for kind, shape in (("A", (4, width)), ("B", (width, 4)))
        ),
        r=4,
        lora_alpha=8.0,
        target_modules=("q_proj",),
    )


def registry_of(home: ServerHome, *, sealer: Sealer | None = None) -> AdapterRegistry:
    key = SigningKey.load_or_create(home.adapter_key)
    return AdapterRegistry(home.adapters, signer=key, sealer=sealer)


def add_adapter(
    home: ServerHome,
    *,
    number: int = 1,
    width: int = 64,
    promote: bool = True,
    withheld: bool = False,
    sealer: Sealer | None = None,
) -> AdapterVersion:
    """Add an audited version whose weights are all ``number``; put it in use if asked."""
    spec, folder = spec_of(width), home.path / f"adapter-{number}"
    factors = {f.name: np.full(f.shape, number, np.float32) for f in spec.factors}
    weights = write_adapter(
        folder, spec=spec, factors=factors, base_model="demo", dropout=0.0, manifest={}
    )
    claim = Claim(
        mode="client-central",
        epsilon=4.0,
        delta=1e-4,
        unit="client",
        neighboring_relation="add-or-remove-one",
    )
    report = AuditReport(
        claim=claim,
        findings=(),
        canaries={},
        profile="smoke",
        seed=1,
        subject={"weights_sha256": weights},
    )
    registry = registry_of(home, sealer=sealer)
    made = registry.add(
        folder, name="clinics", base_digest=BASE, audit=report.to_dict(), withheld=withheld
    )
    return registry.promote(made.digest) if promote else made
