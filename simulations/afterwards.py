"""What a simulation measures in its own process after the last round; no message is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from simulations.personal import measure_personal
from simulations.routing import CLIENTS, measure_routing

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.lora import Vector


def measure_afterwards(
    runtime: ClientRuntime,
    released: Vector,
    *,
    choose: Callable[[int, str], Sequence[int]],
    note: Callable[[str], None],
) -> dict[str, dict[str, float]]:
    """Return what personal adapters would gain, and how a mixture divides clients' texts.

    Args:
        runtime: of this process; its model's adapter is changed.
        released: the released adapter's trained factors.
        choose: returns clients, of a number and the name of a stream.
        note: is told what is being done.

    Returns:
        Figures by client, under names of their own.
    """
    found: dict[str, dict[str, float]] = {}
    personal = runtime.config.personal
    if personal.steps > 0:
        clients = choose(personal.clients, "personal")
        note(f"personal adapters of {len(clients)} clients")
        losses = measure_personal(runtime, clients, released)
        found |= {"personal-shared": losses["shared"], "personal-own": losses["own"]}
    if runtime.model.router is not None:
        clients = choose(CLIENTS, "routing")
        note(f"the router on {len(clients)} clients")
        found |= measure_routing(runtime, clients, released)
    return found
