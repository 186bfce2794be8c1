"""A residual added into the frozen base's weights, and taken out again bit for bit.

The base's own weights of the adapted layers are kept beside, so that another residual starts from
them and not from what the last one left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from shared.errors import SchemaMismatch, UnsupportedModel
from shared.residual import Residual, same

if TYPE_CHECKING:
    from client.lowrank import LowRankLayer
    from shared.lora import AdapterSpec
    from shared.policies import Policy


class Beneath:
    """Holds what lies beneath one adapter.

    Attributes:
        current: what the weights hold now; None for the base alone.

    Args:
        layers: the adapted layers in the order of the specification's pairs.
        spec: names, shapes and scale.
    """

    def __init__(self, layers: Sequence[LowRankLayer], spec: AdapterSpec) -> None:
        self._layers = tuple(layers)
        self._spec = spec
        self._rest: Residual | None = None
        self._own: list[torch.Tensor] = []
        self.current: Residual | None = None

    def rest_on(self, residual: Residual | None) -> None:
        """Use a residual from now on wherever no other is named: that of a finished run."""
        self._rest = residual
        self.put(None)

    def put(self, residual: Residual | None) -> None:
        """Let the base's weights be their own plus ``s L R``; None is what it rests on.

        Raises:
            SchemaMismatch: if it is none of this adapter; nothing is changed then.
            UnsupportedModel: if the base's weights are not float32, where it would be rounded away.
        """
        self._set(self._rest if residual is None else residual)

    def put_told(self, residual: Residual | None, policy: Policy) -> None:
        """Put what an instruction says beneath the adapter.

        Raises:
            SchemaMismatch: also if the policy in force has no residual.
        """
        if residual is not None and not policy.residual:
            msg = "The instruction has a residual, and the policy has none."
            raise SchemaMismatch(msg)
        self.put(residual)

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Let the base be itself inside the ``with`` block."""
        held = self.current
        self._set(None)
        try:
            yield
        finally:
            self._set(held)

    def _set(self, residual: Residual | None) -> None:
        if same(residual, self.current):
            return
        pairs = None if residual is None else residual.factors(self._spec)
        weights = [_weight(layer) for layer in self._layers]
        if any(weight.dtype != torch.float32 for weight in weights):
            msg = "A residual needs a base of float32 weights."
            raise UnsupportedModel(msg, hint='Use model.quantization "none".')
        with torch.no_grad():
            if self.current is None:
                self._own = [weight.detach().clone() for weight in weights]
            for weight, own in zip(weights, self._own, strict=True):
                weight.copy_(own)
            for weight, (left, right) in zip(weights, pairs or (), strict=bool(pairs)):
                thin = (torch.from_numpy(part.copy()).to(weight.device) for part in (left, right))
                change = weight.t() if self._spec.fan_in_fan_out else weight
                change.addmm_(*thin, alpha=self._spec.scale)
        if residual is None:
            self._own = []
        self.current = residual


def _weight(layer: LowRankLayer) -> torch.Tensor:
    """Return the frozen weight of a layer."""
    base: Any = layer.module.base_layer
    weight: torch.Tensor = base.weight
    return weight
