"""Per-example clipped gradients of adapters, by three engines that agree.

- ``fused``: the autograd functions of :mod:`client.lowrank`, :mod:`client.densehead`,
  :mod:`client.mixture`, :mod:`client.rescaled` and :mod:`client.softprompt` keep each example's
  gradient of each factor, of the head, of the router and of the vectors of IA3 or of a prompt.
  At LoRA's ranks that costs as much as the batch gradient. It works on quantised bases and under
  gradient checkpointing, and is the default.
- ``microbatch``: one example at a time; the least memory, any layer. For phones.
- ``opacus``: Opacus' hooks, as the reference of the field.

All three refuse a model with a trainable parameter that they do not cover: its gradient would leave
the device unclipped. Norms are accumulated in float64 and never leave the engine: they are as
private as the examples.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch

from client.losses import Batch, per_sequence_losses
from client.onebyone import OneByOne
from client.sidebyside import SideBySide, silence
from shared.errors import InvalidValue, MissingDependency, SensitivityError, UnsupportedModel
from shared.registry import Registry

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.densehead import DenseHead
    from client.lowrank import LowRankLayer
    from client.mixture import Router
    from client.rescaled import RescaledLayer
    from client.softprompt import SoftPrompt

    Recorder = LowRankLayer | DenseHead | Router | RescaledLayer | SoftPrompt

# Clipping to a bound that is smaller by this fraction keeps every clipped norm, which is computed
# in float64, below the real bound after rounding.
_ROUNDING = 1e-12


class PerExampleClipper(Protocol):
    """An engine of per-example gradients; used as a context manager."""

    def __enter__(self) -> Self:
        """Attach to the model."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the model as it was."""
        ...

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the sum over examples of gradients clipped to ``max_grad_norm``.

        Guarantee:
            Adding or removing one example changes the result by at most ``max_grad_norm`` in L2
            norm over all tensors together. An example whose gradient is not finite adds zero.

        Args:
            batch: at least one example.
            max_grad_norm: > 0; infinity clips nothing (and gives no guarantee).

        Returns:
            One float64 tensor per trainable factor, in canonical order.
        """
        ...


def no_gradient() -> UnsupportedModel:
    """Return the error for an adapter that training does not reach."""
    msg = "The adapter got no gradient after a step with data: it would upload noise or nothing."
    hint = (
        "A quantised layer of this model is not differentiable (bitsandbytes repacks NF4 weights "
        "for inference on AVX512-BF16 CPUs); load the base with client.model.load_base."
    )
    return UnsupportedModel(msg, hint=hint)


def gradients_of(
    model: AdaptedModel,
    loss: torch.Tensor,
    parameters: Sequence[torch.nn.Parameter] | None = None,
) -> list[torch.Tensor]:
    """Return the gradient of a loss by every trainable factor, in canonical order.

    Args:
        model: an adapted model.
        loss: a scalar.
        parameters: those of ``model.trainable``, where the caller has them at hand.

    Raises:
        UnsupportedModel: if a factor gets none.
    """
    if parameters is None:
        parameters = [parameter for _, parameter in model.trainable]
    found: Sequence[torch.Tensor | None]
    if model.reentrant:
        # A backward pass inside the backward pass can only leave its results on the parameters.
        loss.backward()  # type: ignore[no-untyped-call]
        found = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
    else:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None]
    if len(gradients) != len(parameters):
        raise no_gradient()
    return gradients


def clip_factors(squared_norms: torch.Tensor, max_grad_norm: float) -> torch.Tensor:
    """Return what each example's gradient is multiplied with.

    Args:
        squared_norms: squared L2 norms, float64, shape ``(B,)``.
        max_grad_norm: the bound; infinity clips nothing.

    Returns:
        ``min(1, bound / norm)`` in float64; 0 where the norm is not finite.

    Raises:
        SensitivityError: if the bound is not a number > 0.
    """
    if not max_grad_norm > 0:
        msg = f"max_grad_norm={max_grad_norm!r}, expected a number > 0."
        raise SensitivityError(msg)
    norms = squared_norms.sqrt()
    factors = torch.ones_like(norms)
    if math.isfinite(max_grad_norm):
        # An all-zero gradient divides by zero and gives infinity, which the clamp turns into one.
        factors = (max_grad_norm * (1.0 - _ROUNDING) / norms).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, torch.zeros_like(factors))


class MicrobatchClipper:
    """One example at a time, without padding; the least memory and the fewest assumptions."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model
        self._parameters = [parameter for _, parameter in model.trainable]
        require_covered(model, self._parameters)

    def __enter__(self) -> Self:
        """Attach nothing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Detach nothing."""

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum; see :class:`PerExampleClipper`."""
        layout: SideBySide | None = None
        totals: list[torch.Tensor] = []
        for index in range(batch.ids.shape[0]):
            gradients = self._gradients(batch.row(index))
            if layout is None:
                layout = SideBySide(gradients)
                totals = layout.zeros(gradients[0].device)
            factor = float(clip_factors(layout.squared_norms(gradients), max_grad_norm))
            if factor > 0:
                for total, joined in zip(totals, layout.joined(gradients), strict=True):
                    total.add_(joined[0], alpha=factor)
            # Not kept until the next example's are there.
            del gradients
        if layout is None:
            msg = "A clipped sum needs at least one example."
            raise InvalidValue(msg)
        return layout.split(totals)

    def _gradients(self, one: Batch) -> list[torch.Tensor]:
        """Return one example's gradient of each factor, ``(1, ...)``."""
        loss = per_sequence_losses(self._model.peft_model, one).sum()
        if not loss.requires_grad:
            raise no_gradient()
        found = gradients_of(self._model, loss, self._parameters)
        return [gradient.unsqueeze(0) for gradient in found]


