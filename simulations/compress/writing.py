"""A compressed model as a folder with a manifest: whole, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.basedigest import base_digest, weight_files
from client.compressed import FORMAT, MANIFEST
from client.int4 import Int4Linear
from client.int4store import save_int4
from client.model import load_base, quiet
from client.quantization import finish_quantized, linear_modules
from client.torchaostore import save_torchao_int8
from shared.errors import ConflictingSettings
from shared.files import disk_errors, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.model import BaseModel
    from simulations.compress.protocol import Compressed, Compressor, Work


def write_compressed(
    compressed: Compressed, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a compressed model's weights, configuration and tokenizer.

    Args:
        compressed: what a method made; its model is changed if it has codes.
        tokenizer: of the base.
        folder: exists and is empty.

    Raises:
        OutOfDisk: when no space is left.
        RunFolderError: for any other failure to write.
        UnsupportedModel: if a linear layer was left out of what was asked for.
    """
    model = compressed.model
    # Off while training, and nothing that a folder should tell other programs to do without.
    model.config.use_cache = True
    if compressed.storage == "int4":
        _take_codes(model, compressed)
        finish_quantized(model, "int4")
        save_int4(model, tokenizer, folder)
        return
    if compressed.storage == "torchao-int8":
        finish_quantized(model, "torchao-int8")
        save_torchao_int8(model, tokenizer, folder)
        return
    if compressed.storage == "none":
        _save(model, tokenizer, folder)
        return
    with _temporary(folder / "full") as full:
        _save(model, tokenizer, full)
        stored = load_base(str(full), quantization=compressed.storage).model
        stored.config.use_cache = True
        _save(stored, tokenizer, folder)


def manifest_of(
    name: str, method: Compressor, compressed: Compressed, work: Work, folder: Path
) -> dict[str, Any]:
    """Return the manifest of a folder that was just written.

    Args:
        name: of the method.
        method: the method.
        compressed: what it made.
        work: what it was given.
        folder: holds the compressed checkpoint.
    """
    settings = {key: getattr(work.settings, key) for key in method.reads}
    text = {"name": work.text.name, "digest": work.text.digest, "seed": work.text.seed}
    return {
        "format": FORMAT,
        "method": name,
        "parameters": {**settings, **compressed.parameters},
        "text": text if method.calibrates else None,
        "source": {"name": work.base.name, "digest": work.base.digest},
        "result": {
            "digest": base_digest(folder),
            "quantization": compressed.storage,
            "weights_bytes": weights_bytes(folder),
        },
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest beside the weights; errors as :func:`shared.files.write_bytes`."""
    write_json(folder / MANIFEST, manifest)


def weights_bytes(folder: Path) -> int:
    """Return the bytes of a folder's safetensors files."""
    return sum(path.stat().st_size for path in weight_files(folder, folder.name))


def full_precision(base: str) -> BaseModel:
    """Load a base to compress.

    Raises:
        ConflictingSettings: if it is stored quantised: the values it was made from are gone.
        ModelError: as :func:`client.model.load_base`.
    """
    try:
        return load_base(base)
    except ConflictingSettings as error:
        msg = f"Model {Path(base).name!r} is stored quantised, and compressing starts from float32."
        hint = "Give the model that it was made from; a pruned or shortened one is fine."
        raise ConflictingSettings(msg, hint=hint) from error


def _take_codes(model: Any, compressed: Compressed) -> None:  # noqa: ANN401
    """Put 4-bit layers of the chosen codes in place of the linear layers that have some."""
    for name, module in list(linear_modules(model)):
        if name not in compressed.codes:
            continue
        packed, scales = compressed.codes[name]
        weight: Any = module.weight
        columns = weight.shape[0] if hasattr(module, "nf") else weight.shape[1]
        bias: Any = module.bias
        parent, _, leaf = name.rpartition(".")
        layer = Int4Linear.of_codes(packed, scales, columns, bias)
        setattr(model.get_submodule(parent), leaf, layer)


def _save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:  # noqa: ANN401
    """Write a folder as transformers does."""
    with quiet(), disk_errors(folder / "model.safetensors"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """Make a folder that is gone afterwards."""
    with disk_errors(folder):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
