"""One example's LoRA gradient as a plain program, traced from the adapted model.

The loss is written out with ``log_softmax`` and ``gather``: the backward pass of the library's
cross-entropy loses its divisor on the way to ONNX, which makes gradients ``T - 1`` times too large
beside a loss that is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.func import functional_call, grad_and_value
from torch.fx.experimental.proxy_tensor import make_fx

from client.examples import IGNORED
from shared.errors import UnsupportedModel
from shared.validate import positive, positive_integer

if TYPE_CHECKING:
    from client.adapter import AdaptedModel

# Far below any score, and finite in float16 and in every runtime.
_HIDDEN = -30000.0


class TracedStep:
    """One example's gradient as a graph of plain operations.

    Attributes:
        graph: takes ``(ids, labels, *factors)`` and returns ``(loss, norm, *gradients)``; see
            :func:`trace_step`.
        example: tensors that it can be called with.
        outputs: names of the factors whose gradients it returns, in order.
    """

    def __init__(
        self, graph: torch.fx.GraphModule, example: tuple[torch.Tensor, ...], outputs: list[str]
    ) -> None:
        self.graph = graph
        self.example = example
        self.outputs = outputs


def trace_step(model: AdaptedModel, *, length: int, max_grad_norm: float | None) -> TracedStep:
    """Trace one example's gradient of the factors that train.

    The graph computes what :class:`client.clipping.MicrobatchClipper` computes for one example: the
    gradient of the mean loss over the example's own label tokens, scaled to ``max_grad_norm`` where
    it is longer. Padding on the right changes nothing; a row without a label has loss 0, norm 0
    and zero gradients.

    Args:
        model: unquantised and without dropout, on the CPU.
        length: T, the number of tokens that every example is padded to, at least 2.
        max_grad_norm: the clip, or None for the gradient as it is.

    Returns:
        A graph of ``ids`` and ``labels``, int64 ``(1, T)``, and every factor in canonical order;
        it returns the loss, the L2 norm before the clip, and one gradient per factor that trains.

    Raises:
        UnsupportedModel: for a classifier, a quantised base, dropout, or a model that cannot be
            traced.
        InvalidValue: if a number is out of range.
    """
    positive_integer(length=length, tokens_to_predict=length - 1)
    if max_grad_norm is not None:
        positive(max_grad_norm=max_grad_norm)
    _require_plain(model)
    every = [factor.name for factor in model.spec.factors]
    trained = [name for name, _ in model.trainable]
    keys = _keys(model)
    loss_of = _loss(model, length)

    def step(
        ids: torch.Tensor, labels: torch.Tensor, *factors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        named = dict(zip(every, factors, strict=True))
        moving = {keys[name]: named[name] for name in trained}
        fixed = {keys[name]: value for name, value in named.items() if name not in trained}
        found, loss = grad_and_value(loss_of)(moving, fixed, ids, labels)
        gradients = [found[keys[name]] for name in trained]
        squares = [(gradient * gradient).sum() for gradient in gradients]
        norm = torch.stack(squares).sum().sqrt()
        if max_grad_norm is not None:
            # A zero norm divides to infinity, which the clamp turns into one.
            factor = (max_grad_norm / norm).clamp(max=1.0)
            gradients = [gradient * factor for gradient in gradients]
        return loss, norm, *gradients

    ids = torch.arange(length)[None] % int(model.base.model.config.vocab_size)
    parameters = dict(model.peft_model.named_parameters())
    example = (ids, ids.clone(), *(parameters[keys[name]].detach().clone() for name in every))
    with _as_published(model), torch.no_grad():
        graph = make_fx(step, tracing_mode="real")(*example)
    _without_empty(graph)
    return TracedStep(graph, example, trained)


def _require_plain(model: AdaptedModel) -> None:
    """Refuse what a program cannot do."""
    reasons = {
        "The base is quantised": model.base.quantization != "none",
        "The adapter has dropout": model.dropout > 0,
        "The adapter is a mixture, whose gates the program does not make": model.router is not None,
        "The model classifies": bool(model.base.head),
        "The model is not on the CPU": model.device.type != "cpu",
    }
    for reason, holds in reasons.items():
        if holds:
            msg = f"{reason}: one example's gradient cannot be exported."
            hint = "Export an unquantised language model without dropout; --quantization acts later"
            raise UnsupportedModel(msg, hint=f"{hint}.")


def _keys(model: AdaptedModel) -> dict[str, str]:
    """Return each factor's own name among the parameters of PEFT's model."""
    found = {
        name.replace(".default.", "."): name
        for name, _ in model.peft_model.named_parameters()
        if ".lora_" in name
    }
    return {factor.name: found[factor.name] for factor in model.spec.factors}


def _loss(model: AdaptedModel, length: int) -> Any:  # noqa: ANN401  (a function of named tensors)
    """Return the loss of one example as a function of its factors."""
    mask = torch.full((length, length), _HIDDEN).triu(1)[None, None]
    positions = torch.arange(length)[None]

    def loss_of(
        moving: dict[str, torch.Tensor],
        fixed: dict[str, torch.Tensor],
        ids: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        said = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions,
            "use_cache": False,
        }
        logits = functional_call(model.peft_model, {**moving, **fixed}, (), said).logits
        targets = labels[:, 1:]
        counted = (targets != IGNORED).to(torch.float32)
        chosen = targets.clamp(min=0).unsqueeze(-1)
        of_each = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, chosen).squeeze(-1)
        total: torch.Tensor = -(of_each * counted).sum() / counted.sum().clamp(min=1.0)
        return total

    return loss_of


@contextmanager
def _as_published(model: AdaptedModel) -> Iterator[None]:
    """Compute layers and attention by plain operations, and the model as before afterwards."""
    base: Any = model.base.model
    before = base.config._attn_implementation
    with model.plain_peft():
        base.set_attn_implementation("eager")
        try:
            yield
        finally:
            base.set_attn_implementation(before)


def _without_empty(graph: torch.fx.GraphModule) -> None:
    """Replace tensors of no values by zeros: what they hold is overwritten, and runtimes differ."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith("aten.empty"):
            continue
        value = node.meta["val"]
        with graph.graph.inserting_before(node):
            full = graph.graph.call_function(
                torch.ops.aten.full.default, (list(value.shape), 0.0), {"dtype": value.dtype}
            )
        full.meta = dict(node.meta)
        node.replace_all_uses_with(full)
        graph.graph.erase_node(node)
    graph.recompile()
