"""What every section of a scenario is made of: strict numbers, and a closed, frozen model."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict

PositiveReal = Annotated[float, Strict(), Field(gt=0)]
NonNegativeReal = Annotated[float, Strict(), Field(ge=0)]
PositiveInt = Annotated[int, Strict(), Field(ge=1)]
NonNegativeInt = Annotated[int, Strict(), Field(ge=0)]
Probability = Annotated[float, Strict(), Field(gt=0, le=1)]
OpenUnit = Annotated[float, Strict(), Field(gt=0, lt=1)]


class Section(BaseModel):
    """What every section has in common: immutable, closed, finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
