"""The section ``[mixture]``: several adapters on one base, and what chooses among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from shared.configtypes import Section
from shared.mixture import LARGEST_SHARPNESS, MOST_ADAPTERS


class MixtureSection(Section):
    """Adapters of rank ``lora.r`` each, weighed for every place of a text by a small router."""

    adapters: Annotated[int, Strict(), Field(ge=1, le=MOST_ADAPTERS)] = Field(
        default=1, description="number of adapters; 1 is no mixture"
    )
    router: Literal["trained", "frozen"] = Field(
        default="trained",
        description='"trained" with the adapters, or "frozen" as the public seed draws it',
    )
    sharpness: Annotated[float, Strict(), Field(gt=0, le=LARGEST_SHARPNESS)] = Field(
        default=1.0, description="factor of the router's logits; larger chooses more decidedly"
    )
