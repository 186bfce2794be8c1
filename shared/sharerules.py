"""What goes with ``aggregation.share = "A"``, where every client keeps its own B, and why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from shared.problems import conflict

if TYPE_CHECKING:
    from shared.config import RunConfig
    from shared.errors import Problem

SHARE_WARNING: Final = (
    "the released adapter holds the shared A and a B of zeros: by itself it computes what the base "
    "computes, for a new client too, until that has trained a B of its own. Losses are those of "
    "each client with its own B; audits of what the released adapter says read the base."
)


def share_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield what contradicts clients that keep their B."""
    key = "aggregation.share"
    if config.policy != "fedavg":
        yield conflict(
            key=key,
            message=f'"A" cannot be used together with aggregation.policy "{config.policy}": '
            "clients train both factors in every round and send A as it is.",
            hint='Set aggregation.policy to "fedavg".',
        )
        return
    if config.task.classifies:
        yield conflict(
            key=key,
            message='"A" cannot be used together with classification: the head would stay on '
            "each device, beside B, and nobody else could classify.",
        )
    attacked = config.audit.profile == "extended" or config.audit.canaries > 0
    if attacked or config.attack.used:
        yield conflict(
            key=key,
            message='"A" cannot be used together with audit.canaries, audit.profile "extended" or '
            "attack: they read what the released adapter learned, and with a B of zeros it says "
            "what the base says. They would find nothing, whatever was learned.",
            hint='Set audit.canaries to 0 and audit.profile to "smoke"; audit.client_canaries '
            "reads epsilon off the released A itself.",
        )
    if config.personal.steps > 0:
        yield conflict(
            key=key,
            message='"A" cannot be used together with personal.steps: every client has an adapter '
            "of its own already, and client_losses are of those.",
        )
