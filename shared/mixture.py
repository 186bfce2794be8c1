"""A mixture of adapters: what is public about it, and its factors as one adapter.

``y = W0 x + s sum_k g_k B_k A_k x`` with ``g = softmax(c R h)``. The K adapters of rank ``r`` stand
one after another in pairs of factors of rank ``K r``, so that they are one flat vector with the
router ``R (K, width)``; ``c`` is the sharpness. ``h`` at a place of a text is the mean of the
frozen embeddings of the tokens up to there, less the mean of all embeddings, at length 1: a public
function of the text's own past, which no other text and no later token changes.

Guarantee:
    That of the run, unchanged. The gates of an example are a function of that example and of what
    was released; the router's gradient is in the norm that is clipped, and its coordinates are
    noised, masked and accounted with all others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shared.errors import AdapterIncompatible

MOST_ADAPTERS = 8
LARGEST_SHARPNESS = 100.0
ROUTER = "mixture_router"
"""Name of the router's layer; its only tensor is ``weight``."""

PEFT_TYPE = "FEDSLM_MIXTURE"
"""What ``adapter_config.json`` says in place of ``LORA``: PEFT knows no gates, and must refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How adapters are mixed; public.

    Attributes:
        adapters: K, from 2 to :data:`MOST_ADAPTERS`.
        sharpness: c, in ``(0, LARGEST_SHARPNESS]``.
    """

    adapters: int
    sharpness: float

    def __post_init__(self) -> None:
        """Check both numbers.

        Raises:
            AdapterIncompatible: if one is out of range.
        """
        whole = isinstance(self.adapters, int) and not isinstance(self.adapters, bool)
        if not (whole and 2 <= self.adapters <= MOST_ADAPTERS):
            msg = f"A mixture has 2 to {MOST_ADAPTERS} adapters."
            raise AdapterIncompatible(msg)
        if not (math.isfinite(self.sharpness) and 0 < self.sharpness <= LARGEST_SHARPNESS):
            msg = f"The sharpness of a mixture is above 0 and at most {LARGEST_SHARPNESS:g}."
            raise AdapterIncompatible(msg)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form that :meth:`from_json` reads."""
        return {"adapters": self.adapters, "sharpness": self.sharpness}

    @classmethod
    def from_json(cls, data: object) -> Mixture:
        """Read the JSON form; unknown keys are refused.

        Raises:
            AdapterIncompatible: if it is not as described.
        """
        if not (isinstance(data, Mapping) and set(data) == {"adapters", "sharpness"}):
            msg = "A mixture says its adapters and its sharpness, and nothing else."
            raise AdapterIncompatible(msg)
        adapters, sharpness = data["adapters"], data["sharpness"]
        if isinstance(sharpness, bool) or not isinstance(sharpness, int | float):
            msg = "The sharpness of a mixture is no number."
            raise AdapterIncompatible(msg)
        return cls(adapters=adapters, sharpness=float(sharpness))
