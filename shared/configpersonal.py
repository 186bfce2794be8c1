"""The section about personal adapters: local training that never leaves a client."""

from __future__ import annotations

from pydantic import Field

from shared.configtypes import NonNegativeInt, PositiveInt, PositiveReal, Section


class PersonalSection(Section):
    """Local steps on top of the released adapter, for each client alone; nothing of it is sent."""

    steps: NonNegativeInt = Field(
        default=0, description="local steps after the last round; 0 is none (simulation)"
    )
    learning_rate: PositiveReal = Field(default=0.1, description="learning rate of these steps")
    clients: PositiveInt = Field(default=50, description="clients whose gain is measured")
