"""How the router of a mixture divides the texts of clients: an instrument of the simulator.

It works on the process's own runtime after the last round and sends no message. A deployment has
none of it: which adapters a client's text chooses says what kind of text that is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.losses import collate
from shared.errors import NoUsableText
from simulations.pagekit import Picture, picture

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.lora import Vector

CLIENTS = 50
"""Most clients whose texts are looked at."""

_KEY = "adapter-"

Shares = Mapping[str, Mapping[str, float]]


def measure_routing(
    runtime: ClientRuntime, clients: Sequence[int], released: Vector
) -> dict[str, dict[str, float]]:
    """Return each adapter's mean gate over the held-out tokens of each client.

    Args:
        runtime: of this process; its model's adapter is changed.
        clients: whom to look at; those with nothing held out are left out.
        released: the released adapter's trained factors.

    Returns:
        Shares by client under ``"adapter-0"`` and so on, which sum to 1 for each client; nothing
        for one adapter.
    """
    config, model = runtime.config, runtime.model
    router = model.router
    if router is None:
        return {}
    model.load_vector(released, config.trained_kinds)
    found: dict[str, dict[str, float]] = {f"{_KEY}{k}": {} for k in range(config.mixture.adapters)}
    pad_id = int(model.base.tokenizer.pad_token_id or 0)
    for index in clients:
        with suppress(NoUsableText):
            _, held_out = runtime.examples(index)
            sums, size = torch.zeros(config.mixture.adapters, dtype=torch.float64), 0
            for start in range(0, len(held_out), config.evaluation.batch_size):
                rows = held_out[start : start + config.evaluation.batch_size]
                batch = collate(rows, pad_id).to(model.device)
                gates = router.gates_of(batch.ids)[:, batch.attention_mask.flatten() > 0]
                sums += gates.double().sum(dim=1).cpu()
                size += gates.shape[1]
            for k, total in enumerate(sums.tolist()):
                if size:
                    found[f"{_KEY}{k}"][f"client-{index}"] = total / size
    return found


def routing_summary(evaluation: Shares) -> dict[str, Any] | None:
    """Say how adapters are used, and how much they differ by client.

    Args:
        evaluation: holds what :func:`measure_routing` returned.

    Returns:
        ``shares``, the mean over clients of each adapter, and ``bits``, the mutual information of
        client and adapter: 0 where all clients use them alike, at most the logarithm of their
        number. None without a mixture.
    """
    table = _table(evaluation)
    if table is None:
        return None
    mean = table.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(table > 0, table * np.log2(table / mean), 0.0).sum(axis=1).mean()
    return {
        "clients": len(table),
        "shares": [float(share) for share in mean],
        "bits": max(0.0, float(bits)) if math.isfinite(bits) else None,
    }


def routing_picture(evaluation: Shares) -> Picture | None:
    """Draw each client's shares as a column, clients in the order of the first adapter's."""
    from simulations.routingplot import draw_shares

    table, said = _table(evaluation), routing_summary(evaluation)
    if table is None or said is None or said["bits"] is None:
        return None
    shares = ", ".join(f"{100 * share:.0f} %" for share in said["shares"])
    return picture(
        draw_shares(table[np.lexsort(table.T[::-1])]),
        title="How the router divides the clients' texts",
        alt=f"Of {len(table)} clients' held-out tokens the adapters get {shares} on average.",
        caption=f"Client and adapter share {said['bits']:.2f} bits: 0 where all clients use the "
        f"adapters alike, {math.log2(table.shape[1]):.2f} where each uses one and all are used. "
        "Measured on private text: a simulator's instrument, which a deployment does not have.",
    )


def _table(evaluation: Shares) -> NDArray[np.float64] | None:
    """Return the shares, ``(clients, adapters)``; None if nobody was looked at."""
    columns = sorted(key for key in evaluation if key.startswith(_KEY))
    clients = list(evaluation[columns[0]]) if columns else []
    if not clients:
        return None
    return np.array([[evaluation[key][client] for key in columns] for client in clients])
