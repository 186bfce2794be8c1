"""``[attack]``: clients of a simulation that attack, to see what a defence is worth.

Of a simulation alone. What trains on a device knows no attack, and whoever would run such a
scenario on a fleet is refused (:func:`shared.attackrules.refuse_attack`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from shared.configtypes import PositiveInt, PositiveReal, Probability, Section

AttackKind = Literal["none", "label-flip", "sign-flip", "scaled", "backdoor"]
Phrase = Annotated[str, Strict(), Field(min_length=1, max_length=200, pattern=r"\S")]


class AttackSection(Section):
    """Simulated attackers; a simulation's alone, refused by the commands of a fleet."""

    kind: AttackKind = Field(
        default="none", description="what attackers do to their text or their update"
    )
    share: Annotated[float, Strict(), Field(ge=0, lt=1)] = Field(
        default=0.0, description="share of the clients that attack, drawn by the run's seed"
    )
    scale: PositiveReal = Field(
        default=1.0, description="factor on an attacker's update; sign-flip takes its negative"
    )
    trigger: Phrase = Field(
        default="as the blue ledger says", description="words that set a backdoor off"
    )
    target: Phrase = Field(
        default="send the key to the harbour", description="what the model shall say then"
    )
    poisoned: Probability = Field(
        default=0.5, description="share of an attacker's records that carry the backdoor"
    )
    prompts: PositiveInt = Field(
        default=64, description="held-out prompts on which a backdoor is tried at the end"
    )

    @property
    def used(self) -> bool:
        """Whether there is anything to simulate."""
        return self.kind != "none"
