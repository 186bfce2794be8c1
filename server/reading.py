"""Answers to one round's instruction: what is sent to each client, and what may be read back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from server.aggregation import LONGEST_UPDATE, STAGE_OF_MODE, Aggregator
from server.rankedround import RankedRound
from shared.errors import ProtocolError
from shared.link import Link
from shared.privacy.plan import PrivacyPlan
from shared.wire import Instruction, Records, decode_update, encode_instruction

logger = logging.getLogger("fedslm.server")

# A clip in 32 bits may be off by a few parts in ten million.
_ROUNDING = 1.0 + 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UpdateReader:
    """Reads updates that answer one instruction, and no others.

    Attributes:
        instruction: what the clients were told.
        plan: says what stage an update must have.
        size: parameters of an update.
        link: the code of updates that the scenario says; None for float32.
        ranked: the round by rank, where ranks differ.
        on_refused: is told of an update that breaks the protocol, by client and error code.
        on_vote: takes the vote beside each update; None where nobody votes.
    """

    instruction: Instruction
    plan: PrivacyPlan
    size: int
    link: Link | None
    ranked: RankedRound | None
    on_refused: Callable[[int, str], None]
    on_vote: Callable[[int], None] | None = None

    def contents(self, nodes: Mapping[int, int]) -> dict[int, Records]:
        """Return the message of each node: one for all, or one for each rank.

        Args:
            nodes: client by node.
        """
        if self.ranked is None:
            return dict.fromkeys(nodes, encode_instruction(self.instruction))
        return self.ranked.contents(nodes)

    def take(
        self,
        client: int,
        reply: Records,
        aggregator: Aggregator,
        on_next: Callable[[int], None],
    ) -> bool:
        """Hand a client's update to an aggregator; tell whether there was one.

        Args:
            client: whose answer it is.
            reply: what came.
            aggregator: is handed the update, widened where ranks differ.
            on_next: is told before whose update it is.
        """
        told, ranked = self.instruction, self.ranked
        try:
            update = decode_update(
                reply,
                server_round=told.server_round,
                config_digest=told.config_digest,
                stage=STAGE_OF_MODE[self.plan.mode],
                size=self.size if ranked is None else ranked.size(client),
                link=self.link,
                votes=self.on_vote is not None,
            )
        except ProtocolError as error:
            logger.warning("round %d, client %d: %s", told.server_round, client, error.message)
            self.on_refused(client, error.code)
            return False
        on_next(client)
        if self.on_vote is not None:
            self.on_vote(update.vote or 0)
        vector = update.vector
        norm = aggregator.add(vector if ranked is None else ranked.widen(client, vector))
        stretch = 1.0 if self.link is None else self.link.code.stretch
        oddity = _oddity(norm / stretch, told.clipping_norm or self.plan.clipping_norm, self.plan)
        if oddity is not None:
            # Counted like any other, as zero or clipped; that it came is worth knowing.
            self.on_refused(client, oddity)
        return True


def _oddity(norm: float, clip: float | None, plan: PrivacyPlan) -> str | None:
    """Return the code of a norm that no honest client's update has; None if there is nothing odd.

    A norm is not finite where a coordinate is not, and only there.
    """
    if not math.isfinite(norm):
        return "update-not-finite"
    clipped = plan.mode == "client-central" and clip is not None
    most = clip * _ROUNDING if clipped and clip is not None else LONGEST_UPDATE
    return "update-too-long" if norm > most else None
