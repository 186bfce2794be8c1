"""What a run came to for the clients of each rank: bytes, and losses with the adapter they hold.

Losses are the simulator's instrument, taken in its own process after the last round; a deployment
has none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from client.cohortahead import tokens_at_once
from client.evaluation import evaluate_group
from server.rankedround import held_of

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.lora import Vector
    from shared.mixedranks import MixedRanks

Losses = Mapping[str, Mapping[str, float]]


def rank_rows(
    runtime: ClientRuntime,
    released: Vector,
    losses: Losses,
    metrics: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return a row for each rank, ascending; none where all clients have one.

    Args:
        runtime: of this process; its model's adapter is changed.
        released: the released adapter's trained factors.
        losses: held-out losses by client ``before`` and ``after``, with the whole adapter.
        metrics: lines of the finished rounds.
    """
    ranks = runtime.ranks
    if ranks is None:
        return []
    devices = runtime.config.devices.ranks_within(runtime.config.lora.r)
    rows = []
    for r, clients in ranks.counts.items():
        names = [name for name in losses["after"] if ranks.of(_number(name)) == r]
        held = held_losses(runtime, ranks, released, names, r)
        rows.append(
            {
                "rank": r,
                "devices": sorted(name for name, rank in devices.items() if rank == r),
                "clients": clients,
                "bytes_up": _largest(metrics, r, "up"),
                "bytes_down": _largest(metrics, r, "down"),
                "measured": len(held),
                "loss_before": _mean(losses["before"], list(held)),
                "loss_after": _mean(losses["after"], list(held)),
                "loss_held": _mean(held, list(held)),
            }
        )
    return rows


def held_losses(
    runtime: ClientRuntime, ranks: MixedRanks, released: Vector, names: Sequence[str], r: int
) -> dict[str, float]:
    """Return clients' held-out losses with the part of an adapter that their rank holds."""
    config, model = runtime.config, runtime.model
    kinds = config.trained_kinds
    model.load_vector(ranks.widen(held_of(config, ranks, released, r), r, kinds), kinds)
    examples = [runtime.examples(_number(name))[1] for name in names]
    tokens = tokens_at_once(config, model, examples=config.evaluation.batch_size)
    found = evaluate_group(model, examples, tokens=tokens)
    model.load_vector(released, kinds)
    return {name: one.loss for name, one in zip(names, found, strict=True) if one.tokens > 0}


def rank_text(row: Mapping[str, Any]) -> str:
    """Say what a rank came to, in one line."""
    text = f"{row['clients']} clients, {row['bytes_up']:,} up, {row['bytes_down']:,} down"
    if row["loss_held"] is not None:
        text += f", held-out loss {row['loss_before']:.3f} -> {row['loss_held']:.3f} with what "
        text += f"they hold ({row['loss_after']:.3f} with all of it)"
    return text


def _number(name: str) -> int:
    """Return the number of a client that a run folder names."""
    return int(name.removeprefix("client-"))


def _largest(metrics: Sequence[Mapping[str, Any]], r: int, way: str) -> int:
    """Return the most bytes that a client of a rank sent or was sent in a round."""
    found = (line.get("bytes_by_rank", {}).get(str(r), {}).get(way, 0) for line in metrics)
    return max((int(size) for size in found), default=0)


def _mean(losses: Mapping[str, float], names: Sequence[str]) -> float | None:
    """Return the mean over some clients; None over nobody."""
    values = [losses[name] for name in names if name in losses]
    return sum(values) / len(values) if values else None
