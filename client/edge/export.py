"""Writing the exported step: the program, its frozen weights, and the manifest that pins both.

A step is compared with PyTorch before it is written: a program that computes something else is
refused, whatever the reason.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from client.clipping import MicrobatchClipper
from client.edge.chatexport import chat_template_of
from client.edge.engine import StepEngine
from client.edge.engines import open_engine
from client.edge.program import (
    CHAT,
    MANIFEST,
    QUANTIZATIONS,
    RUNTIMES,
    TOKENIZER,
    StepFile,
    StepManifest,
    file_names,
    hash_file,
)
from client.edge.trace import trace_step
from client.examples import IGNORED, Example
from client.losses import collate
from shared.canonical import canonical_json
from shared.errors import InvalidValue, MissingDependency, RunFolderExists, UnsupportedModel
from shared.files import disk_errors, write_bytes
from shared.registry import suggestion

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from client.adapter import AdaptedModel
    from client.edge.trace import TracedStep
    from shared.lora import Factors

EXACT = 1e-4
"""Largest relative error of an unquantised step's gradient against PyTorch."""

ALIKE = 0.5
"""Smallest cosine of a quantised step's gradient with PyTorch's unquantised one, for each row."""

_SEED = 20_260
_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An exported step beside PyTorch on rows of random ids.

    Attributes:
        relative_error: largest over the rows, of the gradient's L2 norm.
        cosine: smallest over the rows, between the gradients.
    """

    relative_error: float
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A step that was written."""

    manifest: StepManifest
    comparison: Comparison


def export_step(
    model: AdaptedModel,
    folder: Path,
    *,
    length: int,
    max_grad_norm: float | None,
    quantization: str = "none",
    runtime: str = "onnx",
) -> Exported:
    """Write one example's gradient of the factors that train as a program for devices.

    Args:
        model: unquantised, on the CPU, without dropout; ``set_trainable`` says what trains. Its
            factors are changed and restored.
        folder: does not exist yet; it appears whole or not at all.
        length: tokens that every example is padded to.
        max_grad_norm: the clip inside the program; None for plain training.
        quantization: of the frozen weights: ``"none"``, ``"int8"`` or ``"int4"``.
        runtime: ``"onnx"`` for speed, ``"executorch"`` for memory.

    Returns:
        The manifest, and how far the step is from PyTorch.

    Raises:
        RunFolderExists: if the folder is there.
        MissingDependency: if the exporter's packages are not installed.
        UnsupportedModel: if the model cannot be traced, or the program does not compute what
            PyTorch does.
        InvalidValue: for an unknown quantisation or runtime, or a length that is out of range.
    """
    require_writable(folder, quantization=quantization, runtime=runtime)
    _require_length(model, length)
    traced = trace_step(model, length=length, max_grad_norm=max_grad_norm)
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        inside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with disk_errors(folder):
            _write(traced, model, inside, quantization, runtime)
            _save_tokenizer(model, inside)
        manifest = _manifest(
            model,
            inside,
            length=length,
            max_grad_norm=max_grad_norm,
            quantization=quantization,
            runtime=runtime,
        )
        comparison = compare(model, open_engine(inside, manifest))
        _require_same(comparison, quantization)
        manifest = replace(manifest, deviation=float(f"{comparison.relative_error:.3g}"))
        write_bytes(inside / MANIFEST, canonical_json(manifest.to_json()).encode())
        inside.chmod(0o755)
        inside.rename(folder)
    finally:
        shutil.rmtree(inside, ignore_errors=True)
    return Exported(manifest=manifest, comparison=comparison)


def compare(model: AdaptedModel, step: StepEngine) -> Comparison:
    """Run an exported step and PyTorch on rows of random ids with a random adapter.

    The rows are public. The first fills the length; the others are shorter, padded, and carry
    labels on a part.
    """
    spec, manifest = model.spec, step.manifest
    kept, kinds = model.read_vector("AB"), manifest.trained
    rng = np.random.default_rng(_SEED)
    values = kept + (0.02 * rng.standard_normal(kept.size)).astype(np.float32)
    bound = float("inf") if manifest.max_grad_norm is None else manifest.max_grad_norm
    errors, cosines = [], []
    try:
        model.load_vector(values, "AB")
        factors: Factors = spec.unflatten(values)
        with model.training(), MicrobatchClipper(model) as engine:
            for example in _rows(manifest, rng):
                sums = engine.clipped_sum(collate([example], 0), bound)
                truth = torch.cat([part.reshape(-1) for part in sums]).numpy()
                found = step.gradient(example, factors).astype(np.float64)
                errors.append(_norm(found - truth) / max(_norm(truth), 1e-12))
                both = max(_norm(truth) * _norm(found), 1e-24)
                cosines.append(float(truth @ found) / both)
    finally:
        model.load_vector(kept, "AB")
        model.set_trainable(kinds)
    return Comparison(relative_error=_worst(errors), cosine=-_worst([-c for c in cosines]))


