"""The adapter of an export, verified first: a registry's version, a signed copy, a run, a folder.

Whatever has a signed manifest is compared with it byte for byte. A run's or a loose adapter's audit
report is concluded again from its own evidence. An adapter with a violation is refused whatever it
is, and so is one that is withheld.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from client.adapterfiles import load_files, read_bounded
from client.exports.record import ADAPTER
from shared.adaptermethod import IA3, PEFT_TYPES
from shared.crypto import Signature, SigningKey
from shared.documents import LARGEST_DOCUMENT
from shared.errors import (
    AdapterCorrupt,
    AdapterError,
    AdapterIncompatible,
    InvalidValue,
    ReleaseRefused,
    UsageError,
)
from shared.lora import Factors
from shared.loraconfig import LoraTerms, check_factors, read_lora_config
from shared.manifest import (
    LARGEST_OTHER,
    LARGEST_WEIGHTS,
    OPTIONAL,
    PEFT_CONFIG,
    REPORT,
    REPORT_SIGNATURE,
    RUN_MANIFEST,
    WEIGHTS,
    AdapterManifest,
    Privacy,
    read_manifest,
)
from shared.tensorfile import read_tensor_header

if TYPE_CHECKING:
    from server.registry import AdapterRegistry

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
_NUMBERS: Mapping[str, Any] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An adapter that may be exported.

    Attributes:
        name: what it is called.
        digest: of its signed manifest; of its weights without one.
        factors: float32, by PEFT's names; finite.
        terms: rank, scale and layers.
        base_digest: of the base that it was trained on; None if nothing says.
        base_model: what its configuration calls that base.
        files: every file of it by name, as verified; they go along.
        verdict: of its audit; None without one.
        privacy: what is claimed.
        signed_by: the public key that signed the manifest; None without one.
        signer: signs the export, where the server's key is at hand.
        warnings: what the person who exports should know.
    """

    name: str
    digest: str
    factors: Factors
    terms: LoraTerms
    base_digest: str | None
    base_model: str | None
    files: Mapping[str, bytes]
    verdict: str | None
    privacy: Privacy
    signed_by: str | None
    signer: SigningKey | None = None
    warnings: tuple[str, ...] = ()


def find_source(
    path: Path,
    *,
    version: str | None = None,
    key: Path | None = None,
    public_key: str | None = None,
    sealing: Path | None = None,
) -> Source:
    """Find and verify an adapter.

    Args:
        path: a server's folder, a registry, a run folder, or an adapter's own folder.
        version: first digits of a version's digest; of a registry alone, the current by default.
        key: the key that signs adapters; a server's own by default.
        public_key: the only key whose signature counts. For a run or a loose adapter: that of its
            audit report.
        sealing: keys that encrypt a registry's files.

    Raises:
        ReleaseRefused: for a violation, a withheld version, or an audit report that does not hold.
        AdapterUntrusted: for a signature that does not hold, or is of another key.
        AdapterError: if there is no adapter.
        AdapterCorrupt: if a file is missing or damaged.
        AdapterIncompatible: if it is neither plain LoRA nor IA3 nor a prompt of a language model.
        UsageError: if a version is named where there are none.
    """
    found = _find(path, version, key, public_key, sealing)
    if found.terms.method == IA3 and all(bool((v == 1).all()) for v in found.factors.values()):
        msg = f"adapter {found.digest[:12]}: every vector is one, so that it changes nothing."
        raise AdapterIncompatible(msg, hint="Train it first.")
    b = [v for name, v in found.factors.items() if ".lora_B." in name]
    if not (found.terms.method or any(bool(v.any()) for v in b)):
        msg = f"adapter {found.digest[:12]}: every B is zero, so that it changes nothing."
        raise AdapterIncompatible(
            msg, hint='With aggregation.share "A" each client keeps its own B.'
        )
    return found


