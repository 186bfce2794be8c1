"""The section about ending a run before its last planned round."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.configtypes import NonNegativeInt, NonNegativeReal, PositiveInt, PositiveReal, Section


class StoppingSection(Section):
    """Stop when the adapter no longer gets better, by what may be looked at under the guarantee."""

    on: Literal["loss", "public", "vote"] = Field(
        default="loss",
        description="look at clients' held-out losses (mode none alone), at the loss on public "
        "text, or at noised votes of clients (client-central; each is charged)",
    )
    patience: NonNegativeInt = Field(
        default=0,
        description="looks without improvement before the run stops; 0 is never",
    )
    min_improvement: NonNegativeReal = Field(
        default=0.0, description="how much lower a loss must be to count as better"
    )
    every: PositiveInt = Field(
        default=1,
        description="rounds from one look to the next (public, vote); for loss: evaluation.every",
    )
    public_text: str = Field(
        default="builtin",
        description='"builtin", or a file of public text, a document a line (public)',
    )
    public_documents: PositiveInt = Field(
        default=64, description="documents of the public text that are read (public)"
    )
    vote_noise_multiplier: PositiveReal | None = Field(
        default=None, description="noise stddev on the sum of votes, in votes (vote)"
    )

    @property
    def used(self) -> bool:
        """Tell whether a run may stop by itself."""
        return self.patience > 0