def require_writable(folder: Path, *, quantization: str, runtime: str) -> None:
    """Refuse what needs no model to be refused.

    Args:
        folder: of the step.
        quantization: of the frozen weights.
        runtime: that the program is for.

    Raises:
        InvalidValue: for an unknown quantisation or runtime.
        RunFolderExists: if the folder is there.
        MissingDependency: if the exporter's packages are not installed.
    """
    _require_one_of("quantization", quantization, QUANTIZATIONS)
    _require_one_of("runtime", runtime, RUNTIMES)
    if folder.exists():
        msg = f"Folder {folder.name!r} exists, expected a new one."
        raise RunFolderExists(msg, hint="Give another --out.")
    require_exporter(runtime)


def require_exporter(runtime: str = "onnx") -> None:
    """Refuse to begin without the packages that write a program.

    Args:
        runtime: that the program is for.

    Raises:
        MissingDependency: with the line that installs them.
    """
    packages = ("executorch",) if runtime == "executorch" else ("onnx", "onnxruntime", "onnxscript")
    for name in packages:
        if find_spec(name) is None:
            msg = f"This export needs {name}, which is not installed."
            raise MissingDependency(msg, hint="pip install 'fedslm[export]'")


def _require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a word that is not known."""
    if value not in known:
        msg = f"{name}={value!r}, expected one of {', '.join(known)}."
        raise InvalidValue(msg, hint=suggestion(value, known))


def _require_length(model: AdaptedModel, length: int) -> None:
    """Refuse more tokens than the model has positions for."""
    longest = getattr(model.base.model.config, "max_position_embeddings", None)
    if longest is not None and not length <= longest:
        msg = f"length={length}, the model reads at most {longest} tokens."
        raise InvalidValue(msg, hint="Set data.max_length lower.")


def _write(
    traced: TracedStep, model: AdaptedModel, folder: Path, quantization: str, runtime: str
) -> None:
    """Write the program and its frozen weights."""
    if runtime == "executorch":
        from client.edge.etprogram import write_executorch

        write_executorch(traced, folder, quantization=quantization)
        return
    from client.edge.onnxprogram import write_onnx

    names = [factor.name for factor in model.spec.factors]
    write_onnx(traced, folder, factors=names, quantization=quantization)


def _save_tokenizer(model: AdaptedModel, folder: Path) -> None:
    """Write the tokenizer as one file, which needs no transformers to read."""
    backend = getattr(model.base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = "The tokenizer of this model has no tokenizer.json."
        raise UnsupportedModel(msg, hint="Only fast tokenizers work without transformers.")
    (folder / TOKENIZER).write_text(backend.to_str(), encoding="utf-8")
    template = chat_template_of(model.base.tokenizer)
    if template is not None:
        (folder / CHAT).write_text(template.to_json(), encoding="utf-8")


def _manifest(
    model: AdaptedModel,
    folder: Path,
    *,
    length: int,
    max_grad_norm: float | None,
    quantization: str,
    runtime: str,
) -> StepManifest:
    """Return the manifest of what a folder holds."""
    tokenizer = model.base.tokenizer
    files = []
    chat = [CHAT] if (folder / CHAT).exists() else []
    for name in sorted((*file_names(runtime), *chat)):
        size, digest = hash_file(folder / name)
        files.append(StepFile(name=name, size=size, sha256=digest))
    return StepManifest(
        runtime=runtime,
        quantization=quantization,
        length=length,
        max_grad_norm=max_grad_norm,
        trained=model.kinds,
        vocabulary=int(model.base.model.config.vocab_size),
        bos=tokenizer.bos_token_id,
        eos=tokenizer.eos_token_id,
        base_digest=model.base.digest,
        adapter=model.spec,
        files=tuple(files),
        deviation=0.0,
    )


def _rows(manifest: StepManifest, rng: np.random.Generator) -> Iterator[Example]:
    """Yield examples of random ids."""
    for row in range(_ROWS):
        size = manifest.length if row == 0 else int(rng.integers(2, manifest.length + 1))
        ids = rng.integers(0, manifest.vocabulary, size=size)
        labels = ids.copy()
        labels[: min(row, size - 1)] = IGNORED
        yield Example(ids=ids, labels=labels)


def _require_same(found: Comparison, quantization: str) -> None:
    """Refuse a step that computes something else than PyTorch does."""
    exact = quantization == "none"
    holds = found.relative_error <= EXACT if exact else found.cosine >= ALIKE
    if not holds:
        far = f"relative error {found.relative_error:.2g}, cosine {found.cosine:.3g}"
        msg = f"The exported gradient is not that of PyTorch ({far})."
        hint = "This model cannot be exported so." if exact else "Use a finer quantisation."
        raise UnsupportedModel(msg, hint=hint)


def _norm(vector: NDArray[np.float64]) -> float:
    """Return the L2 norm."""
    return float(np.linalg.norm(vector))


def _worst(values: list[float]) -> float:
    """Return the largest value; NaN if any is."""
    return float(np.max(values))
