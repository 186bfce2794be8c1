"""PEFT's ``adapter_config.json`` from elsewhere: a plain LoRA, with numbers within limits.

Our own mixtures (:mod:`shared.mixture`) are read too: a type of their own, and how they are mixed.

Only rank, scale and the names of the adapted layers are taken from it; every setting that would
make the adapter more than a low-rank update of linear layers must be off. What the weights file
declares must be the factors of exactly that rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.mixture import PEFT_TYPE, ROUTER, Mixture
from shared.tensorfile import Tensor

LARGEST_CONFIG = 1 << 18
LARGEST_RANK = 1024
LARGEST_ALPHA = 1e6
MOST_TARGETS = 512

_FREE = frozenset(
    "auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out inference_mode "
    "layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_version "
    "qalora_group_size r revision target_modules".split()
)
"""Keys that may hold anything, because they are not used or checked below; others must be unset."""

_FIXED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "use_rslora": (False, True, None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}
_TARGET = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]{0,255}")
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTerms:
    """What an adapter adds to its base: a scaled B A, at some layers.

    Attributes:
        r: rank of every pair of factors.
        lora_alpha: numerator of the scale, whose denominator is r.
        target_modules: names of layers, as PEFT takes them.
        rslora: the denominator is the square root of r.
        mixture: how the adapters are mixed that each pair of factors holds; None for one adapter.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    rslora: bool = False
    mixture: Mixture | None = None


def read_lora_config(data: bytes, *, whole: Sequence[str] = ()) -> LoraTerms:
    """Read the configuration of a plain LoRA.

    Args:
        data: the file.
        whole: modules that a classifier trains whole; it must name exactly those.

    Raises:
        AdapterCorrupt: if it is no JSON object of a reasonable size.
        AdapterIncompatible: if it describes something else than a plain LoRA.
    """
    if not len(data) <= LARGEST_CONFIG:
        _corrupt(f"has {len(data)} bytes, expected at most {LARGEST_CONFIG}")
    try:
        config = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        msg = "adapter_config.json is not JSON."
        raise AdapterCorrupt(msg) from error
    if not isinstance(config, dict):
        _corrupt("is no JSON object")
    mixture = None
    if config.get("peft_type") == PEFT_TYPE:
        mixture = Mixture.from_json(config.pop("mixture", None))
        config["peft_type"] = "LORA"
    if whole:
        task, saved = config.pop("task_type", None), config.pop("modules_to_save", None)
        if (task, saved) != ("SEQ_CLS", list(whole)):
            _incompatible("it is no classifier with the layers that are trained whole")
    for key, allowed in _FIXED.items():
        # Compared as written: 1 is not True here.
        if json.dumps(config.get(key, allowed[0])) not in map(json.dumps, allowed):
            _incompatible(f"{key} is not one of {', '.join(map(repr, allowed))}")
    extras = [key for key, value in config.items() if value and key not in _FREE | _FIXED.keys()]
    if extras:
        _incompatible(f"{len(extras)} settings are set that a plain LoRA does not have")
    return _terms(config, mixture)


def check_factors(tensors: Sequence[Tensor], terms: LoraTerms) -> None:
    """Require that the tensors are pairs of factors of the configuration's rank, and a router.

    Raises:
        AdapterIncompatible: if one is not, or lacks its partner.
    """
    found: dict[str, set[str]] = {}
    routers = [tensor for tensor in tensors if tensor.name.endswith(f".{ROUTER}.weight")]
    adapters = [] if terms.mixture is None else [terms.mixture.adapters]
    if [t.shape[0] if len(t.shape) == len("Kd") else 0 for t in routers] != adapters:
        _incompatible("it has not the router that its configuration says")
    for tensor in tensors:
        if tensor in routers:
            continue
        match = _FACTOR.fullmatch(tensor.name)
        if match is None:
            _incompatible("a tensor is no LoRA factor")
        stem, kind = match.groups()
        rank = tensor.shape[0 if kind == "A" else -1]
        if not (len(tensor.shape) == len("AB") and rank == terms.r):
            _incompatible(f"a factor has another rank than r={terms.r}")
        found.setdefault(stem, set()).add(kind)
    if any(kinds != {"A", "B"} for kinds in found.values()):
        _incompatible("a factor lacks its partner")


def _terms(config: Mapping[str, Any], mixture: Mixture | None) -> LoraTerms:
    """Check the three settings that count."""
    r, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if not (isinstance(r, int) and not isinstance(r, bool) and 1 <= r <= LARGEST_RANK):
        _incompatible(f"r is no integer from 1 to {LARGEST_RANK}")
    number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not (number and 0 < alpha <= LARGEST_ALPHA and math.isfinite(alpha)):  # type: ignore[operator,arg-type]
        _incompatible(f"lora_alpha is no number above 0 and up to {LARGEST_ALPHA:g}")
    if not (
        isinstance(targets, list)
        and 1 <= len(targets) <= MOST_TARGETS
        and all(isinstance(name, str) and _TARGET.fullmatch(name) for name in targets)
    ):
        _incompatible(f"target_modules is no list of 1 to {MOST_TARGETS} plain names")
    return LoraTerms(
        r=r,
        lora_alpha=float(alpha),  # type: ignore[arg-type]
        target_modules=tuple(targets),
        rslora=config.get("use_rslora") is True,
        mixture=mixture,
    )


def _corrupt(how: str) -> NoReturn:
    """Raise the error of a file that is not a configuration."""
    msg = f"adapter_config.json {how}."
    raise AdapterCorrupt(msg)


def _incompatible(how: str) -> NoReturn:
    """Raise the error of an adapter that is not a plain LoRA."""
    msg = f"The adapter is no plain LoRA: {how}."
    raise AdapterIncompatible(msg, hint="Only LoRA on linear layers is used, without extras.")
