"""Factors that a client trains and keeps: its own B beside the A that all share (FedSA).

Under ``aggregation.share = "A"`` a client trains both factors from the shared A and the B that it
had, and sends A alone (Guo et al., ICLR 2025, "Selective Aggregation for Low-Rank Adaptation in
Federated Learning"). Its B stays where its text is, in a folder that only the owner of the text may
read, and no message has a place for it.

Guarantee:
    What a client's B lets out, it lets out through the A's that the client sends later. In mode
    ``example`` B is trained by the same noised steps as A: the pair is a release that is charged,
    of which a part is sent; later steps start from released numbers alone. In the client modes B is
    a part of the client's own data, of which an update is clipped as a whole, whatever it was made
    from: the clip bounds the client's part in every sum.

Two values are kept, of the last two rounds that the client answered: a round that is asked again,
after a crash, starts from what it first started from.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from client.residuals import Feedback, Known, MemoryResiduals, Residuals, StoredResiduals

if TYPE_CHECKING:
    from shared.lora import AdapterSpec, Vector
    from shared.policies import Policy
    from shared.wire import Instruction

FOLDER = "own-factors"
_AFTER_ALL = 2**62

logger = logging.getLogger("fedslm.client")


class HoldsFactors(Protocol):
    """A model, with torch or without, whose factors are read and changed."""

    @property
    def spec(self) -> AdapterSpec:
        """Return names, shapes and order of the factors."""

    def read_vector(self, kinds: str) -> Vector:
        """Return the factors of some kinds, flat in canonical order."""

    def load_vector(self, vector: Vector, kinds: str) -> None:
        """Replace the factors of some kinds."""


class OwnFactors:
    """Loads and keeps what clients do not share; does nothing where all is shared.

    Args:
        policy: the policy in force.
        model: what holds the adapter; its factors are read and changed.
        kept: where it is kept; in memory if not given.
    """

    def __init__(self, policy: Policy, model: HoldsFactors, kept: Residuals | None = None) -> None:
        self._kinds = policy.kept
        self._model = model
        self._kept = Feedback(MemoryResiduals() if kept is None else kept)

    @classmethod
    def stored(cls, policy: Policy, model: HoldsFactors, folder: Path | None) -> OwnFactors:
        """Return those that are kept under a folder, of a run or of a device's state."""
        return cls(policy, model, None if folder is None else StoredResiduals(folder / FOLDER))

    def before(self, client: int, instruction: Instruction) -> Vector | None:
        """Return what a client starts a round from; None where all is shared.

        Zeros before the client's first round in a run: its adapter is then that of the base.
        """
        if not self._kinds:
            return None
        size, number = self._model.spec.size(self._kinds), instruction.server_round
        return self._kept.left_before(client, instruction.run_id, number, size)

    def keep(self, client: int, instruction: Instruction) -> None:
        """Keep what the client's steps left in the model; the earlier if it is not finite."""
        if not self._kinds:
            return
        found = self._model.read_vector(self._kinds)
        if not np.isfinite(found).all():
            logger.warning("a client's own factors are not finite; it goes on from the earlier")
            return
        self._kept.keep(client, instruction.run_id, instruction.server_round, found)

    def load(self, client: int, run_id: str) -> None:
        """Load the newest that a client has, beside the shared factors."""
        if self._kinds:
            size = self._model.spec.size(self._kinds)
            newest = self._kept.left_before(client, run_id, _AFTER_ALL, size)
            self._model.load_vector(newest, self._kinds)


def forget_rounds_after(folder: Path, last: int) -> None:
    """Forget what rounds left that were not finished; they are asked again.

    Args:
        folder: of the run.
        last: the last finished round.

    Raises:
        RunFolderError: if a file cannot be written.
    """
    home = folder / FOLDER
    stored = StoredResiduals(home)
    for path in sorted(home.glob("client-*.safetensors")):
        client = int(path.stem.removeprefix("client-"))
        known = stored.read(client)
        rounds = {} if known is None else {n: v for n, v in known.rounds.items() if n <= last}
        if known is not None and len(rounds) < len(known.rounds):
            stored.write(client, Known(known.run_id, rounds))
