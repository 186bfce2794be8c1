"""The scenario's ``aggregation`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.configrobust import RobustKeys
from shared.configtypes import NonNegativeInt
from shared.policies import PolicyName, Share


class AggregationSection(RobustKeys):
    """How updates become one."""

    policy: PolicyName | None = Field(
        default=None, description="default: ffa under DP, fedavg without (docs/aggregation.md)"
    )
    share: Share = Field(
        default="AB",
        description="factors that clients send; with A each keeps its own B (fedavg)",
    )
    refactor_every: NonNegativeInt = Field(
        default=0, description="rounds after which B A gets an orthonormal A again (ffa); 0 is off"
    )
    columns: Literal["cohort", "holders"] = Field(
        default="cohort",
        description="clients that a column of B is a mean over, with devices.ranks: all, where who "
        "lacks it adds zero; or the expected number of those that hold it",
    )
