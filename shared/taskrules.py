"""Rules about what is trained: the variant of the adapter, and the task of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from shared.errors import Problem
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig

REFUSED_VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "dora": "its weight is m (W0 + B A) / |W0 + B A|, not linear in m, A or B: no mean of "
        "clients' tensors is the mean of their models under any policy, and |W0 + B A| belongs to "
        "each client's own quantised copy of the base.",
        "ia3": "it rescales activations inside layers, where no engine here keeps one gradient per "
        "example apart from the next layer's.",
        "prompt": "its vectors are tokens of the sequence, which shift the positions of the text; "
        "no engine here keeps their gradients apart by example.",
    }
)
"""Why each of the other variants is refused."""


def task_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts the variant of the adapter."""
    reason = REFUSED_VARIANTS.get(config.lora.variant)
    if reason is not None:
        yield conflict(
            key="lora.variant",
            message=f'"{config.lora.variant}" cannot be federated here: {reason}',
            hint='Use "lora", or "rslora" where ranks are large.',
        )