class FusedClipper:
    """All examples at once, with each example's gradient of each factor kept until the clip."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model
        by_factor: dict[int, tuple[Recorder, str]] = {}
        by_factor |= {id(layer.a): (layer, "A") for layer in model.layers}
        by_factor |= {id(layer.b): (layer, "B") for layer in model.layers}
        whole = [layer for layer in (model.head, model.router) if layer is not None]
        by_factor |= {id(p): (h, n) for h in whole for n, p in h.module.named_parameters()}
        by_factor |= {id(p): (v, n) for v in model.vectors for n, p in v.trained.items()}
        self._layers: list[Recorder] = [*model.layers, *whole, *model.vectors]
        require_covered(model, [p for p in model.peft_model.parameters() if id(p) in by_factor])
        self._factors = [by_factor[id(parameter)] for _, parameter in model.trainable]

    def __enter__(self) -> Self:
        """Attach nothing: the layers record while :meth:`clipped_sum` runs."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End recording and drop what was recorded."""
        for layer in self._layers:
            layer.record(0)

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum; see :class:`PerExampleClipper`."""
        for layer in self._layers:
            layer.record(batch.ids.shape[0])
        loss = per_sequence_losses(self._model.peft_model, batch).sum()
        if not loss.requires_grad:
            raise no_gradient()
        loss.backward()  # type: ignore[no-untyped-call]
        samples = []
        for layer, kind in self._factors:
            sample = layer.samples.pop(kind, None)
            if sample is None:
                raise no_gradient()
            samples.append(sample)
        return clip_and_sum(samples, max_grad_norm)


class OpacusClipper:
    """Opacus' per-sample hooks, without wrapping the model."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model
        self._parameters = [parameter for _, parameter in model.trainable]
        self._hooks: Any = None
        self._stack = ExitStack()
        if model.checkpointing and not model.reentrant:
            msg = "clipper='opacus' cannot work under gradient checkpointing that is not reentrant."
            hint = "Use clipper='fused' or 'microbatch', or enable_checkpointing(reentrant=True)."
            raise UnsupportedModel(msg, hint=hint)
        if model.vectors:
            msg = "clipper='opacus' knows no layer that rescales, and no prompt."
            raise UnsupportedModel(msg, hint="Use clipper='fused' or 'microbatch'.")
        require_covered(model, self._parameters)

    def __enter__(self) -> Self:
        """Register the hooks.

        Raises:
            MissingDependency: if Opacus is not installed.
        """
        try:
            from opacus.grad_sample import GradSampleHooks
        except ImportError as error:
            msg = "clipper='opacus' needs Opacus, which is not installed."
            raise MissingDependency(msg, hint="pip install 'fedslm[client]'") from error
        # Opacus hooks torch's own linear modules, which only PEFT's forward calls.
        self._stack.enter_context(self._model.plain_peft())
        self._hooks = GradSampleHooks(
            self._model.peft_model, batch_first=True, loss_reduction="sum", strict=False
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove the hooks and everything that they left on the parameters."""
        self._stack.close()
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum; see :class:`PerExampleClipper`."""
        for parameter in self._parameters:
            parameter.grad_sample = None  # type: ignore[attr-defined]
        loss = per_sequence_losses(self._model.peft_model, batch).sum()
        if not loss.requires_grad:
            raise no_gradient()
        with warnings.catch_warnings():
            # The first layer's input needs no gradient, which torch remarks on.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.backward()  # type: ignore[no-untyped-call]
        samples = []
        for parameter in self._parameters:
            sample = getattr(parameter, "grad_sample", None)
            if not isinstance(sample, torch.Tensor):
                raise no_gradient()
            samples.append(sample)
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None
        return clip_and_sum(samples, max_grad_norm)


CLIPPERS: Registry[Callable[[AdaptedModel], PerExampleClipper]] = Registry("clipper")
CLIPPERS.add("fused", FusedClipper)
CLIPPERS.add("microbatch", MicrobatchClipper)
CLIPPERS.add("opacus", OpacusClipper)


def make_clipper(name: str, model: AdaptedModel) -> PerExampleClipper:
    """Return the engine with this name for a model.

    On a base whose products are taken in bfloat16 it is given one example at a time: see
    :mod:`client.onebyone`.

    Raises:
        InvalidValue: for an unknown name.
        UnsupportedModel: if some trainable parameter would not be covered.
    """
    engine = CLIPPERS.get(name)(model)
    return engine if model.base.compute_dtype == "float32" else OneByOne(engine)


def clip_and_sum(
    samples: Sequence[torch.Tensor], max_grad_norm: float, members: torch.Tensor | None = None
) -> list[torch.Tensor]:
    """Clip per-example gradients over all tensors together and sum them.

    Args:
        samples: per-example gradients, each ``(B, ...)``; overwritten where not finite.
        max_grad_norm: the L2 bound on each example.
        members: 1 where an example belongs to a sum and 0 elsewhere, ``(sums, B)``; every example
            belongs to one sum at most. None sums all of them.

    Returns:
        One float64 tensor per sample, with the dimension of the sums in place of the batch's, or
        without any where all are summed.
    """
    layout = SideBySide(samples)
    squared = layout.squared_norms(samples)
    factors = clip_factors(squared, max_grad_norm)
    # Zero times NaN is NaN, so the factor alone would not take an example out.
    silence(samples, torch.isfinite(squared))
    if members is None:
        return layout.split([torch.mv(joined.t(), factors) for joined in layout.joined(samples)])
    weights = members.double() * factors
    return layout.split([weights @ joined for joined in layout.joined(samples)])


def require_covered(model: AdaptedModel, covered: Sequence[torch.Tensor]) -> None:
    """Refuse a model in which something trains that the engine does not clip.

    Raises:
        UnsupportedModel: names the parameters; nothing has been computed yet.
    """
    known = {id(parameter) for parameter in covered}
    if known and all(id(parameter) in known for parameter in _training(model.peft_model)):
        return
    loose = [
        name
        for name, parameter in model.peft_model.named_parameters()
        if parameter.requires_grad and id(parameter) not in known
    ]
    if loose or not known:
        some = ", ".join(loose[:3]) or "no trainable factor at all"
        msg = f"Per-example clipping does not cover what trains: {some}."
        raise UnsupportedModel(
            msg, hint="Only what an adapter trains, a head and a router can train privately."
        )


def _training(module: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """Yield every parameter that trains; much faster than by name, which every client would pay."""
    left: list[torch.nn.Module | None] = [module]
    while left:
        here = left.pop()
        if here is not None:
            yield from (p for p in here._parameters.values() if p is not None and p.requires_grad)
            left.extend(here._modules.values())
