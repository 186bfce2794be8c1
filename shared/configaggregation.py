"""The scenario's ``aggregation`` section."""

from __future__ import annotations

from pydantic import Field

from shared.configrobust import RobustKeys
from shared.policies import PolicyName


class AggregationSection(RobustKeys):
    """How updates become one."""

    policy: PolicyName | None = Field(
        default=None, description="default: ffa under DP, fedavg without (docs/aggregation.md)"
    )
