"""PEFT's ``adapter_config.json`` from elsewhere: a plain LoRA, with numbers within limits.

Our own mixtures (:mod:`shared.mixture`) are read too: a type of their own, and how they are mixed.
So are IA3 and prompts, by :mod:`shared.methodconfig`.

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

from shared.adaptermethod import IA3, PROMPT
from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.methodconfig import check_vectors, method_of, read_targets, read_vectors
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
_ELSEWHERE: Mapping[str, str] = {
    IA3: "Answer with torch, or fold it into a base of its own: fedslm export merged",
    PROMPT: "Answer with torch.",
}
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTerms:
    """What an adapter adds to its base: a scaled B A, at some layers, or what ``method`` says.

    Attributes:
        r: rank of every pair of factors; 1 where there are none.
        lora_alpha: numerator of the scale, whose denominator is r.
        target_modules: names of layers, as PEFT takes them.
        rslora: the denominator is the square root of r.
        mixture: how the adapters are mixed that each pair of factors holds; None for one adapter.
        method: ``"ia3"`` or ``"prompt"`` (:mod:`shared.adaptermethod`); ``""`` for pairs.
        prompt_tokens: number of a prompt's vectors; 0 without one.
    """

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    rslora: bool = False
    mixture: Mixture | None = None
    method: str = ""
    prompt_tokens: int = 0

    def require_pairs(self, what: str) -> None:
        """Refuse an adapter that is no pairs of factors, for a program that knows no other.

        Args:
            what: the program, for the error.

        Raises:
            AdapterIncompatible: for IA3 or a prompt.
        """
        if self.method:
            msg = f"The adapter is of method {self.method!r}, which {what} does not compute."
            raise AdapterIncompatible(msg, hint=_ELSEWHERE[self.method])


def read_lora_config(data: bytes, *, whole: Sequence[str] = ()) -> LoraTerms:
    """Read the configuration of a plain LoRA, of a mixture, of IA3 or of a prompt.

    Args:
        data: the file.
        whole: modules that a classifier trains whole; it must name exactly those.

    Raises:
        AdapterCorrupt: if it is no JSON object of a reasonable size.
        AdapterIncompatible: if it describes anything else.
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
    if (method := method_of(config)) and not whole:
        return _method_terms(method, config)
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

    Of IA3 or a prompt: that they are its vectors.

    Raises:
        AdapterIncompatible: if one is not, or lacks its partner.
    """
    if terms.method:
        check_vectors(terms.method, tensors, terms.prompt_tokens)
        return
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
    if not isinstance(targets, list):
        _incompatible("target_modules is no list")
    _check_targets(targets)
    return LoraTerms(
        r=r,
        lora_alpha=float(alpha),  # type: ignore[arg-type]
        target_modules=tuple(targets),
        rslora=config.get("use_rslora") is True,
        mixture=mixture,
    )


def _method_terms(method: str, config: Mapping[str, Any]) -> LoraTerms:
    """Read IA3 or a prompt."""
    targets = read_targets(method, config)
    if method == PROMPT:
        vectors = read_vectors(config)
        return LoraTerms(
            r=1, lora_alpha=1.0, target_modules=(), method=method, prompt_tokens=vectors
        )
    _check_targets(targets)
    return LoraTerms(r=1, lora_alpha=1.0, target_modules=targets, method=method)


def _check_targets(targets: Sequence[Any]) -> None:
    """Require names of layers and no patterns."""
    plain = all(isinstance(name, str) and _TARGET.fullmatch(name) for name in targets)
    if not (1 <= len(targets) <= MOST_TARGETS and plain):
        _incompatible(f"target_modules is no list of 1 to {MOST_TARGETS} plain names")


def _corrupt(how: str) -> NoReturn:
    """Raise the error of a file that is not a configuration."""
    msg = f"adapter_config.json {how}."
    raise AdapterCorrupt(msg)


def _incompatible(how: str) -> NoReturn:
    """Raise the error of an adapter that is not a plain LoRA."""
    msg = f"The adapter is no plain LoRA: {how}."
    raise AdapterIncompatible(msg, hint="Only LoRA on linear layers is used, without extras.")
