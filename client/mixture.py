"""The router of a mixture: gates for every place of a text, made of the tokens up to there.

The gate of adapter k at place t is entry k of ``softmax(c R h_t)``, where ``h_t`` is the mean of
the frozen embeddings of tokens 1 to t, less the mean of the whole vocabulary's, at length 1
(:mod:`shared.mixture`).

Guarantee:
    Gates at a place depend on that text up to that place alone: examples stay separable whatever
    they are batched with, padding behind a text changes nothing, and a loss is a likelihood, since
    no gate has seen the token that it helps to predict. While recording, the gradient of R is kept
    by example, so that it is clipped with the adapters' in one norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from client.encoders import mark_trained
from shared.errors import UnsupportedModel
from shared.lora import Factor
from shared.mixture import ROUTER, Mixture

if TYPE_CHECKING:
    from client.model import BaseModel

_STATE = "_fedslm_route"
_ROWS = 4096  # embeddings whose mean is taken at once
_SMALLEST = 1e-12


class Router:
    """The gates of one model; attached to it from its making to :meth:`remove`.

    Args:
        base: a causal language model; a layer named after :data:`shared.mixture.ROUTER` is added.
        mixture: number of adapters, and sharpness.

    Attributes:
        module: the layer whose weight R is ``(K, width)``.
        gates: those of the pass that runs or ran last, ``(K, rows)``; None before the first.
        examples: number of examples whose gradients are kept apart; 0 leaves them to autograd.
        samples: what was kept, ``"weight"`` to ``(examples, K, width)``.
        weights: one R for each example of the coming batch, ``(examples, K, width)``; None while
            all have that of the module.

    Raises:
        UnsupportedModel: if the model shows no embeddings, or no body that reads them.
    """

    def __init__(self, base: BaseModel, mixture: Mixture) -> None:
        model: Any = base.model
        self._body: Any = model.base_model
        self._embeddings: torch.nn.Module = model.get_input_embeddings()
        if self._body is model:
            msg = f"Model {base.name!r} has no body apart from its output embedding."
            raise UnsupportedModel(msg, hint="A mixture of adapters needs a causal model.")
        self._sharpness = mixture.sharpness
        weight: Any = self._embeddings.weight
        self._mean = self._vocabulary_mean(weight.shape[0], weight.device)
        self.module = torch.nn.Linear(
            self._mean.shape[0], mixture.adapters, bias=False, device="meta"
        ).to_empty(device=weight.device)
        with torch.no_grad():
            self.module.weight.zero_()
        mark_trained(self.module)
        self._model = model
        model.add_module(ROUTER, self.module)
        self.gates: torch.Tensor | None = None
        self._last: torch.Tensor | None = None
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}
        self.weights: torch.Tensor | None = None
        self._hooks = [
            self._body.register_forward_pre_hook(self._before, with_kwargs=True),
            self._body.register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Take the router out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._model.__dict__["_modules"].pop(ROUTER, None)

    def record(self, examples: int) -> None:
        """Keep gradients of a coming batch apart by example; 0 ends it. Forgets the last ones."""
        self.examples = examples
        self.samples = {}
        if not examples:
            self.weights = None

    def gates_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the gates that texts get, ``(K, B T)``, without any other part of the model.

        Args:
            ids: padded on the right, ``(B, T)``.
        """
        with torch.no_grad():
            self._before(self._body, (), {"input_ids": ids})
        if self.gates is None:
            msg = "A router made no gates."
            raise UnsupportedModel(msg)
        return self.gates

    def _before(self, body: Any, args: Any, kwargs: dict[str, Any]) -> None:  # noqa: ANN401
        """Make the gates of a pass, before any layer needs them."""
        del body
        ids = kwargs.get("input_ids", args[0] if args else None)
        embedded = kwargs.get("inputs_embeds")
        if embedded is None:
            if ids is None:
                msg = "A mixture finds neither token ids nor embeddings to choose adapters by."
                raise UnsupportedModel(msg)
            with torch.no_grad():
                embedded = self._embeddings(ids)
        earlier = self._earlier(kwargs.get("past_key_values"), rows=embedded.shape[0])
        centred = embedded.float() - self._mean
        mask = kwargs.get("attention_mask")
        if mask is not None:
            centred = centred * _of_places(mask, embedded)
        sums = centred.cumsum(dim=1)
        if earlier is not None:
            sums = sums + earlier.unsqueeze(1)
        self._last = sums[:, -1].detach()
        # A mean and a sum point the same way.
        h = sums / sums.norm(dim=-1, keepdim=True).clamp(min=_SMALLEST)
        self.gates = torch.softmax(self._sharpness * self._logits(h), dim=-1).flatten(0, 1).t()

    def _after(self, body: Any, args: Any, output: Any) -> None:  # noqa: ANN401
        """Leave with a cache what its next pass needs of this one."""
        del body, args
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            setattr(cache, _STATE, self._last)

    def _earlier(self, cache: Any, *, rows: int) -> torch.Tensor | None:  # noqa: ANN401
        """Return the sums of what a cache has seen; None at the start of a text.

        Raises:
            UnsupportedModel: if the cache was filled by another model, or cut by another hand.
        """
        if cache is None or int(cache.get_seq_length()) == 0:
            return None
        found: torch.Tensor | None = getattr(cache, _STATE, None)
        if found is None or found.shape[0] != rows:
            msg = "A mixture was given a cache that it did not fill."
            raise UnsupportedModel(msg, hint="Begin the text again, without a cache.")
        return found

    def _logits(self, h: torch.Tensor) -> torch.Tensor:
        """Return ``R h`` of every place, ``(B, T, K)``."""
        if not self.examples:
            return torch.nn.functional.linear(h, self.module.weight)
        if h.shape[0] != self.examples:
            msg = f"The router sees {h.shape[0]} texts for {self.examples} examples."
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        logits: torch.Tensor = _Recorded.apply(h, self.module.weight, self)  # type: ignore[no-untyped-call]
        return logits

    @torch.no_grad()
    def _vocabulary_mean(self, tokens: int, device: torch.device) -> torch.Tensor:
        """Return the mean embedding, as the body reads it (some scale), float32, ``(width,)``."""
        total: torch.Tensor | None = None
        for ids in torch.split(torch.arange(tokens, device=device), _ROWS):
            found = self._embeddings(ids).double().sum(dim=0)
            total = found if total is None else total + found
        if total is None:
            msg = "A model without a vocabulary cannot choose adapters by tokens."
            raise UnsupportedModel(msg)
        return (total / tokens).float()


