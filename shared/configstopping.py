"""The section about ending a run before its last planned round."""

from __future__ import annotations

from pydantic import Field

from shared.configtypes import NonNegativeInt, NonNegativeReal, Section


class StoppingSection(Section):
    """Stop when held-out loss no longer falls; mode none alone: nothing pays for looking."""

    patience: NonNegativeInt = Field(
        default=0,
        description="measured rounds without improvement before the run stops; 0 is never",
    )
    min_improvement: NonNegativeReal = Field(
        default=0.0, description="how much lower a loss must be to count as better"
    )
