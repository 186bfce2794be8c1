"""When a run ends before its last planned round, and what may be looked at to decide it.

The decision is a pure function of the finished rounds' metrics: a run that is resumed decides what
it would have decided.

Guarantee:
    ``on = "loss"`` looks at clients' held-out losses and exists in mode ``none`` alone, where
    ``on = "vote"`` means the same. ``on = "public"`` looks at the released adapter and at public
    text, ``on = "vote"`` at a noised sum that its round was charged for: when the run stops is then
    a function of what was released. Outputs of a run that stopped after t rounds are outputs of t
    rounds whose mechanisms were fixed in advance, and a run that always goes on and hides what
    comes after the stop is post-processing of all planned rounds. So the plan's epsilon holds
    whenever it stops (:mod:`simulations.stopnote` says what else does).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from server.metricslines import read_metrics
from server.release import Release
from server.setup import RunSetup
from shared.config import RunConfig
from shared.configstopping import StoppingSection
from shared.errors import ConflictingSettings
from shared.lora import Vector

Judge = Callable[[Vector], float]
"""Returns the loss of an adapter's trained factors on public text."""

PUBLIC_LOSS = "public_loss"
VOTE = "vote"


def should_stop(
    metrics: Sequence[Mapping[str, Any]], stopping: StoppingSection, *, key: str = "loss"
) -> bool:
    """Tell whether the last ``patience`` looks found nothing better than one before them.

    Args:
        metrics: lines of the finished rounds, in order; those without a figure do not count.
        stopping: the scenario's section.
        key: which figure: a loss, or :data:`VOTE`, where above 0 is better than the best before.
    """
    if not stopping.used:
        return False
    figures = [float(r[key]) for r in metrics if isinstance(r.get(key), int | float)]
    best, stale = math.inf, 0
    for figure in figures:
        better = figure > 0 if key == VOTE else figure < best - stopping.min_improvement
        if better:
            best, stale = figure, 0
        else:
            stale += 1
    return stale >= stopping.patience


def figure_of(config: RunConfig) -> str:
    """Return the key of the metrics by which a run stops."""
    if config.stopping.on == "public":
        return PUBLIC_LOSS
    return VOTE if config.stopping.on == "vote" and config.privacy.mode != "none" else "loss"


def refuse_public_in_fleet(config: RunConfig) -> None:
    """Refuse to look at public text where the server has no base model to read it with.

    Raises:
        ConflictingSettings: for ``stopping.on = "public"``.
    """
    if config.stopping.used and config.stopping.on == "public":
        msg = "stopping.on='public': the server of a fleet holds no base model to read text with."
        hint = 'Let the devices vote (stopping.on = "vote"), or plan fewer rounds.'
        raise ConflictingSettings(msg, hint=hint)


class StoppingWatch:
    """Looks at what may be looked at, and remembers what the next vote compares with.

    Args:
        setup: what the run is.
        start: the adapter that the run begins from.
        judge: the loss on public text, where the scenario looks at it.

    Raises:
        ConflictingSettings: if the scenario looks at public text and nobody can read it.
    """

    def __init__(self, setup: RunSetup, *, start: Vector, judge: Judge | None) -> None:
        self._setup = setup
        self._stopping = setup.config.stopping
        self._key = figure_of(setup.config)
        self._judge = judge
        self._reference: Vector | None = None if setup.plan.vote is None else start
        if judge is None:
            refuse_public_in_fleet(setup.config)

    @property
    def state(self) -> Vector | None:
        """What a checkpoint must keep: the best adapter by votes so far."""
        return self._reference

    def restore(self, reference: Vector | None) -> None:
        """Take up a checkpoint."""
        if reference is not None:
            self._reference = np.array(reference, dtype=np.float32)

    def reference(self, server_round: int) -> Vector | None:
        """Return the adapter that a round's vote compares with; None in a round without one."""
        vote = self._setup.plan.vote
        return self._reference if vote is not None and vote.taken(server_round) else None

    def look(
        self, server_round: int, release: Release, *, judged: Vector, released: Vector
    ) -> dict[str, float]:
        """Return what a round's metrics line says of the adapter, and remember it.

        Args:
            server_round: the round.
            release: what it came to.
            judged: the adapter that its clients were sent and voted on.
            released: the adapter after it.
        """
        if release.vote is not None:
            if release.vote > 0:
                self._reference = judged
            return {VOTE: release.vote}
        due = self._key == PUBLIC_LOSS and server_round % self._stopping.every == 0
        if not (due and self._stopping.used) or self._judge is None or release.aggregate is None:
            return {}
        return {PUBLIC_LOSS: self._judge(released)}

    def stops(self) -> bool:
        """Tell whether the scenario wants no more rounds, by the metrics of the finished ones."""
        if not self._stopping.used:
            return False
        return should_stop(read_metrics(self._setup.folder), self._stopping, key=self._key)
