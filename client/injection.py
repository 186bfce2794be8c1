"""How an adapter gets into a base: which layers it targets, and PEFT's parts of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from client.encoders import is_head, untouched
from client.families import FAMILIES
from client.lean import without_quantizers
from client.model import BaseModel
from client.prompted import Prompted
from client.softprompt import PROMPT_LAYER
from shared.adaptermethod import PROMPT_TENSOR, VECTOR
from shared.errors import AdapterIncompatible, InvalidValue, UnsupportedModel
from shared.lora import AdapterSpec, module_names
from shared.registry import suggestion

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from peft import PeftConfig, PeftModel

ALL_LINEAR: Final = "all-linear"
MARK: Final = "_fedslm_adapted"


def resolve(
    layers: Mapping[str, torch.nn.Module], target_modules: str | Sequence[str]
) -> tuple[str, ...]:
    """Return the sorted target names; each matches at least one linear layer."""
    if isinstance(target_modules, str):
        if target_modules != ALL_LINEAR:
            msg = f"target_modules={target_modules!r}, expected {ALL_LINEAR!r} or a list of names."
            raise InvalidValue(msg, hint=suggestion(target_modules, [ALL_LINEAR]))
        return module_names(layers)
    targets = tuple(sorted(set(target_modules)))
    available = module_names(layers)
    unknown = [t for t in targets if not any(matches(name, t) for name in layers)]
    if unknown or not targets:
        found = ", ".join(repr(name) for name in unknown) or "nothing"
        msg = (
            f"target_modules names {found}, expected linear layers of the model: "
            f"{', '.join(available)}."
        )
        raise UnsupportedModel(msg, hint=suggestion(unknown[0], available) if unknown else "")
    return targets


def matches(name: str, target: str) -> bool:
    """Tell whether a target names a module, by PEFT's rule for lists."""
    return name == target or name.endswith(f".{target}")


def widths(module: torch.nn.Module) -> tuple[int, int]:
    """Return ``(d_in, d_out)`` of a linear layer, quantised or not."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    if not isinstance(module, torch.nn.Linear):
        msg = f"A layer of type {type(module).__name__} cannot carry an adapter."
        raise UnsupportedModel(msg)
    return module.in_features, module.out_features


def is_conv1d(model: torch.nn.Module) -> bool:
    """Tell whether the family stores ``(d_in, d_out)`` weights."""
    family = FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    return family is not None and family.conv1d


def inject(base: BaseModel, spec: AdapterSpec, dropout: float) -> PeftModel:
    """Let PEFT put its layers into the base, without touching torch's global generator."""
    if spec.prepended:
        setattr(base.model, MARK, True)
        return cast("PeftModel", Prompted(base, spec.prepended))
    # PEFT draws A from torch's global generator; the caller's stream goes on as if it had not.
    with without_quantizers(), peft_warnings(), torch.random.fork_rng(devices=[]):
        from peft import get_peft_model

        config = _ia3_config(base, spec) if spec.method else _lora_config(base, spec, dropout)
        peft_model = get_peft_model(base.model, config)
    setattr(base.model, MARK, True)
    return peft_model


def _ia3_config(base: BaseModel, spec: AdapterSpec) -> PeftConfig:
    """Return PEFT's configuration of vectors that rescale."""
    from peft import IA3Config

    inner = () if spec.method is None else spec.method.feedforward
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=list(spec.target_modules),
        exclude_modules=excluded(base),
        feedforward_modules=list(inner),
        fan_in_fan_out=spec.fan_in_fan_out,
    )


def _lora_config(base: BaseModel, spec: AdapterSpec, dropout: float) -> PeftConfig:
    """Return PEFT's configuration of pairs of factors."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=None if spec.head else "CAUSAL_LM",
        r=spec.r,
        lora_alpha=spec.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=list(spec.target_modules),
        exclude_modules=excluded(base),
        bias="none",
        fan_in_fan_out=spec.fan_in_fan_out,
        use_rslora=spec.rslora,
    )


def excluded(base: BaseModel) -> list[str] | None:
    """Return the output embedding's name, which no target may pick up."""
    model: Any = base.model
    if base.head:
        return sorted(untouched(model, base.head, base.identities))
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    return names or None


def named_factors(peft_model: PeftModel, spec: AdapterSpec) -> dict[str, torch.nn.Parameter]:
    """Return PEFT's parameters under the names of the specification.

    Raises:
        AdapterIncompatible: if PEFT made other factors than the specification says.
    """
    dense = {factor.name for factor in spec.factors if not factor.low_rank}
    found = {
        _own_name(name): parameter
        for name, parameter in peft_model.named_parameters()
        if ".lora_" in name or f".{VECTOR}." in name or _own_name(name) in dense
    }
    expected = {factor.name: factor.shape for factor in spec.factors}
    if {name: tuple(parameter.shape) for name, parameter in found.items()} != expected:
        msg = "PEFT made other LoRA factors than the adapter's specification expects."
        raise AdapterIncompatible(msg)
    return found


def _own_name(name: str) -> str:
    """Return the name that PEFT's files give to one of PEFT's parameters."""
    if name.endswith(f".{PROMPT_LAYER}.weight"):
        return PROMPT_TENSOR
    return name.replace(".default.", ".").removesuffix(".default")


def adapter_modules(peft_model: PeftModel) -> list[torch.nn.Module]:
    """Return the modules whose training flag matters: LoRA's, a head, checkpointed blocks."""
    return [
        module
        for name, module in peft_model.named_modules()
        if ".lora_" in name or is_head(module) or getattr(module, "gradient_checkpointing", False)
    ]


def check_kinds(kinds: str) -> None:
    """Require ``"A"``, ``"B"`` or ``"AB"``."""
    if kinds not in {"A", "B", "AB"}:
        msg = f"kinds={kinds!r}, expected 'A', 'B' or 'AB'."
        raise InvalidValue(msg)


def float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return a contiguous, writable float32 array, copying only if needed."""
    return np.require(array, dtype=np.float32, requirements=["C", "W"])


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Ignore what PEFT and transformers say to each other while layers are exchanged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        yield
