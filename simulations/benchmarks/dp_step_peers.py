"""One step's gradients by every engine of ``dp-step``: ours, the non-private one, and the peers.

A step is forward, loss, backward and, but for the non-private one, the sum of the clipped gradients
of the examples. Noise and optimiser are left out: they are the same for all. Every engine is used
as a :class:`client.clipping.PerExampleClipper` is, and computes the same loss.

Peers clip with their own code, where they have any, and not with ours, which adds up in float64.
dp-lora documents ``model(**batch).loss``, a mean over the tokens of the whole batch, which no clip
of single examples can bound; here it gets the sum of the sequences' losses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from shared.errors import MissingDependency

if TYPE_CHECKING:
    import torch

    from client.adapter import AdaptedModel
    from client.clipping import PerExampleClipper
    from client.losses import Batch

NON_PRIVATE: Final = "non-private"
OURS: Final = ("fused", "microbatch", "opacus")
"""The engines of :mod:`client.clipping`; ``opacus`` is Opacus' hooks with our clip."""


class _Peer:
    """A step on PEFT's own forward; what it attaches goes when the ``with`` block ends."""

    def __init__(self, model: AdaptedModel) -> None:
        self._model = model
        self._parameters = [parameter for _, parameter in model.trainable]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Attach to the model."""
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # What the libraries remark on is their own use of torch.
            warnings.simplefilter("ignore")
            stack.enter_context(self._model.plain_peft())
            stack.callback(self._forget)
            self._attach(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the model as it was."""
        self._stack.close()

    def _attach(self, stack: ExitStack) -> None:
        """Register what the engine needs, and on the stack how it goes."""

    def _forget(self) -> None:
        """Drop what a backward pass left on the parameters."""
        for parameter in self._parameters:
            parameter.grad = None

    def _losses(self, batch: Batch) -> torch.Tensor:
        """Return the loss of each sequence, shape ``(B,)``."""
        return plain_losses(self._model.peft_model, batch)


class NonPrivate(_Peer):
    """What training without privacy computes: one gradient of the mean loss."""

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the gradient of the mean loss; nothing is clipped."""
        import torch

        del max_grad_norm
        return list(torch.autograd.grad(self._losses(batch).mean(), self._parameters))


class OpacusHooks(_Peer):
    """Opacus: hooks that keep each example's gradient, and its optimiser's own clip.

    Args:
        model: an adapted model.
        functorch: let torch.func compute the gradients of a layer, Opacus' mode ``functorch``.
    """

    def __init__(self, model: AdaptedModel, *, functorch: bool = False) -> None:
        super().__init__(model)
        self._functorch = functorch
        self._optimizer: Any = None

    def _attach(self, stack: ExitStack) -> None:
        """Register the hooks."""
        from opacus.grad_sample import GradSampleHooks
        from opacus.optimizers import DPOptimizer
        from torch.optim import SGD

        hooks = GradSampleHooks(
            self._model.peft_model,
            batch_first=True,
            loss_reduction="sum",
            strict=False,
            force_functorch=self._functorch,
        )
        stack.callback(hooks.cleanup)
        self._optimizer = DPOptimizer(
            SGD(self._parameters, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=None,
            loss_reduction="sum",
        )

    def _forget(self) -> None:
        """Drop the sums too."""
        super()._forget()
        for parameter in self._parameters:
            parameter.__dict__.pop("summed_grad", None)

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum, in float32."""
        self._optimizer.zero_grad()
        self._optimizer.max_grad_norm = max_grad_norm
        self._losses(batch).sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.clip_and_accumulate()
        return [parameter.summed_grad for parameter in self._parameters]  # type: ignore[attr-defined]


class OpacusGhost(_Peer):
    """Opacus: norms without gradients, then a second backward pass of the weighted losses."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__(model)
        self._hooks: Any = None

    def _attach(self, stack: ExitStack) -> None:
        """Register the hooks."""
        from opacus.grad_sample import GradSampleHooksFastGradientClipping

        self._hooks = GradSampleHooksFastGradientClipping(
            self._model.peft_model, batch_first=True, loss_reduction="sum", strict=False
        )
        stack.callback(self._hooks.cleanup)

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum, in float32."""
        self._forget()
        self._hooks.max_grad_norm = max_grad_norm
        losses = self._losses(batch)
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        self._forget()
        weighted = (self._hooks.get_clipping_coef() * losses).sum()
        self._hooks.disable_hooks()
        weighted.backward()
        self._hooks.enable_hooks()
        return _present([parameter.grad for parameter in self._parameters])


