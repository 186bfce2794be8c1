"""Perplexity client by client on held-out text: how many are served well, and how badly the worst.

Whoever runs this holds the clients' text, as in a simulation. The figures depend on it and pass no
noise: they are for that person, and no release.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.localexamples import local_examples
from client.losses import collate, token_losses
from shared.config import RunConfig
from shared.errors import AdapterCorrupt, NoUsableText
from shared.seeding import data_rng
from simulations.dataset import open_dataset
from simulations.evaluating.paired import (
    difference,
    interval_of,
    score,
    sign_test,
    worst_decile,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from client.examples import Example
    from simulations.evaluating.subject import Subject

_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """What some clients hold out.

    Attributes:
        texts: tokenised, by client; at least one client.
        population: clients of the scenario.
        digest: SHA-256 of the tokens and of which are predicted.
    """

    texts: Mapping[str, Sequence[Example]]
    population: int
    digest: str


def held_out(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    base_dir: Path,
    most: int,
    seed: int,
) -> HeldOut:
    """Return what clients of a scenario hold out, without its canaries and attackers.

    Args:
        config: the scenario; its base and adapter are not looked at.
        tokenizer: of the model that is measured.
        base_dir: what relative paths of the scenario are relative to.
        most: how many clients at most, a seeded draw.
        seed: of the draw.

    Raises:
        NoUsableText: if no client holds text out.
        DataError: if the scenario's data cannot be read.
    """
    dataset = open_dataset(
        config.data, population=config.clients.population, seed=config.run.seed, base_dir=base_dir
    )
    texts, digest = {}, hashlib.sha256()
    for index in _drawn(dataset.population, most, seed):
        with suppress(NoUsableText):
            _, held = local_examples(dataset.client(index), config, tokenizer)
            if held:
                texts[f"client-{index}"] = held
                for example in held:
                    digest.update(example.ids.tobytes() + b"|" + example.labels.tobytes() + b"\n")
    if not texts:
        msg = "No client of the scenario holds text out."
        raise NoUsableText(msg, hint="Set data.holdout above 0.")
    return HeldOut(texts=texts, population=dataset.population, digest=digest.hexdigest())


def measure_clients(
    subject: Subject,
    held: HeldOut,
    *,
    seed: int,
    done: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Return the perplexity of clients' held-out text, before and after the adapter.

    Args:
        subject: what is measured.
        held: what the clients hold out.
        seed: of the bootstrap.
        done: called with how many clients were measured since the last call, for each view.

    Raises:
        AdapterCorrupt: if the model gives numbers that are not finite.
    """
    losses: dict[str, dict[str, tuple[float, int]]] = {}
    for name in subject.views:
        with subject.view(name) as model:
            losses[name] = {}
            for client, texts in held.texts.items():
                losses[name][client] = summed_loss(model, texts)
                done(1)
    found = summarise(losses, population=held.population, seed=seed)
    return {**found, "data": {"digest": held.digest}}


def summed_loss(model: torch.nn.Module, examples: Sequence[Example]) -> tuple[float, int]:
    """Return the summed loss in nats over label tokens, and their number."""
    total, count = 0.0, 0
    ordered = sorted(examples, key=lambda example: example.ids.size)
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(ordered), _AT_ONCE):
            batch = collate(ordered[start : start + _AT_ONCE], pad_id=0).to(device)
            found, labelled = token_losses(model, batch)
            total += float(found.sum(dtype=torch.float64))
            count += int(labelled.sum())
    if not math.isfinite(total):
        msg = "The model gives numbers that are not finite."
        raise AdapterCorrupt(msg, hint="The adapter has probably diverged.")
    return total, count


def summarise(
    losses: dict[str, dict[str, tuple[float, int]]], *, population: int, seed: int
) -> dict[str, Any]:
    """Return pooled, mean and worst-decile perplexity for each view, and what changed.

    Args:
        losses: by view and client, summed loss and number of tokens, the same clients in each.
        population: clients of the scenario.
        seed: of the bootstrap.
    """
    each = {
        view: {client: math.exp(total / count) for client, (total, count) in found.items()}
        for view, found in losses.items()
    }
    values = {view: list(found.values()) for view, found in each.items()}
    result: dict[str, Any] = {
        "kind": "perplexity",
        "clients": len(next(iter(values.values()))),
        "population": population,
        "tokens": sum(count for _, count in next(iter(losses.values())).values()),
        "by_client": each,
    }
    for view, found in losses.items():
        tokens = sum(count for _, count in found.values())
        result[view] = {
            "pooled": math.exp(sum(total for total, _ in found.values()) / tokens),
            "mean": score(values[view])["score"],
            "se": score(values[view])["se"],
            "worst_decile": worst_decile(values[view]),
        }
    if len(values) > 1:
        first, second = values.values()
        better = sum(after < before for before, after in zip(first, second, strict=True))
        worse = sum(after > before for before, after in zip(first, second, strict=True))
        result["difference"] = difference(first, second)
        result["worst_decile_ci95"] = interval_of(first, second, "worst_decile", seed=seed)
        result |= {"better": better, "worse": worse, "p": sign_test(better, worse)}
    return result


def _drawn(population: int, most: int, seed: int) -> list[int]:
    """Return some clients, in order."""
    if population <= most:
        return list(range(population))
    rng = data_rng(seed, "eval-clients")
    return sorted(int(i) for i in rng.choice(population, size=most, replace=False))
