"""LoRA layers with one adapter per client: many clients go through the frozen base at once.

A tiny client cannot fill a device, nor pay for what Python spends on a step. Here the examples of
many clients share one forward and one backward pass, ``y = x W^T + s (x A_c^T) B_c^T`` with the
factors of the client c that an example belongs to, and every example's gradient of the trained
factors is kept apart. Nothing is shared between two examples but the frozen base, so that a client
trains as it does alone, up to the rounding of float32 sums. Before its first step a client's
factors are the global ones, and the full product ``x (W + s B A)^T`` is taken instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)

from client.clipping import clip_factors, no_gradient, require_covered
from client.losses import Batch, per_sequence_losses
from client.quantization import stored_weight
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.adapter import AdaptedModel


class GroupedAdapter:
    """One copy of the trained factors for each of several clients, on one shared base.

    Args:
        model: its factors are where every client starts; they are not changed.
        clients: number of clients C.

    Attributes:
        flat: the clients' trained factors, float32, shape ``(C, d)``, columns in canonical order.
        moved: whether any client has left the model's own factors.

    Raises:
        UnsupportedModel: if something trains that is no factor of a LoRA layer.
    """

    def __init__(self, model: AdaptedModel, clients: int) -> None:
        self._model = model
        self._layers = [_GroupedLayer(module) for module in _lora_modules(model)]
        require_covered(model, [f for layer in self._layers for f in (layer.a, layer.b)])
        start = torch.cat([p.detach().reshape(-1) for _, p in model.trainable]).to(torch.float32)
        self.flat = start.repeat(clients, 1)
        self.moved = False
        self._factors = self._share()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Compute the model's LoRA layers by client inside the ``with`` block."""
        for layer in self._layers:
            layer.module.forward = layer.forward
        try:
            yield
        finally:
            for plain in self._model.layers:
                plain.attach()
            for layer in self._layers:
                layer.forget()

    def add_sums(self, batch: Batch, clients: torch.Tensor, total: torch.Tensor) -> None:
        """Add every example's gradient to the row of its client.

        An example whose gradient is not finite adds zero, and changes nobody else's row.

        Args:
            batch: examples of any of the clients.
            clients: the client of each example, int64, shape ``(B,)``.
            total: float32, shape ``(C, d)``; added to in place.
        """
        samples = self._samples(batch, clients)
        weights = _one_hot(clients, len(self.flat), total.dtype)
        sums = torch.cat([weights @ sample for sample in samples], dim=1)
        if not bool(torch.isfinite(sums.sum())):
            # Zero times NaN is NaN, so one such example has spoilt every row of the sum.
            _silence(samples, torch.isfinite(_squared_norms(samples)))
            sums = torch.cat([weights @ sample for sample in samples], dim=1)
        total += sums

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
        squared = _squared_norms(samples)
        _silence(samples, torch.isfinite(squared))
        weights = _one_hot(clients, len(self.flat), torch.float64)
        weights *= clip_factors(squared, max_grad_norm)
        start = 0
        for sample in samples:
            stop = start + sample.shape[1]
            total[:, start:stop].addmm_(weights, sample.double())
            start = stop

    def _samples(self, batch: Batch, clients: torch.Tensor) -> list[torch.Tensor]:
        """Return each example's gradient of each factor, ``(B, size)`` in canonical order."""
        for layer in self._layers:
            layer.begin(clients, own=self.moved)
        loss = per_sequence_losses(self._model.peft_model, batch).sum()
        if not loss.requires_grad:
            raise no_gradient()
        loss.backward()  # type: ignore[no-untyped-call]
        samples = []
        for layer, kind in self._factors:
            sample = layer.samples.pop(kind, None)
            if sample is None:
                raise no_gradient()
            samples.append(sample.flatten(1))
        return samples

    def _share(self) -> list[tuple[_GroupedLayer, str]]:
        """Give every layer its columns of the flat buffer; return the factors in their order."""
        by_factor = {id(layer.a): (layer, "A") for layer in self._layers}
        by_factor |= {id(layer.b): (layer, "B") for layer in self._layers}
        factors, start = [], 0
        for _, parameter in self._model.trainable:
            layer, kind = by_factor[id(parameter)]
            columns = self.flat[:, start : start + parameter.numel()]
            layer.stacks[kind] = columns.view(len(self.flat), *parameter.shape)
            start += parameter.numel()
            factors.append((layer, kind))
        return factors


