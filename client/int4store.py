"""Checkpoints whose linear layers are stored in 4 bits (:mod:`client.int4`), written and read.

The folder is a transformers folder: ``config.json`` with ``quant_method = "fedslm-int4"``, codes as
``uint8`` tensors under the layers' own ``weight``, scales as float16 beside them, and all other
tensors as they were. It is read without ever holding a weight in full precision: the layers are
replaced while the model is a skeleton, then filled from the file. What is read is bit for bit what
was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from client.int4 import GROUP, Int4Linear, group_count
from shared.errors import UnsupportedModel
from shared.files import disk_errors, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

METHOD = "fedslm-int4"
SETTINGS = {"quant_method": METHOD, "bits": 4, "group_size": GROUP}
"""``quantization_config`` of such a folder; with ``zero_points`` if each group has a zero, and
``act_order`` if columns are stored in another order."""
_HALF = GROUP // 2


class _Settings(QuantizationConfigMixin):
    """What ``config.json`` says of the storage."""

    def __init__(
        self,
        *,
        bits: int = 4,
        group_size: int = GROUP,
        zero_points: bool = False,
        act_order: bool = False,
        **_: object,
    ) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        if (bits, group_size) != (4, GROUP):
            msg = (
                f"Stored with bits={bits!r} and group_size={group_size!r}, expected 4 and {GROUP}."
            )
            raise UnsupportedModel(msg, hint="Compress the model again with this version.")
        self.bits, self.group_size = bits, group_size
        self.zero_points, self.act_order = zero_points is True, act_order is True


class _Reader(HfQuantizer):
    """Puts empty 4-bit layers into a skeleton before its tensors are read."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **_: object) -> Any:  # noqa: ANN401
        """Replace every linear layer by an empty one of the stored kind."""
        settings: Any = self.quantization_config
        make_skeleton(model, zero_points=settings.zero_points, act_order=settings.act_order)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: object) -> Any:  # noqa: ANN401
        """Leave a model that says nothing of how it was stored, like one quantised in memory."""
        self.remove_quantization_config(model)  # type: ignore[no-untyped-call]
        return model

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:  # noqa: ANN401
        """Leave every tensor in the type that the file has."""
        del converter, param, dtype

    @property
    def is_trainable(self) -> bool:
        """Adapters train; the weights are frozen."""
        return True

    def is_serializable(self) -> bool:
        """Tell transformers not to save it: :func:`save_int4` does."""
        return False


def register() -> None:
    """Make transformers know the storage; once a process."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(_Settings)
        register_quantizer(METHOD)(_Reader)


def make_skeleton(model: torch.nn.Module, *, zero_points: bool, act_order: bool) -> None:
    """Replace every linear layer by an empty 4-bit one on the meta device, in place."""
    from client.quantization import linear_modules

    for name, module in list(linear_modules(model)):
        weight: Any = module.weight
        rows, columns = weight.shape if isinstance(module, torch.nn.Linear) else weight.shape[::-1]
        groups = group_count(columns)
        with torch.device("meta"):
            empty = Int4Linear.of_codes(
                torch.empty((rows, groups, _HALF), dtype=torch.uint8),
                torch.empty((rows, groups), dtype=torch.float16),
                columns,
                None if module.bias is None else torch.empty(rows),
                torch.empty((rows, groups), dtype=torch.uint8) if zero_points else None,
                torch.empty(columns, dtype=torch.int32) if act_order else None,
            )
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, empty)


def save_int4(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model whose linear layers are :class:`~client.int4.Int4Linear`.

    Args:
        model: as :func:`client.model.load_base` returns it for ``"int4"``.
        tokenizer: written beside it.
        folder: exists.

    Raises:
        OutOfDisk: when no space is left.
        RunFolderError: for any other failure to write.
    """
    from safetensors.torch import save_file

    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    with disk_errors(folder / "model.safetensors"):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**config, "quantization_config": SETTINGS})
