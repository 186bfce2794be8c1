"""The section about DP-SGD inside each client, beside a client mode."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.configtypes import OpenUnit, PositiveReal, Probability, Section


class ExampleSection(Section):
    """DP-SGD inside each client, beside a client mode; both guarantees hold and are reported."""

    neighboring_relation: Literal["add-or-remove-one", "replace-one"] | None = Field(
        default=None, description="which neighbouring data sets of one client are compared"
    )
    epsilon: PositiveReal | None = Field(default=None, description="target; noise is derived")
    noise_multiplier: PositiveReal | None = Field(
        default=None, description="noise stddev over the clip; epsilon is derived"
    )
    delta: OpenUnit | None = Field(default=None, description="failure probability")
    max_grad_norm: PositiveReal | None = Field(
        default=None, description="L2 bound of one example's gradient"
    )
    sampling_probability: Probability | None = Field(
        default=None, description="chance of an example to be in a local step"
    )
    cap: PositiveReal | None = Field(
        default=None, description="epsilon that the ledger never lets pass; default the plan's"
    )
    noise_schedule: Literal["constant", "linear"] = Field(
        default="constant", description="noise multiplier over the rounds, in up to eight stairs"
    )
    noise_final: PositiveReal | None = Field(
        default=None, description="noise of the last rounds over that of the first (linear)"
    )

    @property
    def used(self) -> bool:
        """Tell whether any of it is said."""
        return any(value not in {None, "constant"} for value in self.model_dump().values())
