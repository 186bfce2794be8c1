"""The parts of pre-training: recipe, tokenizer, untrained model, batches, one step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from shared.seeding import derive_seed
from simulations.public_text import public_documents

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 0, 1, 2
DEFAULT_STEPS, DEFAULT_SEED = 4000, 1
LOGGED_FIRST_STEPS = 20
LOGGED_EVERY = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, apart from library versions and the CPU.

    Args:
        steps: optimizer steps.
        seed: names the text stream and the initial weights.
        sequences: packed sequences in a batch.
        context: tokens in a sequence, and the model's longest input.
        learning_rate: peak of the cosine schedule, reached after ``warmup`` steps.
        warmup: steps of linear warm-up.
        weight_decay: decoupled decay of matrices; norms have none.
        vocabulary: entries of the tokenizer, special tokens included.
        tokenizer_documents: documents the tokenizer is trained on.
        hidden: width of the model.
        layers: decoder layers.
        heads: attention heads.
        key_value_heads: key and value heads (grouped-query attention).
        intermediate: width of the gated feed-forward layer.
    """

    steps: int = DEFAULT_STEPS
    seed: int = DEFAULT_SEED
    sequences: int = 8
    context: int = 256
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    vocabulary: int = 1280
    tokenizer_documents: int = 20_000
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 344


@dataclass(slots=True, kw_only=True)
class Training:
    """The mutable state of a training: model, optimizer, finished steps, and logged losses."""

    recipe: Recipe
    tokenizer: Tokenizer
    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    step: int
    losses: dict[int, float]


def train_tokenizer(recipe: Recipe) -> Tokenizer:
    """Train the byte-level BPE tokenizer on public text only.

    Digits are tokens of their own, so that numbers have one spelling; any text survives a round
    trip because the alphabet is all 256 bytes. Encoding puts ``<s>`` in front of a text.

    Args:
        recipe: gives vocabulary size, number of documents and seed.

    Returns:
        The tokenizer; ``<s>``, ``</s>`` and ``<pad>`` are ids 0, 1 and 2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = islice(_documents(recipe, "tokenizer", 0), recipe.tokenizer_documents)
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def start(recipe: Recipe, tokenizer: Tokenizer) -> Training:
    """Build the untrained model and its optimizer.

    The initial weights come from a generator of our own, in the order of the sorted parameter
    names, so that they depend on the seed alone and the global generator stays untouched.

    Args:
        recipe: shapes, seed and optimizer settings.
        tokenizer: kept for the batches; at most ``recipe.vocabulary`` entries.

    Returns:
        The state before the first step.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(recipe.seed)
    matrices, norms = [], []
    for name, parameter in sorted(model.named_parameters()):
        if parameter.dim() == 1:
            torch.nn.init.ones_(parameter)
            norms.append(parameter)
            continue
        # Outputs into the residual stream are scaled by its depth (GPT-2, section 2.3).
        deep = name.endswith(("o_proj.weight", "down_proj.weight"))
        spread = 0.02 / math.sqrt(2 * recipe.layers) if deep else 0.02
        torch.nn.init.normal_(parameter, std=spread, generator=generator)
        matrices.append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.95),
    )
    return Training(
        recipe=recipe, tokenizer=tokenizer, model=model, optimizer=optimizer, step=0, losses={}
    )


def advance(training: Training) -> float:
    """Take one optimizer step.

    Args:
        training: changed in place; its ``step`` grows by one.

    Returns:
        The loss of the batch before the step, mean per token in nats.
    """
    import torch

    step = training.step + 1
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.recipe, step)
    batch = public_batch(training.recipe, training.tokenizer, "train", step)
    training.model.train()
    loss = training.model(input_ids=batch, labels=batch).loss
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    training.optimizer.step()
    training.step = step
    value = float(loss.detach())
    if step <= LOGGED_FIRST_STEPS or step % LOGGED_EVERY == 0 or step == training.recipe.steps:
        training.losses[step] = round(value, 6)
    return value


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate of a step (from 1): linear warm-up, then a cosine down to a tenth."""
    if step <= recipe.warmup:
        return recipe.learning_rate * step / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def public_batch(recipe: Recipe, tokenizer: Tokenizer, use: str, index: int) -> torch.Tensor:
    """Pack public documents into a batch of full sequences.

    Documents stand one after the other as ``<s> text </s>``; the last one is cut. Packing is
    right here, where no text has an owner, and only here.

    Args:
        recipe: gives the seed and the shape.
        tokenizer: the demo tokenizer.
        use: names a stream that no other use shares, such as "train" or "holdout".
        index: position in that stream; a batch is a function of (seed, use, index).

    Returns:
        int64 ids, shape ``(sequences, context)``.
    """
    import torch

    needed = recipe.sequences * recipe.context
    ids: list[int] = []
    documents = _documents(recipe, use, index)
    while len(ids) < needed:
        encoded = tokenizer.encode(next(documents), add_special_tokens=False)
        ids += [BOS_ID, *encoded.ids, EOS_ID]
    return torch.tensor(ids[:needed]).view(recipe.sequences, recipe.context)


def holdout_loss(training: Training, batches: int = 8) -> float:
    """Return the loss on public text from a stream of its own, mean per token in nats."""
    import torch

    training.model.train(False)
    total = 0.0
    with torch.no_grad():
        for index in range(batches):
            batch = public_batch(training.recipe, training.tokenizer, "holdout", index)
            total += float(training.model(input_ids=batch, labels=batch).loss)
    return total / batches


def _documents(recipe: Recipe, use: str, index: int) -> Iterator[str]:
    """Return the public documents of one use, in a stream that no other use shares."""
    return public_documents(derive_seed(recipe.seed, use, index))
