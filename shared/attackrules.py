"""Where simulated attackers make sense, and where they are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from shared.errors import ConflictingSettings
from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.errors import Problem


def attack_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about simulated attackers that a scenario breaks."""
    attack = config.attack
    if not attack.used and attack.share > 0:
        yield conflict(
            key="attack.kind",
            message=f"is not set, and {attack.share:g} of the clients shall attack.",
            hint='Choose "label-flip", "sign-flip", "scaled" or "backdoor".',
        )
    if attack.kind == "scaled" and attack.scale == 1.0:
        yield conflict(
            key="attack.scale",
            message='is 1, and attack.kind is "scaled": that is an honest update.',
            hint="Give a factor, such as 10.0.",
        )


def refuse_attack(config: RunConfig) -> None:
    """Refuse a scenario with simulated attackers where real people would take part.

    Raises:
        ConflictingSettings: naming the section.
    """
    if config.attack.used:
        msg = f"attack.kind={config.attack.kind!r}: attackers are simulated, and this is a fleet."
        hint = "Take the section out, or use: fedslm simulate"
        raise ConflictingSettings(msg, hint=hint)
