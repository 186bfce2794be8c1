"""What personal adapters would gain, client by client: an instrument of the simulator.

It works on the process's own runtime after the last round and sends no message: neither the
adapters nor the losses pass a grid. On a device :mod:`client.personalise` takes the same steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from client.evaluation import evaluate
from client.personal import personal_settings, personal_vector
from server.rankedround import held_of
from shared.errors import NoUsableText
from shared.seeding import data_rng

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.lora import Vector

_WORST = 10


def measure_personal(
    runtime: ClientRuntime, clients: Sequence[int], released: Vector
) -> dict[str, dict[str, float]]:
    """Return held-out losses with the shared adapter and with each client's own.

    Clients without training text, or with nothing held out, are left out. Where ranks differ, a
    client begins with what its rank holds of the adapter, and its own is as narrow.

    Args:
        runtime: of this process; its model's adapter is changed.
        clients: whom to measure.
        released: the released adapter's trained factors.

    Returns:
        Losses by client under ``"shared"`` and ``"own"``.
    """
    config, model, ranks = runtime.config, runtime.model, runtime.ranks
    settings, size = personal_settings(config), config.evaluation.batch_size
    model.set_trainable(config.trained_kinds)
    found: dict[str, dict[str, float]] = {"shared": {}, "own": {}}
    for index in clients:
        spec, start = model.spec, released
        if ranks is not None:
            r = ranks.of(index)
            spec, start = ranks.spec_at(r), held_of(config, ranks, released, r)
        with suppress(NoUsableText), model.narrowed(spec):
            train, held_out = runtime.examples(index)
            model.load_vector(start, config.trained_kinds)
            before = evaluate(model, held_out, batch_size=size).loss
            rng = data_rng(config.run.seed, "personal", index)
            personal_vector(model, start, train, settings, rng=rng)
            after = evaluate(model, held_out, batch_size=size).loss
            if math.isfinite(before) and math.isfinite(after):
                found["shared"][f"client-{index}"] = before
                found["own"][f"client-{index}"] = after
    model.load_vector(released, config.trained_kinds)
    return found


def spread(losses: Mapping[str, float]) -> dict[str, float | None]:
    """Return mean, median and mean of the worst tenth (rounded up) of clients' losses."""
    values = sorted(losses.values(), reverse=True)
    if not values:
        return {"mean": None, "median": None, "worst_decile": None}
    worst = values[: math.ceil(len(values) / _WORST)]
    return {
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "worst_decile": statistics.fmean(worst),
    }


def gain(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Return what personal adapters changed; None if nobody was measured."""
    shared, own = found.get("shared") or {}, found.get("own") or {}
    if not shared:
        return None
    return {
        "clients": len(shared),
        "shared": spread(shared),
        "own": spread(own),
        "better": sum(own[name] < shared[name] for name in shared),
    }