def _find(
    path: Path,
    version: str | None,
    key: Path | None,
    public_key: str | None,
    sealing: Path | None,
) -> Source:
    """Find and verify an adapter of whatever origin."""
    if _is_registry(path):
        return _of_registry(path, version, key, public_key, sealing)
    if version is not None:
        msg = f"--version with {path.name!r}, which is no adapter registry."
        raise UsageError(msg, hint="Give a server's folder, or leave --version out.")
    folder = path / ADAPTER if (path / ADAPTER).is_dir() else path
    if not os.path.lexists(folder / PEFT_CONFIG):
        found = "holds no adapter" if path.is_dir() else "is not a folder here"
        msg = f"{path.name!r} {found}."
        raise AdapterError(msg, hint="Give a finished run, an adapter's folder, or a server's.")
    if (folder / MANIFEST).exists():
        return _of_signed(folder, public_key)
    return _of_folder(folder, path, public_key)


def _is_registry(path: Path) -> bool:
    """Tell whether a folder is a server's, or a registry."""
    return (path / "server.toml").exists() or (path / "registry.json").exists()


def _of_registry(
    path: Path,
    version: str | None,
    key: Path | None,
    public_key: str | None,
    sealing: Path | None,
) -> Source:
    """Take a version out of a registry, every byte checked."""
    from server.registry.export import export_version
    from simulations.registry_cli import find_version, open_registry

    registry = open_registry(path, key=key, write=False, public_key=public_key, sealing=sealing)
    found = _current(registry) if version is None else find_version(registry, version).digest
    _refuse_withheld(registry.get(found).facts)
    with tempfile.TemporaryDirectory(prefix="fedslm-export-") as room:
        export_version(registry, found, Path(room) / "version")
        return _of_signed(Path(room) / "version", registry.trusted, signer=registry.signer)


def _current(registry: AdapterRegistry) -> str:
    """Return the version in use."""
    for version in registry.versions():
        if version.state == "current":
            return version.digest
    msg = "No version of the registry is in use."
    raise AdapterError(msg, hint="Name one: --version DIGEST (fedslm adapter list).")


def _of_signed(folder: Path, public_key: str | None, *, signer: SigningKey | None = None) -> Source:
    """Read an adapter that has a signed manifest beside its files."""
    data = read_bounded(folder / MANIFEST, LARGEST_DOCUMENT)
    try:
        raw = json.loads(read_bounded(folder / SIGNATURE, LARGEST_DOCUMENT))
        signature = Signature.from_dict(raw if isinstance(raw, dict) else {})
    except (InvalidValue, ValueError, RecursionError) as error:
        msg = f"{SIGNATURE} of the adapter is damaged."
        raise AdapterCorrupt(msg, hint="Export it again.") from error
    manifest = read_manifest(data, signature, trusted=public_key or signature.public_key)
    _refuse_withheld(manifest)
    config = read_bounded(folder / PEFT_CONFIG, LARGEST_OTHER)
    _require_lora(config)
    verified = load_files(manifest, folder)
    files = {e.name: read_bounded(folder / e.name, e.size) for e in manifest.files}
    said = (
        () if public_key else (f"Nothing says that key {signature.public_key} is to be trusted.",)
    )
    return Source(
        name=manifest.name,
        digest=manifest.digest,
        factors=verified.factors,
        terms=verified.terms,
        base_digest=manifest.base_digest,
        base_model=_base_model(config),
        files={**files, MANIFEST: data, SIGNATURE: read_bounded(folder / SIGNATURE, 1 << 18)},
        verdict=manifest.verdict,
        privacy=manifest.privacy,
        signed_by=signature.public_key,
        signer=signer,
        warnings=(*said, *_unaudited(manifest.verdict)),
    )


def _refuse_withheld(manifest: AdapterManifest) -> None:
    """Refuse what an audit found to be broken, and what is kept as evidence alone."""
    if manifest.verdict == "violation" or manifest.withheld:
        msg = f"adapter {manifest.digest[:12]}: verdict={manifest.verdict}, and it is withheld."
        raise ReleaseRefused(msg, hint="It is kept as evidence, and never given out.")


