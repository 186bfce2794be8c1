"""What the clients of one round are told and send where their ranks differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from server.truncation import truncated
from shared.link import Downlink
from shared.lora import Vector
from shared.mixedranks import MixedRanks
from shared.wire import Instruction, Records, encode_instruction, payload_bytes

if TYPE_CHECKING:
    from shared.config import RunConfig


class RankedRound:
    """The instruction of a round as each rank gets it, made once for each rank.

    A linear policy sends the first columns of the factors that move (nested adapters), ``flexlora``
    the best adapter of the rank. Updates come back as wide as they were trained and are widened
    with zeros, which changes neither their norm nor the mean of products.

    Args:
        config: the scenario.
        ranks: of the clients.
        links: the code of the adapter, by rank.
        instruction: of the round, with the whole adapter and no code.
    """

    def __init__(
        self,
        config: RunConfig,
        ranks: MixedRanks,
        links: Mapping[int, Downlink],
        instruction: Instruction,
    ) -> None:
        self._ranks = ranks
        self._links = links
        self._whole = instruction
        self._kinds = config.trained_kinds
        self._sent = config.sent_kinds(instruction.server_round)
        self._config = config
        self._told: dict[int, Instruction] = {}
        self._contents: dict[int, Records] = {}

    def rank(self, client: int) -> int:
        """Return a client's rank."""
        return self._ranks.of(client)

    def instruction(self, client: int) -> Instruction:
        """Return what a client is told."""
        return self._instruction(self.rank(client))

    def contents(self, nodes: Mapping[int, int]) -> dict[int, Records]:
        """Return the message of each node, clients of one rank one after another.

        Args:
            nodes: client by node.
        """
        by_rank = sorted(nodes, key=lambda node: self.rank(nodes[node]))
        return {node: self._content(self.rank(nodes[node])) for node in by_rank}

    def bytes_with(self, client: int, up: int) -> dict[int, tuple[int, int]]:
        """Return by a client's rank what came up from it and what went down to it, in bytes."""
        r = self.rank(client)
        return {r: (up, payload_bytes(self._content(r)))}

    def size(self, client: int) -> int:
        """Return the number of parameters that a client sends."""
        return self._ranks.size(self.rank(client), self._sent)

    def widen(self, client: int, vector: Vector) -> Vector:
        """Return a client's update among zeros, as long as that of the largest rank."""
        return self._ranks.widen(vector, self.rank(client), self._sent)

    def start(self, client: int) -> Vector:
        """Return what a client trains from, as it read it, among zeros."""
        r = self.rank(client)
        return self._ranks.widen(self._instruction(r).vector, r, self._kinds)

    def _instruction(self, r: int) -> Instruction:
        """Return what clients of a rank are told."""
        if r not in self._told:
            cut = held_of(self._config, self._ranks, self._whole.vector, r)
            vector, coded = self._links[r].seen(cut)
            best = self._whole.reference
            if best is not None:
                best = self._ranks.narrow(best, r, self._kinds)
            self._told[r] = replace(self._whole, vector=vector, coded=coded, reference=best)
        return self._told[r]

    def _content(self, r: int) -> Records:
        """Return the message to clients of a rank."""
        if r not in self._contents:
            self._contents[r] = encode_instruction(self._instruction(r))
        return self._contents[r]


def held_of(config: RunConfig, ranks: MixedRanks, vector: Vector, r: int) -> Vector:
    """Return what a client of a rank holds of an adapter, by the scenario's policy.

    Args:
        config: the scenario.
        ranks: of the clients.
        vector: the factors that move, of the largest rank.
        r: rank.
    """
    if config.policy_facts.linear or r == ranks.spec.r:
        return ranks.narrow(vector, r, config.trained_kinds)
    return truncated(ranks.spec, ranks.spec_at(r), vector)