class _GroupedLayer:
    """One LoRA layer, with factors that differ from client to client.

    Attributes:
        module: PEFT's layer.
        a: its own factor A, ``(r, d_in)``.
        b: its own factor B, ``(d_out, r)``.
        stacks: the clients' factors of the trained kinds, ``(C, *factor.shape)``.
        samples: gradients by example of the last backward pass, ``(B, *factor.shape)``.
    """

    __slots__ = ("_base", "_clients", "_own", "_scale", "a", "b", "module", "samples", "stacks")

    def __init__(self, module: Any) -> None:  # noqa: ANN401  (PEFT has no types)
        self.module = module
        self._base: torch.nn.Module = module.base_layer
        self._scale = float(module.scaling["default"])
        self.a: torch.nn.Parameter = module.lora_A["default"].weight
        self.b: torch.nn.Parameter = module.lora_B["default"].weight
        self.stacks: dict[str, torch.Tensor] = {}
        self.samples: dict[str, torch.Tensor] = {}
        self._clients: torch.Tensor | None = None
        self._own = False

    def begin(self, clients: torch.Tensor, *, own: bool) -> None:
        """Expect a batch with these clients; ``own`` if their factors differ from the layer's."""
        self._clients, self._own, self.samples = clients, own, {}

    def forget(self) -> None:
        """Drop what was recorded."""
        self._clients, self._own, self.samples = None, False, {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for ``x`` of shape ``(B, ..., d_in)``.

        Raises:
            UnsupportedModel: if the first dimension is not the example.
        """
        if self._clients is None or not (x.dim() >= 3 and len(x) == len(self._clients)):
            msg = f"A layer sees an input of shape {tuple(x.shape)}: whose it is cannot be told."
            raise UnsupportedModel(msg, hint="Set performance.cohort_batch to 1.")
        output: torch.Tensor = _Grouped.apply(x, self.a, self.b, self)  # type: ignore[no-untyped-call]
        return output

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product; ``x`` is ``(B, T, d_in)``."""
        weight, bias = self._weight()
        product = F.linear(x, weight, bias)
        if self._own:
            a, b = self._factors()
            product += (x @ a.transpose(-1, -2)).mul_(self._scale) @ b.transpose(-1, -2)
        return product

    def gradients(
        self, x: torch.Tensor, grad: torch.Tensor, *, of_x: bool, kinds: str
    ) -> torch.Tensor | None:
        """Keep the factors' gradients by example; return the gradient of ``x`` if it is wanted."""
        a, b = self._factors()
        back = None
        if "A" in kinds or (of_x and self._own):
            back = (grad @ b).mul_(self._scale)
        if "A" in kinds and back is not None:
            self._keep("A", back.transpose(1, 2) @ x)
        if "B" in kinds:
            self._keep("B", grad.transpose(1, 2) @ (x @ a.transpose(-1, -2)).mul_(self._scale))
        if not of_x:
            return None
        result = grad @ self._weight()[0]
        if self._own and back is not None:
            result += back @ a
        return result

    def _keep(self, kind: str, gradient: torch.Tensor) -> None:
        """Record; a layer that runs twice in one pass adds up, as autograd would."""
        earlier = self.samples.get(kind)
        self.samples[kind] = gradient if earlier is None else earlier + gradient

    def _weight(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the frozen weight, with the shared adapter added where all share it; the bias."""
        weight, bias = stored_weight(self._base)
        if not self._own:
            with torch.no_grad():
                weight = torch.addmm(weight, self.b, self.a, alpha=self._scale)
        return weight, bias

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B, with one of each for each example where the clients' own differ."""
        found = {"A": self.a.detach(), "B": self.b.detach()}
        if self._own and self._clients is not None:
            found |= {kind: stack[self._clients] for kind, stack in self.stacks.items()}
        return found["A"], found["B"]


class _Grouped(torch.autograd.Function):
    """The product of a grouped layer; the factors' gradients stay with the layer."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        layer: _GroupedLayer,
    ) -> torch.Tensor:
        """Return the product; ``a`` and ``b`` make autograd come back, no more."""
        del a, b
        ctx.save_for_backward(x)
        ctx.layer = layer
        flat = x.reshape(len(x), -1, x.shape[-1])
        return layer.output(flat).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient of ``x``."""
        (x,) = ctx.saved_tensors
        kinds = ("A" if ctx.needs_input_grad[1] else "") + ("B" if ctx.needs_input_grad[2] else "")
        grad = grads[0].reshape(len(x), -1, grads[0].shape[-1])
        flat = x.reshape(len(x), -1, x.shape[-1])
        of_x = ctx.layer.gradients(flat, grad, of_x=ctx.needs_input_grad[0], kinds=kinds)
        return None if of_x is None else of_x.view_as(x), None, None, None


def _lora_modules(model: AdaptedModel) -> list[torch.nn.Module]:
    """Return PEFT's LoRA layers."""
    from peft.tuners.lora import LoraLayer

    return [module for module in model.peft_model.modules() if isinstance(module, LoraLayer)]


def _one_hot(clients: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the matrix ``(C, B)`` that sums by client, in the same order on every device."""
    rows = torch.arange(count, device=clients.device)
    return (rows[:, None] == clients[None, :]).to(dtype)


def _squared_norms(samples: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return every example's squared norm over all factors together, float64."""
    return torch.stack([sample.double().square().sum(dim=1) for sample in samples]).sum(dim=0)


def _silence(samples: Sequence[torch.Tensor], finite: torch.Tensor) -> None:
    """Set the gradients of examples that are not finite to zero, in place."""
    if not bool(finite.all()):
        for sample in samples:
            sample[~finite] = 0.0
