"""Going on from an earlier adapter: what is checked about it, and what is said about it.

The server alone reads the adapter. Devices get its trained factors as they get every round's; a
frozen A they make themselves, from the scenario's ``lora.seed``.

Guarantee:
    A warm start adds nothing to what this run's epsilon covers, and takes nothing away: the earlier
    adapter is a public input of this run. Whoever was in both runs is protected by both guarantees
    composed; a shared ledger composes them, and :func:`describe` says what is known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from server.adapters import (
    MANIFEST,
    PEFT_CONFIG,
    WEIGHTS,
    method_config,
    read_adapter,
    whole_modules,
)
from shared.config import RunConfig
from shared.errors import AdapterCorrupt, AdapterIncompatible, NotResumable
from shared.files import write_bytes
from shared.lora import AdapterSpec, Vector, initial_factors
from shared.loraconfig import read_lora_config

START = "start.safetensors"
_SUMMARY = "summary.json"
_ADAPTER = "adapter"
_LARGEST_NOTE = 1 << 22
# Orthonormal factors may differ in their last bits from one machine to another.
_ROUNDING = 1e-5
_GUARANTEE = ("mode", "epsilon", "delta", "unit", "neighboring_relation")


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """An earlier adapter, checked against the run that goes on from it.

    Attributes:
        vector: its trained factors, float32, in the run's canonical order.
        note: where it comes from: digests, rounds, and the guarantee that was claimed for it
            (``privacy``, None where nothing is known); JSON.
    """

    vector: Vector
    note: Mapping[str, Any]


def open_warm_start(
    path: Path, *, config: RunConfig, spec: AdapterSpec, base_digest: str
) -> WarmStart:
    """Read an adapter to go on from.

    Args:
        path: a finished run folder, or the folder of an adapter that fedslm wrote.
        config: the scenario that goes on.
        spec: its adapter.
        base_digest: of its base model.

    Raises:
        AdapterCorrupt: if files are missing, damaged, or not those that the manifest names.
        AdapterIncompatible: if base, rank, scale or layers differ, or a frozen A is another.
    """
    folder = path / _ADAPTER if (path / _ADAPTER).is_dir() else path
    manifest = _object(folder / MANIFEST)
    weights = _bytes(folder / WEIGHTS)
    digest = hashlib.sha256(weights).hexdigest()
    if manifest.get("weights_sha256") != digest:
        msg = f"{MANIFEST} names other weights than {WEIGHTS} holds."
        raise AdapterCorrupt(msg, hint="The adapter was changed after its run.")
    if manifest.get("base_digest") != base_digest:
        msg = f"The earlier adapter belongs to base {str(manifest.get('base_digest'))[:12]!r}, "
        msg += f"the scenario has {base_digest[:12]!r}."
        raise AdapterIncompatible(msg)
    _require_same_form(folder, spec)
    if manifest.get("labels", []) != list(config.task.labels):
        msg = "The earlier adapter's head has other labels, or another order of them."
        raise AdapterIncompatible(msg, hint="Say task.labels as the earlier run did.")
    factors = read_adapter(folder, spec)
    if not all(np.isfinite(value).all() for value in factors.values()):
        msg = "The earlier adapter holds values that are not finite."
        raise AdapterCorrupt(msg)
    kinds = config.trained_kinds
    frozen = "".join(kind for kind in "AB" if kind not in kinds)
    own = initial_factors(spec, config.adapter_seed)
    for factor in spec.of_kind(frozen) if frozen else ():
        if not np.allclose(factors[factor.name], own[factor.name], rtol=0, atol=_ROUNDING):
            msg = f"The frozen {factor.kind} of the earlier adapter is not that of lora.seed="
            msg += f"{config.adapter_seed}."
            hint = "Set lora.seed to the seed of the earlier run; an adapter whose A was trained "
            hint += "goes on under aggregation.policy=fedavg."
            raise AdapterIncompatible(msg, hint=hint)
    note = {
        "weights_sha256": digest,
        "base_digest": base_digest,
        "rounds": manifest.get("rounds"),
        "plan_digest": manifest.get("plan_digest"),
        "ledger_head": manifest.get("ledger_head"),
        "privacy": _guarantee(path),
    }
    return WarmStart(vector=spec.flatten(factors, kinds), note=note)


def keep_start(folder: Path, start: WarmStart) -> str:
    """Write a start into a new run folder, which from then on needs the earlier one no more.

    Returns:
        The SHA-256 of the file, for ``run.json``.

    Raises:
        OutOfDisk: if there is no space.
    """
    metadata = {"fedslm": json.dumps(dict(start.note), sort_keys=True)}
    data = save({"vector": start.vector}, metadata=metadata)
    write_bytes(folder / START, data)
    return hashlib.sha256(data).hexdigest()


def read_start(folder: Path, *, size: int, digest: object) -> WarmStart:
    """Read the start that a run folder keeps.

    Args:
        folder: the run folder.
        size: number of trained parameters.
        digest: SHA-256 of the file, as ``run.json`` has it.

    Raises:
        NotResumable: if it is missing or another one.
    """
    try:
        data = (folder / START).read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError
        vector = np.asarray(load(data)["vector"], dtype=np.float32)
        length = int.from_bytes(data[:8], "little")
        note = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["fedslm"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        msg = f"{START} is missing, damaged, or not the one that the run began with."
        raise NotResumable(msg, hint="Start a new run in another folder.") from error
    if vector.shape != (size,):
        msg = f"{START} has {vector.size} values, the adapter {size}."
        raise NotResumable(msg)
    return WarmStart(vector=vector, note=note)


def describe(note: Mapping[str, Any], *, charged_together: bool, private: bool) -> str:
    """Say what a warm start means for whoever was in both runs, in two sentences.

    Args:
        note: of the start.
        charged_together: whether this run's ledger holds the earlier run's plan for the same data.
        private: whether this run has a guarantee.
    """
    known = note.get("privacy") or {}
    epsilon, delta = known.get("epsilon"), known.get("delta")
    if known.get("mode") in {None, "none"} or epsilon is None or delta is None:
        return (
            "The run went on from an adapter for which no guarantee is known. Epsilon here speaks "
            "of what this run released, not of what the earlier adapter had learnt."
        )
    earlier = (
        f"The run went on from an adapter whose run spent epsilon = {epsilon:.4g} at delta = "
        f"{delta:.3g} (unit {known.get('unit')}, {known.get('neighboring_relation')})."
    )
    if not private:
        return f"{earlier} This run has no guarantee, so whoever is in both has none."
    if charged_together:
        return f"{earlier} Both runs are in one ledger: epsilon here is that of the two together."
    return (
        f"{earlier} The two guarantees compose for whoever is in both runs: if unit and relation "
        "are the same, at most the sum of the epsilons at the sum of the deltas. A ledger that "
        "both share (--ledger) charges them together."
    )


def _require_same_form(folder: Path, spec: AdapterSpec) -> None:
    """Refuse another rank, scale, or choice of layers."""
    if spec.method is not None:
        found = _object(folder / PEFT_CONFIG)
        if any(found.get(key) != value for key, value in method_config(spec).items()):
            msg = (
                f"The earlier adapter is not of lora.variant={spec.method.name!r} on these layers."
            )
            raise AdapterIncompatible(msg)
        return
    terms = read_lora_config(_bytes(folder / PEFT_CONFIG), whole=whole_modules(spec))
    compared: dict[str, tuple[object, object]] = {
        "r": (terms.r, spec.r),
        "alpha": (terms.lora_alpha, float(spec.lora_alpha)),
        "rslora": (terms.rslora, spec.rslora),
        "mixture": (terms.mixture, spec.mixture),
        "target_modules": (tuple(sorted(terms.target_modules)), tuple(sorted(spec.target_modules))),
    }
    for name, (old, new) in compared.items():
        if old != new:
            msg = f"The earlier adapter has lora.{name}={old!r}, the scenario {new!r}."
            raise AdapterIncompatible(msg)


def _guarantee(path: Path) -> dict[str, Any] | None:
    """Return what a run's summary claims; None where there is none."""
    try:
        claimed = _object(path / _SUMMARY).get("privacy")
    except AdapterCorrupt:
        return None
    return {key: claimed.get(key) for key in _GUARANTEE} if isinstance(claimed, dict) else None


def _object(path: Path) -> dict[str, Any]:
    """Read a small JSON object.

    Raises:
        AdapterCorrupt: if it is none.
    """
    data = _bytes(path)
    try:
        value = json.loads(data) if len(data) <= _LARGEST_NOTE else None
    except (ValueError, RecursionError) as error:
        msg = f"{path.name} is not JSON."
        raise AdapterCorrupt(msg) from error
    if not isinstance(value, dict):
        msg = f"{path.name} is no JSON object of a reasonable size."
        raise AdapterCorrupt(msg)
    return value


def _bytes(path: Path) -> bytes:
    """Read a file of an adapter folder.

    Raises:
        AdapterCorrupt: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        msg = f"{path.name} of the earlier adapter cannot be read."
        hint = "Give a finished run folder, or the folder of an adapter that fedslm wrote."
        raise AdapterCorrupt(msg, hint=hint) from error
