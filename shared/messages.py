"""What server and client say to each other, as values: one dataclass for each kind of message.

:mod:`shared.wire` writes and reads them; nothing here knows Flower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from shared.link import Coded
from shared.lora import Vector
from shared.privacy.ledger_signing import SignedHead
from shared.residual import Residual

Phase = Literal["advertise", "share", "mask", "confirm", "reveal"]
PHASES: Final[tuple[Phase, ...]] = ("advertise", "share", "mask", "confirm", "reveal")
Stage = Literal["plain", "clipped", "noised"]
STAGES: Final[frozenset[str]] = frozenset({"plain", "clipped", "noised"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What the server sends for a round of training or measuring.

    Attributes:
        run_id: which run.
        server_round: 1-based round.
        config_digest: digest of the scenario; the client refuses another one.
        plan_digest: digest of the privacy plan; the client refuses another one.
        vector: the trained factors of the global adapter, flat float32, as the client reads them.
        clipping_norm: the clip of this round, where the clip moves (quantile clipping).
        empty: whether the client is asked to take part with an empty update, to fill a cohort up.
        anchor: the signed end of the server's ledger, which a device remembers.
        coded: the vector as it travels where the scenario codes it; None once it was read.
        reference: the adapter that a vote compares the vector with, in a round with a vote.
        residual: what lies beneath the adapter, under ``fedex``; None is nothing.
    """

    run_id: str
    server_round: int
    config_digest: str
    plan_digest: str
    vector: Vector
    clipping_norm: float | None = None
    empty: bool = False
    anchor: SignedHead | None = None
    coded: Coded | None = None
    reference: Vector | None = None
    residual: Residual | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCall:
    """What the server sends to open or go on with a phase of a secure aggregation.

    Attributes:
        phase: one of :data:`PHASES`.
        payload: the protocol's own bytes.
        run_id: which run.
        server_round: 1-based round.
        config_digest: digest of the scenario.
        plan_digest: digest of the privacy plan.
    """

    phase: Phase
    payload: bytes = field(repr=False)
    run_id: str
    server_round: int
    config_digest: str
    plan_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseReply:
    """A client's answer in a phase: the protocol's own bytes and nothing else."""

    phase: Phase
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientUpdate:
    """What a client sends after training: one vector and what was done to it.

    Attributes:
        server_round: the round it answers.
        config_digest: echoed from the instruction.
        stage: ``"plain"`` (mode none), ``"clipped"`` (client-central) or ``"noised"`` (example).
        vector: the adapter delta, flat float32; sensitive unless ``"noised"``. At the server, what
            was read of it; at the client, what it was before it was coded.
        coded: the delta as it travels where the scenario codes it; as sensitive as the vector.
        vote: -1, 0 or 1 in a round with a vote (client-central), as sensitive as a clipped update.
    """

    server_round: int
    config_digest: str
    stage: Stage
    vector: Vector
    coded: Coded | None = None
    vote: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A held-out loss that a simulated client reports; no event pays for it.

    Attributes:
        loss: mean nats per token; NaN where the client holds nothing out.
        tokens: how many tokens it is a mean of; texts, where they are classified.
        classes: hits, predictions and examples by class, one after the other; or none.
    """

    loss: float
    tokens: int
    classes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Introduction:
    """Which client of the population a node speaks for."""

    client: int
