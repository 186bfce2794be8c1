"""An engine of per-example gradients that sees one example at a time, whatever it is given.

Where products are taken in bfloat16, what goes through a base beside an example changes its
gradient by thousandths of its length (:mod:`client.frozenproduct`): with a neighbour more or
less every other example's clipped gradient moves too, and the clip no longer bounds the difference
of two sums. Alone, an example's gradient is a function of that example and of the adapter.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from shared.errors import InvalidValue

if TYPE_CHECKING:
    import torch

    from client.losses import Batch


class _Engine(AbstractContextManager["_Engine"], Protocol):
    """What is needed of an engine; see :class:`client.clipping.PerExampleClipper`."""

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the sum over examples of clipped gradients."""
        ...


class OneByOne:
    """Gives another engine every example alone and without padding, and sums what it returns."""

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Self:
        """Attach the engine to the model."""
        self._engine.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the model as it was."""
        self._engine.__exit__(kind, error, trace)

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum; see :class:`client.clipping.PerExampleClipper`.

        Guarantee:
            What an example adds is, bit for bit, the same whatever else is in the batch, so that
            the bound holds exactly and not only up to the rounding of a shared pass.
        """
        totals: list[torch.Tensor] = []
        for index in range(batch.ids.shape[0]):
            found = self._engine.clipped_sum(batch.row(index), max_grad_norm)
            totals = [a.add_(b) for a, b in zip(totals, found, strict=True)] if totals else found
        if not totals:
            msg = "A clipped sum needs at least one example."
            raise InvalidValue(msg)
        return totals
