"""Sections of a scenario about stragglers: the simulated clock, and the buffer of late answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from shared.configtypes import NonNegativeReal, PositiveInt, PositiveReal, Probability, Section

Share = Annotated[float, Strict(), Field(ge=0, lt=1)]


class ClockSection(Section):
    """Simulated time: how fast devices compute and send, and when they are there (simulations)."""

    shares: tuple[PositiveReal, ...] = Field(
        default=(), description="share of the clients in each class of devices; sums to 1"
    )
    step_seconds: tuple[PositiveReal, ...] = Field(
        default=(), description="seconds of a local step, for each class"
    )
    upload: tuple[PositiveReal, ...] = Field(
        default=(), description="bytes a second to the server, for each class"
    )
    download: tuple[PositiveReal, ...] = Field(
        default=(), description="bytes a second from the server, for each class"
    )
    jitter: NonNegativeReal = Field(
        default=0.0, description="stddev of the logarithm of a participation's slowness"
    )
    dropout: Share = Field(
        default=0.0, description="chance that a client that was asked never answers"
    )
    period_seconds: PositiveReal = Field(
        default=86400.0, description="after how long devices come and go again"
    )
    available_share: Probability = Field(
        default=1.0, description="share of the period in which a device is there, and works"
    )
    deadline_seconds: PositiveReal | None = Field(
        default=None, description="simulated seconds after which an answer is too late"
    )

    @property
    def used(self) -> bool:
        """Tell whether time is simulated."""
        return bool(self.shares)


class BufferSection(Section):
    """Asynchronous rounds: a step of the server for every so many answers, however old."""

    size: PositiveInt | None = Field(
        default=None, description="answers that make a step of the server; default: synchronous"
    )
    concurrency: PositiveInt | None = Field(
        default=None, description="clients that work at the same time"
    )
    staleness: Literal["constant", "polynomial"] = Field(
        default="polynomial", description="weight by age: 1, or (1 + steps since) ** -exponent"
    )
    exponent: PositiveReal = Field(default=0.5, description="of the polynomial weight")

    @property
    def used(self) -> bool:
        """Tell whether rounds are asynchronous."""
        return self.size is not None