def _of_folder(folder: Path, run: Path, audit_key: str | None) -> Source:
    """Read a run's adapter, or a loose one."""
    from server.registry.evidence import examine

    files = {
        PEFT_CONFIG: read_bounded(folder / PEFT_CONFIG, LARGEST_OTHER),
        WEIGHTS: read_bounded(folder / WEIGHTS, LARGEST_WEIGHTS),
    }
    for name in OPTIONAL:
        place = run / name if name in {REPORT, REPORT_SIGNATURE} else folder / name
        if os.path.lexists(place):
            files[name] = read_bounded(place, LARGEST_OTHER)
    digest = hashlib.sha256(files[WEIGHTS]).hexdigest()
    report = None if REPORT not in files else _object(REPORT, files[REPORT])
    found = examine(digest, report=report, documents=files, trusted=audit_key, withheld=False)
    _require_lora(files[PEFT_CONFIG])
    terms = read_lora_config(files[PEFT_CONFIG])
    facts = _object(RUN_MANIFEST, files[RUN_MANIFEST]) if RUN_MANIFEST in files else {}
    base = facts.get("base_digest")
    verdict = None if found.audit is None else found.audit.verdict
    return Source(
        name=run.resolve().name,
        digest=digest,
        factors=_factors(files[WEIGHTS], terms),
        terms=terms,
        base_digest=base if isinstance(base, str) else None,
        base_model=_base_model(files[PEFT_CONFIG]),
        files=files,
        verdict=verdict,
        privacy=found.privacy,
        signed_by=None,
        warnings=(*_loose(base), *_unaudited(verdict)),
    )


def _factors(weights: bytes, terms: LoraTerms) -> Factors:
    """Return the factors of a weights file; finite."""
    tensors = read_tensor_header(io.BytesIO(weights), len(weights))
    check_factors(tensors, terms)
    factors: Factors = {}
    for tensor in tensors:
        numbers = np.frombuffer(weights[tensor.start : tensor.stop], dtype=_NUMBERS[tensor.dtype])
        factors[tensor.name] = numbers.astype(np.float32).reshape(tensor.shape)
        if not bool(np.isfinite(factors[tensor.name]).all()):
            msg = f"{WEIGHTS} has a value that is not finite."
            raise AdapterCorrupt(msg)
    return factors


def _require_lora(config: bytes) -> None:
    """Refuse the other kinds of adapters, each with its reason."""
    parsed = _object(PEFT_CONFIG, config)
    kind, task = parsed.get("peft_type", "LORA"), parsed.get("task_type")
    if kind != "LORA" and kind not in PEFT_TYPES.values():
        msg = f"peft_type={kind!r}, expected 'LORA': no other runtime computes this adapter."
        raise AdapterIncompatible(msg, hint="A mixture needs its gates: answer with fedslm itself.")
    if task not in {None, "CAUSAL_LM"}:
        msg = f"task_type={task!r}, expected 'CAUSAL_LM': an encoder's head is no language model."
        raise AdapterIncompatible(msg, hint="Load it with PEFT on its encoder.")


def _base_model(config: bytes) -> str | None:
    """Return what the adapter's configuration calls its base."""
    found = _object(PEFT_CONFIG, config).get("base_model_name_or_path")
    return found if isinstance(found, str) else None


def _loose(base: object) -> tuple[str, ...]:
    """Return what to know about an adapter without a signed manifest."""
    said = "The adapter has no signed manifest: add it to a registry to sign it."
    return (said,) if base else (said, "Nothing says which base it was trained on.")


def _unaudited(verdict: str | None) -> tuple[str, ...]:
    """Return what to know about an adapter's audit."""
    if verdict is None:
        return ("The adapter was not audited.",)
    return ("Its audit is inconclusive.",) if verdict == "inconclusive" else ()


def _object(name: str, data: bytes) -> Mapping[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{name} of the adapter is no JSON."
        raise AdapterCorrupt(msg) from error
    if not isinstance(value, dict):
        msg = f"{name} of the adapter is no JSON object."
        raise AdapterCorrupt(msg)
    return value
