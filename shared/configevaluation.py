"""The section about what a simulator measures."""

from __future__ import annotations

from pydantic import Field

from shared.configtypes import PositiveInt, Section


class EvaluationSection(Section):
    """What the simulator measures on held-out text; a deployment has none of it."""

    every: PositiveInt = Field(default=1, description="measure every so many rounds")
    clients: PositiveInt = Field(default=50, description="clients measured during training")
    final_clients: PositiveInt = Field(
        default=1000, description="clients measured before and after"
    )
    batch_size: PositiveInt = Field(default=32, description="sequences a forward pass")
