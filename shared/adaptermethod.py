"""Adapters that are no low-rank product: vectors that rescale activations, and vectors in front.

- **IA3** (arXiv:2205.05638): a layer's output becomes ``l * (W x + b)``, or in the layers that lead
  out of a feed-forward network ``W (l * x) + b``, with one number of ``l`` for each coordinate.
  Every ``l`` starts at one, where the model is the base.
- **Prompt tuning** (arXiv:2104.08691): n trained vectors stand in front of every text's embeddings.
  They start at random vectors of a public seed, as long as the base's embeddings are on average.

What is shared is what trains, so that a mean of clients' vectors is the mean that FedAvg means: no
product of averaged factors stands between (docs/aggregation.md). All of it is of kind ``"B"``: it
moves under ``ffa`` and under ``fedavg``, which here are one.

Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shared.errors import AdapterIncompatible
from shared.seeding import data_rng

IA3: Final = "ia3"
PROMPT: Final = "prompt"
METHODS: Final = (IA3, PROMPT)
VECTOR: Final = "ia3_l"
"""The last part of PEFT's name of a vector that rescales."""
PROMPT_TENSOR: Final = "prompt_embeddings"
"""PEFT's name of a prompt in ``adapter_model.safetensors``."""
FEEDFORWARD: Final = ("dense_4h_to_h", "down_proj", "fc2", "fc_out", "mlp.c_proj")
"""Layers that lead out of a feed-forward network, as families call them."""
PEFT_TYPES: Final[Mapping[str, str]] = {IA3: "IA3", PROMPT: "PROMPT_TUNING"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What an adapter is that is no low-rank product; public.

    Attributes:
        name: ``"ia3"`` or ``"prompt"``.
        feedforward: of the target modules of IA3 those whose input is rescaled.
        spread: standard deviation of a prompt's first numbers; a power of two.
    """

    name: str
    feedforward: tuple[str, ...] = ()
    spread: float = 1.0

    def __post_init__(self) -> None:
        """Check the name and the spread."""
        known = self.name in METHODS and (self.name == IA3 or not self.feedforward)
        if not (known and math.isfinite(self.spread) and self.spread > 0):
            msg = f"Found adapter method {self.name!r} of spread {self.spread!r}."
            raise AdapterIncompatible(msg)

    def check(self, factors: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        """Require the tensors that the method has.

        Args:
            factors: name, kind and shape of each.

        Raises:
            AdapterIncompatible: if one is not such a tensor.
        """
        if self.name == PROMPT:
            fits = [(n, k, len(s)) for n, k, s in factors] == [(PROMPT_TENSOR, "B", 2)]
        else:
            fits = all(
                name.endswith(f".{VECTOR}") and kind == "B" and len(shape) == 2 and 1 in shape
                for name, kind, shape in factors
            )
        if not fits:
            msg = f"An adapter of method {self.name!r} has other tensors than such a one has."
            raise AdapterIncompatible(msg)

    def first(self, name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
        """Return what a tensor starts from: ones, or a prompt drawn from the public seed."""
        if self.name == IA3:
            return np.ones(shape, dtype=np.float32)
        drawn = data_rng(seed, "prompt", name).standard_normal(shape)
        return (self.spread * drawn).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_json` reads."""
        return {"name": self.name, "feedforward": list(self.feedforward), "spread": self.spread}

    @classmethod
    def from_json(cls, data: object) -> Method:
        """Read the JSON form of :meth:`to_json`.

        Raises:
            AdapterIncompatible: if it is malformed.
        """
        try:
            if isinstance(data, dict) and set(data) == {"name", "feedforward", "spread"}:
                return cls(
                    name=str(data["name"]),
                    feedforward=tuple(str(name) for name in data["feedforward"]),
                    spread=float(data["spread"]),
                )
        except (TypeError, ValueError) as error:
            msg = "The method of an adapter is malformed."
            raise AdapterIncompatible(msg) from error
        msg = "The method of an adapter is malformed."
        raise AdapterIncompatible(msg)


def peft_config(
    method: Method, *, targets: Sequence[str], fan_in_fan_out: bool, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return what ``adapter_config.json`` says beside type of task and base.

    Args:
        method: of the adapter.
        targets: the adapted modules of IA3.
        fan_in_fan_out: as in :class:`shared.lora.AdapterSpec`.
        shape: of the first tensor: of a prompt ``(tokens, width)``.
    """
    said: dict[str, Any] = {"peft_type": PEFT_TYPES[method.name], "inference_mode": True}
    if method.name == IA3:
        return {
            **said,
            "target_modules": list(targets),
            "feedforward_modules": list(method.feedforward),
            "fan_in_fan_out": fan_in_fan_out,
            "modules_to_save": None,
            "init_ia3_weights": True,
        }
    tokens, width = shape
    return {
        **said,
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }


def nearest_power_of_two(value: float) -> float:
    """Return the power of two nearest to a number above zero, by its logarithm; 1 for others.

    Machines that add up in another order agree on it.
    """
    return 2.0 ** round(math.log2(value)) if math.isfinite(value) and value > 0 else 1.0
