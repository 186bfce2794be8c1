"""Checkpoints in torchao's int8 weight-only layout, written and read without torchao.

The folder is the one that transformers writes for a model that torchao quantised: ``config.json``
with ``quant_method = "torchao"``, and for each linear layer ``_weight_qdata`` (int8),
``_weight_scale`` (float32) and ``_weight_zero_point`` (zeros) beside one another. It is read
without ever holding a weight in full precision, and what is read is bit for bit what was written.

torchao leaves layers that are no ``torch.nn.Linear`` (GPT-2's Conv1D) in full precision without a
word. Such a folder is refused, and none is written: nobody else could read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from client.basedigest import safetensors_index, weight_files
from client.families import FAMILIES
from client.torchaoint8 import TorchaoInt8Linear
from shared.errors import UnsupportedModel
from shared.files import disk_errors, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHOD = "fedslm-torchao-int8"
_PER_ROW = {"_data": {"dim": -1}, "_type": "PerRow", "_version": 1}
SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "include_input_output_embeddings": False,
        "modules_to_not_convert": None,
        "quant_method": "torchao",
        "quant_type": {
            "default": {
                "_data": {"granularity": _PER_ROW, "group_size": None, "set_inductor_config": True},
                "_type": "Int8WeightOnlyConfig",
                "_version": 2,
            }
        },
        "untie_embedding_weights": False,
    }
)
"""``quantization_config`` of such a folder, as transformers writes it."""
_CODES, _SCALE, _ZERO = "._weight_qdata", "._weight_scale", "._weight_zero_point"


class _Settings(QuantizationConfigMixin):
    """Stands for torchao's settings, which :func:`reading_config` checked."""

    def __init__(self, **_: object) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]


class _Reader(HfQuantizer):
    """Puts empty 8-bit layers into a skeleton before its tensors are read."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> Any:  # noqa: ANN401
        """Replace every linear layer by an empty one of the stored kind."""
        _make_skeleton(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:  # noqa: ANN401
        """Leave a model that says nothing of how it was stored, like one quantised in memory."""
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        return model

    def get_weight_conversions(self) -> list[Any]:
        """Give torchao's names the names that the layers have."""
        return [
            WeightRenaming(r"\._weight_qdata$", ".weight"),
            WeightRenaming(r"\._weight_scale$", ".scales"),
        ]

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:  # noqa: ANN401
        """Leave every tensor in the type that the file has."""
        del converter, param, dtype

    @property
    def is_trainable(self) -> bool:
        """Adapters train; the weights are frozen."""
        return True

    def is_serializable(self) -> bool:
        """Tell transformers not to save it: :func:`save_torchao_int8` does."""
        return False


def reading_config(folder: Path, name: str) -> Any:  # noqa: ANN401  (transformers' own type)
    """Return the configuration that makes transformers read such a folder through this module.

    Args:
        folder: of the checkpoint.
        name: for messages.

    Raises:
        UnsupportedModel: if its codes, scales and zeros are not those of the layout.
    """
    from transformers import AutoConfig

    _check_tensors(folder, name)
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(_Settings)
        register_quantizer(METHOD)(_Reader)
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.quantization_config = {"quant_method": METHOD}
    return config


def save_torchao_int8(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write a model whose linear layers are :class:`~client.torchaoint8.TorchaoInt8Linear`.

    Args:
        model: as :func:`client.model.load_base` returns it for ``"torchao-int8"``.
        tokenizer: written beside it.
        folder: exists.

    Raises:
        UnsupportedModel: for a family whose linear layers torchao does not know.
        OutOfDisk: when no space is left.
        RunFolderError: for any other failure to write.
    """
    from safetensors.torch import save_file

    _require_linear(model)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, TorchaoInt8Linear)
    }
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {"format": "pt"}
    names = []
    for name, tensor in model.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        layer = layers.get(stem)
        if name in tied or (layer is not None and leaf == "scales"):
            continue
        names.append(name)
        if layer is None or leaf != "weight":
            tensors[name] = tensor.detach().cpu().contiguous()
            metadata[name] = json.dumps({"_type": "Tensor"})
            continue
        tensors[stem + _CODES] = layer.weight.detach().cpu().contiguous()
        tensors[stem + _SCALE] = layer.scales.cpu().contiguous()
        tensors[stem + _ZERO] = torch.zeros_like(layer.scales, dtype=torch.int8, device="cpu")
        metadata[name] = _described(layer.in_features)
    metadata["tensor_names"] = json.dumps(names)
    with disk_errors(folder / "model.safetensors"):
        save_file(tensors, folder / "model.safetensors", metadata=metadata)
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "quantization_config": dict(SETTINGS)})


def _described(columns: int) -> str:
    """Return what torchao notes of a quantised weight in a file's metadata."""
    data = {
        "act_quant_kwargs": None,
        "reduce_range": False,
        "block_size": [1, columns],
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
    }
    names = ["zero_point", "qdata", "scale"]
    return json.dumps({"_type": "Int8Tensor", "_data": data, "_tensor_data_names": names})


def _make_skeleton(model: torch.nn.Module) -> None:
    """Replace every linear layer by an empty 8-bit one on the meta device, in place.

    Raises:
        UnsupportedModel: for a family whose linear layers torchao does not know.
    """
    from client.quantization import linear_modules

    _require_linear(model)
    for name, module in list(linear_modules(model)):
        weight: Any = module.weight
        rows, columns = weight.shape
        with torch.device("meta"):
            empty = TorchaoInt8Linear.of_codes(
                torch.empty((rows, columns), dtype=torch.int8),
                torch.empty((rows, 1)),
                None if module.bias is None else torch.empty(rows),
            )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, empty)


def _require_linear(model: Any) -> None:  # noqa: ANN401
    """Refuse families with Conv1D: torchao would leave them, or read them the wrong way round."""
    family = FAMILIES.get(model.config.model_type)
    if family is not None and family.conv1d:
        msg = f"torchao does not quantise the Conv1D layers of {model.config.model_type}."
        raise UnsupportedModel(msg, hint="Use int8 or int4 for a stored base of this family.")


def _check_tensors(folder: Path, name: str) -> None:
    """Require codes, one scale a row and zeros of 0 for every layer; only zeros are read.

    Raises:
        UnsupportedModel: if something else is there; names the layer.
    """
    from safetensors import safe_open

    for path in weight_files(folder, name):
        index = safetensors_index(path)
        with safe_open(path, framework="pt") as file:
            for key in (key for key in index if key.endswith(_CODES)):
                stem = key.removesuffix(_CODES)
                shape = index[key][2]
                column = [*shape[:1], 1]
                scale, zero = index.get(stem + _SCALE), index.get(stem + _ZERO)
                fits = index[key][1] == "I8" and len(shape) == 2 and scale is not None
                fits = fits and (scale or index[key])[1:3] == ("F32", column)
                if fits and zero is not None:
                    fits = zero[1:3] == ("I8", column)
                    fits = fits and not bool(file.get_tensor(stem + _ZERO).any())
                if not fits:
                    msg = f"{stem} of model {name!r} is not int8 with one scale a row, around 0."
                    raise UnsupportedModel(msg, hint="Quantise it by Int8WeightOnlyConfig().")
