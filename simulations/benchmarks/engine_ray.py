"""The same ClientApp on Flower's own simulation engine (Ray), in a process of its own.

``python -m simulations.benchmarks.engine_ray WORK`` prints JSON. The ServerApp here does nothing
but Flower's own ``send_and_receive``: no ledger, no clip, no checkpoint, no mean. What is timed is
Flower's way to its clients and back, and their work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shared.canonical import canonical_json
from shared.errors import ClientFailed
from shared.wire import Instruction, Records, decode_update, encode_instruction
from simulations.benchmarks.engine_runs import Found, Work, memory

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.lora import Vector
    from shared.privacy.plan import PrivacyPlan

_PATIENCE = 600.0


class FlowerGrid(Protocol):
    """What of Flower's grid is used; this module does not import Flower."""

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected."""

    def create_message(
        self, content: Records, message_type: str, dst_node_id: int, group_id: str
    ) -> Any:  # noqa: ANN401
        """Make a message."""

    def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None) -> Iterable[Any]:
        """Send messages and wait for all replies."""


@dataclass(slots=True, kw_only=True)
class RayServer:
    """Sends every node a round of training and waits for all of them, some times over.

    Attributes:
        config: the scenario.
        plan: its plan.
        vector: the adapter that is sent.
        rounds: how many.
        began: when Flower's engine was started, by ``time.perf_counter``.
        seconds: of each round.
        ended: seconds from ``began`` to the end of each round.
        answered: updates that could be read, of each round.
        connected: seconds from ``began`` until all nodes were there.
    """

    config: RunConfig
    plan: PrivacyPlan
    vector: Vector
    rounds: int
    began: float
    seconds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    connected: float = 0.0

    def main(self, grid: FlowerGrid, context: object) -> None:
        """Do what the ServerApp does."""
        del context
        while len(nodes := list(grid.get_node_ids())) < (self.config.clients.population or 1):
            if time.perf_counter() - self.began > _PATIENCE:
                return
            time.sleep(0.05)
        self.connected = time.perf_counter() - self.began
        for server_round in range(1, self.rounds + 1):
            self._round(grid, nodes, server_round)

    def _round(self, grid: FlowerGrid, nodes: Sequence[int], server_round: int) -> None:
        """Run one round."""
        started = time.perf_counter()
        content = encode_instruction(
            Instruction(
                run_id="engine",
                server_round=server_round,
                config_digest=self.config.digest(),
                plan_digest=self.plan.digest(),
                vector=self.vector,
            )
        )
        messages = [
            grid.create_message(content, "train", node, str(server_round)) for node in nodes
        ]
        answered = 0
        for reply in grid.send_and_receive(messages, timeout=_PATIENCE):
            decode_update(
                reply.content,
                server_round=server_round,
                config_digest=self.config.digest(),
                stage="clipped",
                size=self.vector.size,
            )
            answered += 1
        now = time.perf_counter()
        self.seconds.append(now - started)
        self.ended.append(now - self.began)
        self.answered.append(answered)


def measure(work: Work) -> Found:
    """Run the work on Flower's engine, with as many actors as there are cores.

    Raises:
        ClientFailed: if not every client answered every round.
        MissingDependency: if Ray is not installed.
    """
    from server.app import make_server_app
    from shared.lora import initial_factors
    from shared.scenarioplan import plan_of
    from simulations.assemble import load_model
    from simulations.flower_engine import actor_client_app, run_on_flower

    config = work.resolved(engine="flower").config
    plan = plan_of(config, population=work.population)
    spec = load_model(config, base_dir=Path.cwd()).spec
    vector = spec.flatten(initial_factors(spec, config.adapter_seed), config.trained_kinds)
    client = actor_client_app(config.to_json(), canonical_json(plan.to_json()), str(Path.cwd()))
    server = RayServer(
        config=config, plan=plan, vector=vector, rounds=work.rounds, began=time.perf_counter()
    )
    run_on_flower(make_server_app(server.main), client, population=work.population, client_cpus=1.0)
    if server.answered != [work.population] * work.rounds:
        msg = f"{server.answered} clients answered, expected {work.population} in each round."
        raise ClientFailed(msg)
    return {
        "connected": server.connected,
        "rounds": server.seconds,
        "ended": server.ended,
        "answered": server.answered,
        "memory": memory(),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure the work that the only argument says, and print JSON."""
    sys.stdout.write(json.dumps(measure(Work(**json.loads(arguments[0])))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
