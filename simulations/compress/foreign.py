"""GPTQ and AWQ checkpoints, as other programs write them, into the 4-bit storage of fedslm.

No weight is rounded: both formats hold, for a group of weights along the inputs, a float16 scale d,
a zero z and codes q from 0 to 15 that stand for ``(q - z) d``, and so does ours, in smaller groups.
The layouts are those of AutoGPTQ (``qweight`` packs eight inputs into an int32, ``qzeros`` eight
outputs; format ``gptq`` stores z - 1, ``gptq_v2`` z) and of AutoAWQ's GEMM (both pack eight
outputs, in the order 0 2 4 6 1 3 5 7).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.basedigest import base_digest, weight_files
from client.compressed import FORMAT
from client.int4 import GROUP, group_count, pack_int4
from client.int4store import SETTINGS
from shared.errors import RunFolderExists, UnsupportedModel
from shared.files import disk_errors, write_json
from simulations.compress.writing import weights_bytes, write_manifest

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_COPIED = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a checkpoint packs its codes.

    Attributes:
        method: ``"gptq"`` or ``"awq"``.
        reordered: whether the columns of a group lie apart (act-order).
        group: weights of a row that share a scale; 0 is the whole row.
        shift: what is added to a stored zero.
    """

    method: str
    group: int
    shift: int
    reordered: bool = False


def convert(source: Path, out: Path) -> dict[str, Any]:
    """Convert a checkpoint, and return the manifest of what came out.

    Args:
        source: a transformers folder with ``quant_method`` ``"gptq"`` or ``"awq"``.
        out: is made.

    Raises:
        RunFolderExists: if it is there.
        UnsupportedModel: for anything but 4 bits in groups of a multiple of 32.
    """
    from safetensors.torch import load_file, save_file

    if out.exists():
        msg = f"{out.name!r} is there already."
        raise RunFolderExists(msg, hint="Give another --out.")
    config = _config(source)
    layout = layout_of(config.get("quantization_config"))
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(source, source.name):
        tensors.update(load_file(file))
    converted = convert_tensors(tensors, layout)
    partial = out.with_name(f".{out.name}.partial")
    with disk_errors(out):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(converted, partial / "model.safetensors", metadata={"format": "pt"})
        for pattern in _COPIED:
            for file in source.glob(pattern):
                shutil.copyfile(file, partial / file.name)
    stored = {**SETTINGS, "zero_points": True, "act_order": layout.reordered}
    written = {**config, "dtype": "float32", "quantization_config": stored}
    written.pop("torch_dtype", None)
    write_json(partial / "config.json", written)
    manifest = _manifest(source, partial, layout)
    write_manifest(partial, manifest)
    with disk_errors(out):
        partial.rename(out)
    return manifest


def layout_of(settings: object) -> Layout:
    """Return the layout that a ``quantization_config`` describes.

    Raises:
        UnsupportedModel: for one that is not read; says what is.
    """
    said: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
    method = said.get("quant_method")
    bits, group = (
        said.get("bits", said.get("w_bit")),
        said.get("group_size", said.get("q_group_size")),
    )
    form = (
        said.get("checkpoint_format", "gptq") if method == "gptq" else said.get("version", "gemm")
    )
    known = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm", "GEMM")}.get(str(method), ())
    fits = isinstance(group, int) and (group == -1 or (group > 0 and group % GROUP == 0))
    reordered = said.get("desc_act", False)
    fits = fits and reordered in ((True, False) if method == "gptq" else (False,))
    if bits != 4 or form not in known or not fits:
        msg = (
            f"Found quant_method={method!r}, bits={bits!r}, group_size={group!r}, format={form!r}, "
            f"desc_act={reordered!r}."
        )
        hint = "Expected gptq or awq (gemm) of 4 bits in groups of a multiple of 32."
        raise UnsupportedModel(msg, hint=hint)
    shift = 1 if (method, form) == ("gptq", "gptq") else 0
    return Layout(
        method=str(method), group=max(0, int(group)), shift=shift, reordered=bool(reordered)
    )