def router_factor(base: torch.nn.Module, mixture: Mixture, prefix: str, *, frozen: bool) -> Factor:
    """Return name and shape of the router that :class:`Router` adds."""
    model: Any = base
    width = int(model.get_input_embeddings().weight.shape[1])
    return Factor(
        name=f"{prefix}{ROUTER}.weight",
        kind="A" if frozen else "B",
        shape=(mixture.adapters, width),
    )


def keep_rows(cache: Any, rows: torch.Tensor) -> None:  # noqa: ANN401  (transformers' own class)
    """Keep some texts of a cache, and what a router left with it.

    Args:
        cache: transformers' dynamic cache.
        rows: which texts, int64.
    """
    cache.batch_select_indices(rows)
    found = getattr(cache, _STATE, None)
    if found is not None:
        setattr(cache, _STATE, found[rows])


def gated(thin: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Weigh each adapter's rows of what is thin by its gates.

    Args:
        thin: ``(K r, rows)``, or by example ``(B, K r, T)``.
        gates: ``(K, rows)``.

    Returns:
        A new tensor of the shape of ``thin``.
    """
    return (_blocks(thin, gates) * _aligned(gates, thin).unsqueeze(-2)).view_as(thin)


def of_gates(down: torch.Tensor, up: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Return the gradient of gates, ``(K, rows)``; the others are as :func:`gated` takes them."""
    found = (_blocks(down, gates) * _blocks(up, gates)).sum(dim=-2)
    return found if found.dim() == 2 else found.transpose(0, 1).flatten(1)


def _of_places(mask: Any, embedded: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Return 1 for each token and 0 for padding, ``(B, T, 1)``.

    Raises:
        UnsupportedModel: for a mask that is not one number for each token so far.
    """
    batch, places = embedded.shape[:2]
    if not (isinstance(mask, torch.Tensor) and mask.dim() == len("BT") and len(mask) == batch):
        msg = "A mixture was given an attention mask that does not say what is padding."
        raise UnsupportedModel(msg)
    return (mask[:, -places:] != 0).unsqueeze(-1)


def _blocks(thin: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """Return what is thin by adapter, ``(..., K, r, rows)``."""
    adapters = gates.shape[0]
    return thin.reshape(*thin.shape[:-2], adapters, -1, thin.shape[-1])


def _aligned(gates: torch.Tensor, thin: torch.Tensor) -> torch.Tensor:
    """Return gates in the order and precision of what is thin, ``(K, rows)`` or ``(B, K, T)``."""
    gates = gates.to(thin.dtype)
    if thin.dim() == 2:
        return gates
    return gates.view(gates.shape[0], thin.shape[0], -1).transpose(0, 1)


class _Recorded(torch.autograd.Function):
    """``R h`` that keeps the gradient of R by example."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        h: torch.Tensor,
        weight: torch.Tensor,
        router: Router,
    ) -> torch.Tensor:
        """Return the logits, ``(B, T, K)``."""
        own = weight.unsqueeze(0) if router.weights is None else router.weights
        ctx.save_for_backward(h, own.detach())
        ctx.router = router
        return h @ own.mT

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        """Return the gradient of ``h``; that of R is kept."""
        h, weight = ctx.saved_tensors
        grad: torch.Tensor = grads[0]
        if ctx.needs_input_grad[1]:
            ctx.router.samples["weight"] = grad.mT @ h
        return (grad @ weight if ctx.needs_input_grad[0] else None), None, None
