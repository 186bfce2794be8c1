"""PEFT's ``adapter_config.json`` of IA3 or of a prompt, from elsewhere: within limits, or refused.

Only what says which tensors there are is taken: the rescaled layers, or the number of vectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from shared.adaptermethod import FEEDFORWARD, IA3, PEFT_TYPES, PROMPT, Method
from shared.errors import AdapterIncompatible
from shared.tensorfile import Tensor

MOST_VECTORS: Final = 4096
_METHODS: Final = {kind: name for name, kind in PEFT_TYPES.items()}
_COMMON: Final = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_version revision".split()
)
_FREE: Final[Mapping[str, frozenset[str]]] = {
    IA3: _COMMON
    | frozenset("exclude_modules fan_in_fan_out feedforward_modules target_modules".split()),
    # How a prompt began, and what PEFT derives from its base.
    PROMPT: _COMMON
    | frozenset(
        "num_attention_heads num_layers num_virtual_tokens prompt_tuning_init "
        "prompt_tuning_init_text token_dim tokenizer_kwargs tokenizer_name_or_path".split()
    ),
}
"""Keys that may hold anything, because they are not used or checked below; others must be unset."""
_FIXED: Final[Mapping[str, Mapping[str, tuple[object, ...]]]] = {
    IA3: {"task_type": ("CAUSAL_LM", None), "init_ia3_weights": (True, False, None)},
    PROMPT: {"task_type": ("CAUSAL_LM", None), "num_transformer_submodules": (1, None)},
}


def method_of(config: Mapping[str, Any]) -> str:
    """Return ``"ia3"`` or ``"prompt"``; ``""`` for any other type of adapter."""
    kind = config.get("peft_type")
    return _METHODS.get(kind, "") if isinstance(kind, str) else ""


def read_targets(method: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers that IA3 names, unchecked; none for a prompt.

    Args:
        method: as :func:`method_of` returned it.
        config: parsed.

    Raises:
        AdapterIncompatible: if the adapter does more than the method says, or rescales the input
            of another layer than one that leads out of a feed-forward network.
    """
    for key, allowed in _FIXED[method].items():
        # Compared as written: 1 is not True here.
        if json.dumps(config.get(key, allowed[0])) not in map(json.dumps, allowed):
            _incompatible(method, f"{key} is not one of {', '.join(map(repr, allowed))}")
    known = _FREE[method] | _FIXED[method].keys() | {"peft_type"}
    extras = [key for key, value in config.items() if value and key not in known]
    if extras:
        _incompatible(method, f"{len(extras)} settings are set that a plain one does not have")
    if method == PROMPT:
        return ()
    targets = _names(config.get("target_modules"))
    inner = _names(config.get("feedforward_modules") or [])
    if targets is None or inner is None:
        _incompatible(method, "target_modules or feedforward_modules is no list of names")
    if set(inner) != set(targets) & set(FEEDFORWARD):
        _incompatible(method, "feedforward_modules are not those that lead out of a feed-forward")
    return targets


def read_vectors(config: Mapping[str, Any]) -> int:
    """Return the number of a prompt's vectors.

    Raises:
        AdapterIncompatible: if it is no number within limits.
    """
    found = config.get("num_virtual_tokens")
    if not (type(found) is int and 1 <= found <= MOST_VECTORS):
        _incompatible(PROMPT, f"num_virtual_tokens is no integer from 1 to {MOST_VECTORS}")
    return found


def check_vectors(method: str, tensors: Sequence[Tensor], prompt_tokens: int) -> None:
    """Require the tensors that such an adapter has.

    Args:
        method: ``"ia3"`` or ``"prompt"``.
        tensors: of the weights file.
        prompt_tokens: number of vectors that the configuration says.

    Raises:
        AdapterIncompatible: otherwise.
    """
    Method(name=method).check([(t.name, "B", tuple(t.shape)) for t in tensors])
    if not tensors:
        _incompatible(method, "it has no tensor")
    if method == PROMPT and tensors[0].shape[0] != prompt_tokens:
        _incompatible(method, f"its prompt has another length than {prompt_tokens}")


def _names(value: object) -> tuple[str, ...] | None:
    """Return a list of texts, or None; what may be a name is checked by the caller."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return None


def _incompatible(method: str, how: str) -> NoReturn:
    """Raise the error of an adapter that is not plain."""
    msg = f"The adapter is no plain {PEFT_TYPES[method]}: {how}."
    raise AdapterIncompatible(msg, hint="Only adapters as fedslm writes them are used.")
