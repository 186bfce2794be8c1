"""From hidden states to readings: what a model makes of every token, in bounded memory.

A vocabulary of 256 000 tokens makes one megabyte of logits per position, so the output embedding
is applied to a few positions at a time, and only to those that are scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from client.examples import IGNORED
from client.losses import Batch
from server.audit.target import TOP_K, Reading
from shared.errors import UnsupportedModel

_LOGITS = 1 << 24
"""Most logits held at once: 64 MiB in float32."""
_CACHED = 1 << 18
"""Most logits that the statistics look at together; as many as stay in a processor's cache."""
_NEVER = -1e4
"""Floor of a centred logit: ``exp`` of it is 0, and 0 times it is not NaN."""


@torch.no_grad()
def read_batch(model: Any, batch: Batch) -> list[Reading]:  # noqa: ANN401  (PEFT has no types)
    """Read one batch.

    Args:
        model: a PEFT model around a causal language model; its adapter as it is switched.
        batch: padded on the right; position t is scored if label t + 1 is there. No attention mask
            is passed, because a causal model never looks at padding that follows the text.

    Returns:
        One reading per row, in order; a value that is not finite comes from the model.
    """
    scored = batch.labels[:, 1:] != IGNORED
    hidden = _hidden_states(model, batch.ids)[:, :-1][scored]
    wanted = batch.labels[:, 1:][scored]
    pieces = [_statistics(logits, tokens) for logits, tokens in _logits(model, hidden, wanted)]
    columns = torch.cat(pieces).cpu() if pieces else torch.zeros((0, 5), dtype=torch.float64)
    counts = scored.sum(dim=1).tolist()
    return [_reading(rows) for rows in torch.split(columns, counts)]


def _reading(columns: torch.Tensor) -> Reading:
    """Return five columns, one row per token, as a reading."""
    array = columns.numpy()
    log_probability, expected, spread, rank, log_mass = (array[:, k].copy() for k in range(5))
    return Reading(
        log_probability=log_probability,
        expected=expected,
        spread=spread,
        rank=rank.astype("int64"),
        log_mass=log_mass,
    )


def _hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
    """Return what goes into the output embedding, ``(B, T, d)``, without computing the logits."""
    caught: list[torch.Tensor] = []

    def catch(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        caught.append(inputs[0])
        return (inputs[0][:, :1], *inputs[1:])

    with _hook(output_embedding(model), catch):
        model(input_ids=ids, use_cache=False)
    if len(caught) != 1:
        msg = f"The model called its output embedding {len(caught)} times, expected once."
        raise UnsupportedModel(msg)
    return caught[0]


@contextmanager
def _hook(module: torch.nn.Module, function: Any) -> Iterator[None]:  # noqa: ANN401
    """Look at, and change, a module's inputs inside the ``with`` block."""
    handle = module.register_forward_pre_hook(function)
    try:
        yield
    finally:
        handle.remove()


def output_embedding(model: Any) -> torch.nn.Module:  # noqa: ANN401
    """Return the module that turns hidden states into logits.

    Raises:
        UnsupportedModel: if the model has none.
    """
    head = model.get_base_model().get_output_embeddings()
    if not isinstance(head, torch.nn.Module):
        msg = "The model has no output embedding, expected a language model's."
        raise UnsupportedModel(msg)
    return head


def _logits(
    model: Any,  # noqa: ANN401
    hidden: torch.Tensor,
    wanted: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits, float32 and few positions at a time, with the tokens that stand there."""
    head = output_embedding(model)
    config = model.get_base_model().config
    cap = getattr(config, "final_logit_softcapping", None)
    width = int(config.vocab_size)
    rows, inner = max(1, _LOGITS // width), max(1, _CACHED // width)
    for states, tokens in zip(torch.split(hidden, rows), torch.split(wanted, rows), strict=True):
        if not len(tokens):
            return
        logits = head(states).float()
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        yield from zip(torch.split(logits, inner), torch.split(tokens, inner), strict=True)


def _statistics(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the five columns of a reading, float64, shape ``(n, 5)``.

    Every sum is of terms of one sign, so nothing cancels: the variance is taken around the mean
    (not as a difference of moments), and the mean of logits that have their maximum at 0.
    """
    at = tokens[:, None]
    own = logits.gather(1, at)
    rank = (logits > own).sum(dim=1)
    centred = logits - logits.amax(dim=1, keepdim=True)
    own = centred.gather(1, at)[:, 0].double()
    centred.clamp_(min=_NEVER)
    weight = centred.exp()
    total = weight.sum(dim=1, dtype=torch.float64)
    mean = torch.linalg.vecdot(weight, centred).double() / total
    top = weight.topk(min(TOP_K, weight.shape[1]), dim=1, sorted=False).values
    mass = torch.clamp(top.sum(dim=1, dtype=torch.float64) / total, max=1.0).log()
    centred.sub_(mean[:, None].float()).square_()
    spread = (torch.linalg.vecdot(weight, centred).double() / total).sqrt()
    normaliser = total.log()
    return torch.stack([own - normaliser, mean - normaliser, spread, rank.double(), mass], dim=1)
