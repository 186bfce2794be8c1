"""The scenario's ``aggregation`` section."""

from __future__ import annotations

from pydantic import Field

from shared.configtypes import Section
from shared.policies import PolicyName


class AggregationSection(Section):
    """How updates become one."""

    policy: PolicyName | None = Field(
        default=None, description="default: ffa under DP, fedavg without (docs/aggregation.md)"
    )
