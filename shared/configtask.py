"""The section ``[task]``: what the model is trained to do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.configtypes import Section


class TaskSection(Section):
    """What is learned. Labels are public: a scenario lists them, and no data are asked."""

    kind: Literal["causal-lm", "classification"] = Field(
        default="causal-lm", description="the next token, or one of some labels for each text"
    )
    labels: tuple[str, ...] = Field(
        default=(), description="every label of classification, in order; public"
    )

    @property
    def classifies(self) -> bool:
        """Tell whether texts are classified."""
        return self.kind == "classification"