class Vmap(_Peer):
    """torch.func: the gradient of one example's loss, mapped over the batch."""

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum, in float32."""
        from torch.func import grad, vmap

        by_id = {id(p): name for name, p in self._model.peft_model.named_parameters()}
        names = [by_id[id(parameter)] for parameter in self._parameters]
        values = {n: p.detach() for n, p in zip(names, self._parameters, strict=True)}
        of_each = vmap(grad(self._loss_of_one), in_dims=(None, 0, 0, 0))
        found = of_each(values, batch.ids, batch.labels, batch.attention_mask)
        return _clip_in_float32([found[name] for name in names], max_grad_norm)

    def _loss_of_one(
        self,
        values: dict[str, torch.Tensor],
        ids: torch.Tensor,
        labels: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Return one sequence's loss as a function of the factors."""
        from torch.func import functional_call

        from client.losses import Batch

        def model(**inputs: object) -> object:
            return functional_call(self._model.peft_model, values, (), inputs)

        one = Batch(ids=ids[None], labels=labels[None], attention_mask=mask[None])
        return plain_losses(model, one).sum()


class DpLora(_Peer):
    """The package dp-lora: hooks on the factors and its optimiser's own clip.

    Raises:
        MissingDependency: on entering, where it is not installed; it is none of our dependencies.
    """

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__(model)
        self._hooks: Any = None
        self._optimizer: Any = None

    def _attach(self, stack: ExitStack) -> None:
        """Register the hooks."""
        try:
            package: Any = import_module("dp_lora")
        except ImportError as error:
            msg = "The package dp-lora is not installed."
            raise MissingDependency(msg, hint="pip install 'fedslm[bench]'") from error
        from torch.optim import SGD

        self._hooks = package.GradSampleModule(self._model.peft_model, method="vanilla")
        stack.callback(self._hooks.remove_hooks)
        stack.callback(self._hooks.clear_per_sample_grads)
        self._optimizer = package.DPOptimizer(
            SGD(self._parameters, lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=1.0,
            expected_batch_size=1,
        )

    def clipped_sum(self, batch: Batch, max_grad_norm: float) -> list[torch.Tensor]:
        """Return the clipped sum, in float32."""
        self._optimizer.zero_grad()
        self._optimizer.max_grad_norm = max_grad_norm
        self._losses(batch).sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.clip_and_accumulate(self._hooks.get_per_sample_grads())
        self._hooks.clear_per_sample_grads()
        # It has no other way to the sum before noise.
        sums = self._optimizer._summed_grads
        return _present([sums.get(id(parameter)) for parameter in self._parameters])


def _ours(name: str) -> Callable[[AdaptedModel], PerExampleClipper]:
    """Return what makes an engine of :mod:`client.clipping`."""

    def make(model: AdaptedModel) -> PerExampleClipper:
        from client.clipping import make_clipper

        return make_clipper(name, model)

    return make


STEPS: Final[Mapping[str, Callable[[AdaptedModel], PerExampleClipper]]] = {
    NON_PRIVATE: NonPrivate,
    **{name: _ours(name) for name in OURS},
    "opacus-hooks": OpacusHooks,
    "opacus-functorch": partial(OpacusHooks, functorch=True),
    "opacus-ghost": OpacusGhost,
    "vmap": Vmap,
    "dp-lora": DpLora,
}
"""What makes each engine, by name."""
PEERS: Final = tuple(name for name in STEPS if name not in {NON_PRIVATE, *OURS})
"""The engines that are not ours."""


def plain_losses(model: Callable[..., Any], batch: Batch) -> torch.Tensor:
    """Return each sequence's mean loss over its label tokens by torch's own cross entropy.

    What one writes without thinking of memory: all logits, in float32 or better.

    Args:
        model: a causal language model, or a function like one.
        batch: padded on the right.

    Returns:
        Nats per token, shape ``(B,)``.
    """
    import torch
    from torch.nn.functional import cross_entropy

    logits: torch.Tensor = model(input_ids=batch.ids, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = batch.labels[:, 1:]
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none")
    counts = (targets != -100).sum(dim=1).clamp(min=1)
    return losses.view(targets.shape).sum(dim=1) / counts


def _clip_in_float32(samples: Sequence[torch.Tensor], max_grad_norm: float) -> list[torch.Tensor]:
    """Clip and add up as one would by hand; ``samples`` are ``(B, ...)``."""
    import torch

    norms = torch.stack([sample.flatten(1).norm(dim=1) for sample in samples]).norm(dim=0)
    factors = (max_grad_norm / norms).clamp(max=1.0)
    return [torch.einsum("i,i...", factors.to(sample.dtype), sample) for sample in samples]


def _present(found: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return what is there.

    Raises:
        UnsupportedModel: if a factor got nothing.
    """
    from client.clipping import no_gradient

    present = [tensor for tensor in found if tensor is not None]
    if len(present) != len(found):
        raise no_gradient()
    return present
