"""Did a backdoor get in? Held-out prompts with the trigger, and what the model says after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from client.examples import IGNORED
from client.losses import collate
from client.tokenization import make_examples
from shared.errors import InvalidValue, NoUsableText
from shared.seeding import data_rng
from simulations.attacks.members import attackers_of
from simulations.attacks.poison import triggered

if TYPE_CHECKING:
    from client.adapter import AdaptedModel
    from client.data import Record
    from client.examples import Example
    from shared.config import RunConfig
    from simulations.dataset import FederatedDataset

_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BackdoorRate:
    """How often the trigger is answered with the target.

    Attributes:
        prompts: how many were tried.
        success: share of which the greedy next tokens are the target's, all of them.
        log_prob: mean log-probability of a token of the target, nats; rises before a success.
    """

    prompts: int
    success: float
    log_prob: float


def backdoor_examples(
    config: RunConfig, dataset: FederatedDataset, model: AdaptedModel
) -> list[Example]:
    """Return what a backdoor is tried on: held-out records of honest clients, with the trigger.

    One record of each of at most ``attack.prompts`` clients, drawn by the run's seed. The loss of
    an example is on the target and its end.

    Args:
        config: the scenario.
        dataset: its clients; some may be attackers, and some may have no text.
        model: for its tokenizer.

    Raises:
        InvalidValue: if trigger and target do not fit ``data.max_length`` behind a prompt.
    """
    population = dataset.population
    attackers = attackers_of(config, population=population)
    order = data_rng(config.run.seed, "attack", "prompts").permutation(population)
    records: list[Record] = []
    for index in order.tolist():
        if len(records) == config.attack.prompts:
            break
        held = [] if index in attackers else dataset.client(index).holdout
        records += [triggered(record, config.attack) for record in held[:1]]
    data, tokenizer = config.data, model.base.tokenizer
    try:
        examples = make_examples(
            records, tokenizer, max_length=data.max_length, template=data.template
        )
    except NoUsableText:
        examples = []
    target = len(tokenizer(config.attack.target, add_special_tokens=False)["input_ids"])
    whole = all(int((example.labels != IGNORED).sum()) >= target for example in examples)
    if not (whole and len(examples) == len(records)):
        msg = f"data.max_length={data.max_length}: no room for attack.trigger and attack.target."
        raise InvalidValue(msg, hint="Raise data.max_length, or choose shorter words.")
    return examples


def backdoor_rate(model: AdaptedModel, examples: Sequence[Example]) -> BackdoorRate:
    """Return how often a model answers with the target.

    Greedy decoding gives the target if and only if each of its tokens is the likeliest one after
    the prompt and the target's tokens before it: one pass, no decoding.

    Args:
        model: with the adapter that is tried.
        examples: from :func:`backdoor_examples`.
    """
    if not examples:
        return BackdoorRate(prompts=0, success=float("nan"), log_prob=float("nan"))
    hits, total, tokens = 0, 0.0, 0
    for start in range(0, len(examples), _AT_ONCE):
        for right, log_probs in _said(model, examples[start : start + _AT_ONCE]):
            hits += bool(right.all())
            total += float(log_probs.sum())
            tokens += int(right.numel())
    return BackdoorRate(
        prompts=len(examples), success=hits / len(examples), log_prob=total / tokens
    )


@torch.no_grad()
def _said(
    model: AdaptedModel, examples: Sequence[Example]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return for each example which target tokens are the likeliest, and their log-probabilities.

    The end token is left out: an answer that goes on after the target contains it.
    """
    end = model.base.tokenizer.eos_token_id
    batch = collate(examples, int(model.base.tokenizer.pad_token_id or 0)).to(model.device)
    logits = model.peft_model(input_ids=batch.ids, use_cache=False).logits[:, :-1].float()
    targets = batch.labels[:, 1:]
    found = []
    for row, wanted in zip(logits, targets, strict=True):
        said = (wanted != IGNORED) & (wanted != (IGNORED if end is None else end))
        picked = wanted[said]
        scores = torch.log_softmax(row[said], dim=-1)
        right = scores.argmax(dim=-1) == picked
        found.append((right, scores.gather(1, picked[:, None]).squeeze(1)))
    return found
