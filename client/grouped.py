"""LoRA layers with one adapter per client: many clients go through the frozen base at once.

A tiny client cannot fill a device, nor pay for what Python spends on a step. Here the examples of
many clients share one forward and one backward pass of :mod:`client.lowrank`, with the factors of
the client that an example belongs to, and every example's gradient of the trained factors is kept
apart. Nothing is shared between two examples but the frozen base, so that a client trains as it
does alone, up to the rounding of float32 sums.

Before its first step a client's factors are the global ones, and the layer is computed as for one
client. From then on no sum ``W + s B A`` serves all rows, and the thin product is added example by
example.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from client.clipping import clip_and_sum, no_gradient, require_covered
from client.losses import Batch, per_sequence_losses
from client.lowrank import LowRankLayer
from client.sidebyside import SideBySide, silence
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.mixture import Router


class GroupedAdapter:
    """One copy of the trained factors for each of several clients, on one shared base.

    Args:
        model: its factors are where every client starts; they are not changed.
        clients: number of clients C.

    Attributes:
        flat: the clients' trained factors, float32, shape ``(C, d)``, columns in canonical order.
        moved: whether any client has left the model's own factors.

    Raises:
        UnsupportedModel: if something trains that is no factor of a LoRA layer, or with dropout,
            whose masks would be drawn for all clients together, or on a base whose products are
            taken in bfloat16 (:mod:`client.frozenproduct`).
    """

    def __init__(self, model: AdaptedModel, clients: int) -> None:
        if model.dropout > 0:
            msg = f"dropout={model.dropout!r}, expected 0 where clients train together."
            raise UnsupportedModel(msg, hint="Set performance.cohort_batch to 1.")
        if model.base.compute_dtype != "float32":
            msg = f"compute_dtype={model.base.compute_dtype!r}, where a client's neighbours in a "
            msg += "pass would change what it sends by more than rounding."
            raise UnsupportedModel(msg, hint="Set performance.cohort_batch to 1.")
        self._model = model
        self._router = model.router
        self._routers = torch.zeros(0)
        self._layers = [_GroupedLayer(layer.module, model.router) for layer in model.layers]
        routed = [] if model.router is None else [model.router.module.weight]
        require_covered(model, [*routed, *(f for g in self._layers for f in (g.a, g.b))])
        start = torch.cat([p.detach().reshape(-1) for _, p in model.trainable]).to(torch.float32)
        self.flat = start.repeat(clients, 1)
        self.moved = False
        self._factors = self._share()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Compute the model's LoRA layers by client inside the ``with`` block."""
        for layer in self._layers:
            layer.attach()
        try:
            yield
        finally:
            for plain in self._model.layers:
                plain.attach()
            for layer in self._layers:
                layer.record(0)
            if self._router is not None:
                self._router.record(0)

    def add_sums(self, batch: Batch, clients: torch.Tensor, total: torch.Tensor) -> None:
        """Add every example's gradient to the row of its client.

        An example whose gradient is not finite adds zero, and changes nobody else's row.

        Args:
            batch: examples of any of the clients.
            clients: the client of each example, int64, shape ``(B,)``.
            total: float32, shape ``(C, d)``; added to in place.
        """
        samples = self._samples(batch, clients)
        present, members = _members(clients)
        sums = _sums(samples, members)
        if not bool(torch.isfinite(sums.sum())):
            # Zero times NaN is NaN, so one such example has spoilt every row of the sum.
            silence(samples, torch.isfinite(SideBySide(samples).squared_norms(samples)))
            sums = _sums(samples, members)
        total[present] += sums

    def add_clipped_sums(
        self, batch: Batch, clients: torch.Tensor, max_grad_norm: float, total: torch.Tensor
    ) -> None:
        """Add every example's clipped gradient to the row of its client.

        Guarantee:
            Adding or removing one example changes one row, by at most ``max_grad_norm`` in L2 norm.
            An example whose gradient is not finite adds zero.

        Args:
            batch: examples of any of the clients.
            clients: the client of each example, int64, shape ``(B,)``.
            max_grad_norm: the bound on each example, > 0.
            total: float64, shape ``(C, d)``; added to in place.
        """
        samples = self._samples(batch, clients)
        present, members = _members(clients)
        sums = clip_and_sum(samples, max_grad_norm, members)
        total[present] += torch.cat([found.flatten(1) for found in sums], dim=1)

    def _samples(self, batch: Batch, clients: torch.Tensor) -> list[torch.Tensor]:
        """Return each example's gradient of each factor, ``(B, *factor.shape)``, in order."""
        for layer in self._layers:
            layer.record(len(clients))
            layer.clients = clients if self.moved else None
        if self._router is not None:
            self._router.record(len(clients))
            own = self.moved and self._routers.numel() > 0
            self._router.weights = self._routers[clients] if own else None
        loss = per_sequence_losses(self._model.peft_model, batch).sum()
        if not loss.requires_grad:
            raise no_gradient()
        loss.backward()  # type: ignore[no-untyped-call]
        samples = []
        for held, kind in self._factors:
            sample = held.samples.pop(kind, None)
            if sample is None:
                raise no_gradient()
            samples.append(sample)
        return samples

    def _share(self) -> list[tuple[_GroupedLayer | Router, str]]:
        """Give every layer its columns of the flat buffer; return the factors in their order."""
        by_factor = {id(layer.a): (layer, "A") for layer in self._layers}
        by_factor |= {id(layer.b): (layer, "B") for layer in self._layers}
        factors: list[tuple[_GroupedLayer | Router, str]] = []
        start = 0
        for _, parameter in self._model.trainable:
            columns = self.flat[:, start : start + parameter.numel()]
            start += parameter.numel()
            stack = columns.view(len(self.flat), *parameter.shape)
            if self._router is not None and parameter is self._router.module.weight:
                self._routers = stack
                factors.append((self._router, "weight"))
                continue
            layer, kind = by_factor[id(parameter)]
            layer.stacks[kind] = stack
            factors.append((layer, kind))
        return factors