def convert_tensors(tensors: Mapping[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    """Return the tensors of the 4-bit storage; what is not quantised becomes float32.

    Raises:
        UnsupportedModel: if a layer's tensors do not fit together.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "qweight":
            found |= _layer(stem, tensors, layout)
        elif part not in _PARTS:
            plain = tensor.float() if tensor.is_floating_point() else tensor
            found[name] = plain.contiguous()
    return found


def _layer(
    stem: str, tensors: Mapping[str, torch.Tensor], layout: Layout
) -> dict[str, torch.Tensor]:
    """Return the tensors of one layer."""
    try:
        qweight, qzeros, scales = (tensors[f"{stem}.{part}"] for part in _PARTS[:3])
        awq = layout.method == "awq"
        # Both as (d_in, d_out): codes, and the zeros of each group.
        codes = _unpack(qweight, _AWQ_ORDER) if awq else _unpack(qweight.t()).t()
        zeros = _unpack(qzeros, _AWQ_ORDER if awq else tuple(range(8))) + layout.shift
    except (KeyError, RuntimeError) as error:
        raise _misfit(stem) from error
    width, rows = codes.shape
    group = layout.group or width
    expected = (-(-width // group), rows)
    places = _places(tensors.get(f"{stem}.g_idx"), width, group)
    own = places is not None and torch.equal(places, torch.arange(width))
    in_order = places is not None and (own or layout.reordered)
    halved = scales.to(torch.float16)
    exact = bool(torch.isfinite(halved).all()) and torch.equal(halved.float(), scales.float())
    fits = tuple(zeros.shape) == expected and tuple(scales.shape) == expected
    fits = in_order and exact and fits and stem != "lm_head" and int(zeros.max()) <= 15
    if not fits or places is None:
        raise _misfit(stem)
    found = _stored(stem, codes[places].t(), zeros.t(), halved.t(), group)
    if layout.reordered:
        order = torch.empty(width, dtype=torch.int32)
        order[places] = torch.arange(width, dtype=torch.int32)
        found[f"{stem}.order"] = order
    return found


def _places(of_group: torch.Tensor | None, width: int, group: int) -> torch.Tensor | None:
    """Return the columns in the order of their groups, int64 ``(width,)``.

    Args:
        of_group: the group of each column (``g_idx``); None is their own order.
        width: number of columns.
        group: columns of a group.

    Returns:
        None if the groups are not all full, save for the last.
    """
    full = torch.arange(width) // group
    if of_group is None:
        return torch.arange(width)
    places = torch.argsort(of_group.long(), stable=True)
    same = of_group.shape == full.shape and torch.equal(of_group.long()[places], full)
    return places if same else None


def _stored(
    stem: str, codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: int
) -> dict[str, torch.Tensor]:
    """Return codes ``(d_out, d_in)`` and each group's zero and scale in groups of 32."""
    rows, width = codes.shape
    groups = group_count(width)
    # Which of the source's groups each of ours lies in.
    inside = torch.arange(groups) * GROUP // group
    filled = torch.full((rows, groups * GROUP), 8, dtype=torch.int32)
    filled[:, :width] = codes
    return {
        f"{stem}.weight": pack_int4(filled.view(rows, groups, GROUP) - 8),
        f"{stem}.scales": scales[:, inside].contiguous(),
        f"{stem}.zeros": zeros[:, inside].to(torch.uint8).contiguous(),
    }


def _unpack(packed: torch.Tensor, order: tuple[int, ...] = tuple(range(8))) -> torch.Tensor:
    """Return the eight codes of every int32 along the last axis, ``(rows, 8 * columns)``."""
    if packed.dtype != torch.int32 or packed.dim() != 2:
        msg = "packed codes are a matrix of int32"
        raise RuntimeError(msg)
    codes = (packed.unsqueeze(-1) >> (4 * torch.arange(8, dtype=torch.int32))) & 15
    places = torch.empty_like(codes)
    places[..., list(order)] = codes
    return places.reshape(packed.shape[0], -1)


def _misfit(stem: str) -> UnsupportedModel:
    """Return the error for a layer that cannot be read exactly."""
    msg = f"{stem}: codes, zeros, scales and order do not fit together, or not into 4 bits."
    return UnsupportedModel(msg, hint="Quantise it again, and not the output head.")


def _config(source: Path) -> dict[str, Any]:
    """Return a folder's configuration.

    Raises:
        UnsupportedModel: if there is none.
    """
    try:
        found = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"Model {source.name!r} has no readable config.json."
        raise UnsupportedModel(msg) from error
    return dict(found)


def _manifest(source: Path, folder: Path, layout: Layout) -> dict[str, Any]:
    """Return the manifest of a converted folder."""
    return {
        "format": FORMAT,
        "method": "convert",
        "parameters": {"from": layout.method, "group_size": layout.group},
        "text": None,
        "source": {"name": source.resolve().name, "digest": base_digest(source)},
        "result": {
            "digest": base_digest(folder),
            "quantization": "int4",
            "weights_bytes": weights_bytes(folder),
        },
    }
