"""Loading a PEFT adapter folder from elsewhere, and refusing what cannot be audited.

PEFT reads the folder and computes the layers, so that nothing about the format is guessed here.
What would make "with the adapter" and "without it" mean something else than a low-rank update of
linear layers (a changed base, retrained embeddings, activation tricks) is refused by name.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS
from shared.errors import AdapterCorrupt, AdapterIncompatible, BaseModelMismatch
from simulations.basepath import base_path

if TYPE_CHECKING:
    import torch

    from client.model import BaseModel

_FREE = frozenset(
    "auto_mapping base_model_name_or_path exclude_modules fan_in_fan_out inference_mode "
    "layers_pattern layers_to_transform lora_alpha lora_dropout megatron_core peft_version "
    "qalora_group_size r revision target_modules".split()
)
"""Keys of PEFT's configuration that may hold anything; every other must be unset."""

_FIXED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "use_rslora": (False, True, None),
    # The others start from a part of the base weights, and take that part out of the base.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAdapter:
    """A base model with an adapter that PEFT put there.

    Attributes:
        base: the base model; it carries the adapter from now on.
        peft_model: PEFT's model around it.
        device: where it lives.
    """

    base: BaseModel
    peft_model: Any
    device: torch.device

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the model be the base alone inside the ``with`` block."""
        with self.peft_model.disable_adapter():
            yield


def check_adapter(folder: Path) -> Mapping[str, Any]:
    """Return PEFT's configuration of an adapter that can be audited.

    Args:
        folder: what PEFT's ``save_pretrained`` wrote.

    Raises:
        AdapterCorrupt: if a file is missing or is not what it should be.
        AdapterIncompatible: if the weights are a pickle, or the adapter is no plain LoRA.
    """
    if not (folder / PEFT_CONFIG).is_file():
        msg = f"Adapter folder {folder.name!r} has no {PEFT_CONFIG}."
        raise AdapterCorrupt(msg, hint="Expected a folder that PEFT's save_pretrained wrote.")
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{PEFT_CONFIG} of adapter {folder.name!r} cannot be read ({type(error).__name__})."
        raise AdapterCorrupt(msg) from error
    if not isinstance(config, dict):
        msg = f"{PEFT_CONFIG} of adapter {folder.name!r} is not a JSON object."
        raise AdapterCorrupt(msg)
    _require_weights(folder)
    _require_plain(config, folder.name)
    return config


def _require_weights(folder: Path) -> None:
    """Require safetensors; a pickle can run code when it is opened."""
    if (folder / WEIGHTS).is_file():
        return
    pickles = sorted(path.name for path in folder.glob("adapter_model*.bin"))
    if pickles:
        msg = (
            f"Adapter {folder.name!r} has only pickled weights ({pickles[0]}), which can run code."
        )
        hint = "Load it where you trust it, and save_pretrained(..., safe_serialization=True)."
        raise AdapterIncompatible(msg, hint=hint)
    msg = f"Adapter folder {folder.name!r} has no {WEIGHTS}."
    raise AdapterCorrupt(msg, hint="Expected a folder that PEFT's save_pretrained wrote.")


def _require_plain(config: Mapping[str, Any], name: str) -> None:
    """Require a plain LoRA: what is neither free nor fixed must be unset."""
    for key, allowed in _FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            _refuse(name, f"{key}={config[key]!r}", ", ".join(map(repr, allowed)))
    extras = [k for k in sorted(config) if k not in _FREE and k not in _FIXED and config[k]]
    if extras:
        _refuse(name, " and ".join(f"{key} set" for key in extras), "a plain LoRA without")


def _refuse(name: str, found: str, expected: str) -> None:
    """Raise the error for a configuration that cannot be audited."""
    msg = f"Adapter {name!r} has {found}, expected {expected}."
    raise AdapterIncompatible(
        msg, hint="Only LoRA on linear layers is audited: no DoRA, rsLoRA, extra modules, patterns."
    )


def load_external(
    folder: Path,
    base: str,
    *,
    quantization: str = "none",
    revision: str | None = None,
    device: str = "cpu",
) -> ExternalAdapter:
    """Load a checked adapter on a base model through PEFT.

    Args:
        folder: passed :func:`check_adapter`.
        base: as in :func:`open_external`.
        quantization: how the base is stored.
        revision: of a hub id.
        device: where the model lives.

    Raises:
        AdapterIncompatible: if modules, names or shapes do not fit the base.
        AdapterCorrupt: if the weights are damaged.
        BaseModelMismatch: if the folder's manifest names another base.
        ModelError: as :func:`client.model.load_base`.
    """
    import torch

    from client.model import load_base

    expected = _stored_shapes(folder)
    found = Path(base).expanduser()
    place = str(found) if found.is_dir() else base_path(base, base_dir=Path.cwd())
    loaded = load_base(place, quantization=quantization, revision=revision, device=device)
    _require_base(folder, loaded)
    peft_model = _through_peft(folder, loaded, device)
    _require_same(folder, peft_model, expected)
    return ExternalAdapter(base=loaded, peft_model=peft_model, device=torch.device(device))


def _through_peft(folder: Path, base: BaseModel, device: str) -> Any:  # noqa: ANN401
    """Let PEFT read the folder, without touching torch's global generator."""
    import torch
    from peft import PeftModel

    from client.model import quiet

    loader: Any = PeftModel
    try:
        # PEFT warns about keys that it misses; names and shapes are compared afterwards.
        with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore", UserWarning)
            model = loader.from_pretrained(
                base.model, str(folder), is_trainable=False, torch_device=device
            )
    except (ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        msg = (
            f"PEFT cannot put adapter {folder.name!r} on base model {base.name!r} "
            f"({type(error).__name__})."
        )
        raise AdapterIncompatible(
            msg, hint="Check that it was trained on this base: target_modules and shapes must fit."
        ) from error
    return model.eval()


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every stored tensor."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, framework="numpy") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        msg = f"{WEIGHTS} of adapter {folder.name!r} is damaged."
        raise AdapterCorrupt(msg, hint="Copy or download the adapter again.") from error


def _require_same(folder: Path, model: Any, expected: Mapping[str, tuple[int, ...]]) -> None:  # noqa: ANN401
    """Require that every stored tensor was loaded, and that nothing was left as it was drawn."""
    from peft import get_peft_model_state_dict

    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(
        model, save_embedding_layers=False
    )
    loaded = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differ = sorted(
        name for name in loaded.keys() | expected.keys() if loaded.get(name) != expected.get(name)
    )
    if differ or not loaded:
        some = differ[0] if differ else "no tensor at all"
        msg = (
            f"Adapter {folder.name!r} stores {len(expected)} tensors and the base takes "
            f"{len(loaded)}; {len(differ)} differ, such as {some}."
        )
        raise AdapterIncompatible(msg, hint="Check that it was trained on this base model.")


def _require_base(folder: Path, base: BaseModel) -> None:
    """Require the base that the adapter's manifest names, if it has one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        msg = f"{MANIFEST} of adapter {folder.name!r} cannot be read ({type(error).__name__})."
        raise AdapterCorrupt(msg) from error
    named = manifest.get("base_digest") if isinstance(manifest, dict) else None
    if isinstance(named, str) and named != base.digest:
        msg = (
            f"Adapter {folder.name!r} was trained on the base {named[:12]}, and {base.name!r} is "
            f"{base.digest[:12]}."
        )
        raise BaseModelMismatch(msg, hint="Give the base that it was trained on with --base.")
