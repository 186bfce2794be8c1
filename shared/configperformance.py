"""The scenario's ``performance`` section: the only one that may change no guarantee."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shared.configtypes import NonNegativeReal, PositiveInt, PositiveReal, Section


class PerformanceSection(Section):
    """What may change speed and memory but never the guarantee; not part of the digest."""

    device: str = Field(default="cpu", description='"cpu" or "cuda"')
    threads: PositiveInt | None = Field(
        default=None, description="threads of torch; default 1 for small bases"
    )
    physical_batch: PositiveInt = Field(default=64, description="examples in memory at once")
    clipper: Literal["fused", "microbatch", "opacus"] = Field(
        default="fused", description="how per-example gradients are made"
    )
    cohort_batch: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="simulated clients computed at once; 1 is one after another (in-process)",
    )
    workers: PositiveInt | Literal["auto"] = Field(
        default="auto",
        description="processes that train beside each other; auto is one a core (in-process)",
    )
    cache_dequantized: bool = Field(
        default=True, description="keep the dequantised base beside the stored one"
    )
    client_cpus: PositiveReal = Field(default=1.0, description="cores per Ray actor (flower)")
    client_gpus: NonNegativeReal = Field(
        default=0.0, description="GPUs per Ray actor (flower); 0.25 is four actors on each"
    )