class _GroupedLayer(LowRankLayer):
    """One LoRA layer, with factors that differ from client to client.

    What is thin is ``(B, r, T)`` here, where the factors differ.

    Attributes:
        clients: the client of each example of the coming batch; None while all have the factors
            of the model.
        stacks: the clients' factors of the trained kinds, ``(C, *factor.shape)``.
    """

    __slots__ = ("clients", "stacks")

    def __init__(self, module: Any, router: Router | None) -> None:  # noqa: ANN401  (PEFT has no types)
        super().__init__(module, router)
        self.clients: torch.Tensor | None = None
        self.stacks: dict[str, torch.Tensor] = {}

    def is_thin(self, rows: torch.Tensor) -> bool:
        """Tell whether the thin way is taken: always where there is no sum for all rows."""
        return self.clients is not None or super().is_thin(rows)

    def down(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``s A x^T``."""
        a = self._own("A", x)
        if a is None:
            return self._by_example(super().down(x))
        return (a @ self._apart(x).mT).mul_(self._scale)

    def up(self, grad: torch.Tensor) -> torch.Tensor:
        """Return ``s B^T g^T``."""
        b = self._own("B", grad)
        if b is None:
            return self._by_example(super().up(grad))
        return (b.mT @ self._apart(grad).mT).mul_(self._scale)

    def add_down(self, product: torch.Tensor, down: torch.Tensor) -> None:
        """Add the thin product to the full one, ``(rows, d_out)``, in place."""
        b = self._own("B", down)
        if b is None:
            super().add_down(product, _joined(down))
        else:
            self._apart(product).baddbmm_(down.mT, b.mT)

    def add_up(self, of_x: torch.Tensor, up: torch.Tensor) -> None:
        """Add the thin gradient of ``x`` to the full one, ``(rows, d_in)``, in place."""
        a = self._own("A", up)
        if a is None:
            super().add_up(of_x, _joined(up))
        else:
            self._apart(of_x).baddbmm_(up.mT, a)

    def keep(self, kind: str, thin: torch.Tensor, wide: torch.Tensor) -> torch.Tensor | None:
        """Keep a factor's gradient by example."""
        if thin.dim() == 2:
            return super().keep(kind, thin, wide)
        self.keep_apart(kind, thin, wide)
        return None

    def _apart(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows by example, ``(B, T, d)``."""
        return rows.view(self.examples, -1, rows.shape[-1])

    def _by_example(self, thin: torch.Tensor) -> torch.Tensor:
        """Return what is thin by example, if the factors differ."""
        if self.clients is None:
            return thin
        return thin.view(thin.shape[0], self.examples, -1).transpose(0, 1)

    def _own(self, kind: str, like: torch.Tensor) -> torch.Tensor | None:
        """Return each example's factor, ``(B, *factor.shape)``, in a tensor's precision.

        None where all examples have the model's.
        """
        if self.clients is None or kind not in self.stacks:
            return None
        return self.stacks[kind][self.clients].to(like.dtype)


def _joined(thin: torch.Tensor) -> torch.Tensor:
    """Return what is thin as ``(r, rows)``."""
    return thin if thin.dim() == 2 else thin.transpose(0, 1).flatten(1)


def _members(clients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clients that occur, ``(n,)``, and which example is whose, bool, ``(n, B)``."""
    present: torch.Tensor = clients.unique()  # type: ignore[no-untyped-call]
    return present, present[:, None] == clients[None, :]


def _sums(samples: list[torch.Tensor], members: torch.Tensor) -> torch.Tensor:
    """Return the sums by client over each example's gradients, ``(n, d)``.

    As products: in the same order on every device.
    """
    weights = members.to(torch.float32)
    return torch.cat([weights @ sample.flatten(1).float() for sample in samples], dim=1)
