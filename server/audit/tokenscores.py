"""What a server can do with one update: matrices, the tokens to look for, and their scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.audit.protocol import Floats
from server.audit.stats import auc
from shared.errors import AuditError

Stage: TypeAlias = Literal["plain", "clipped", "noised", "masked"]

_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """One matrix of an update, and what each token's row would look like in it.

    Attributes:
        rows: what the server sees, shape ``(n, width)``.
        inputs: returns, for a position from 0, the row of every token of the vocabulary, shape
            ``(vocabulary, width)``.
    """

    rows: Floats
    inputs: Callable[[int], Floats]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sighting:
    """One client's update as the server sees it, and which tokens it came from.

    Attributes:
        views: matrices of the first block.
        present: which tokens of the vocabulary left a trace, shape ``(vocabulary,)``.
        tokens: how many positions did.
        positions: positions to try; 1 where a layer's input does not depend on the position.
    """

    views: tuple[View, ...]
    present: NDArray[np.bool_]
    tokens: int
    positions: int = 1


class UpdateProbe(ABC):
    """Updates of single clients as the server would see them, and the tokens behind each."""

    @property
    @abstractmethod
    def mode(self) -> str:
        """Return the privacy mode of the run."""

    @property
    @abstractmethod
    def stage(self) -> Stage:
        """Return what is done to an update before it leaves; masked ones are shown without mask."""

    @property
    @abstractmethod
    def factors(self) -> str:
        """Return which LoRA factors travel: ``"AB"`` or ``"B"``."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Return how many tokens the rows of an update can tell apart exactly."""

    @property
    @abstractmethod
    def clients(self) -> int:
        """Return how many clients can be looked at."""

    @abstractmethod
    def sighting(self, number: int) -> Sighting:
        """Return the update of one of the clients, made by the client's real code."""

    @abstractmethod
    def control(self, number: int) -> Sighting:
        """Return a plain update of so few made-up tokens that its rows tell them apart."""

    @abstractmethod
    def without_text(self) -> Sighting:
        """Return the update of a client that has no text at all; noise alone in mode example."""


def token_scores(sighting: Sighting) -> Floats:
    """Score every token of the vocabulary: how much of its row lies in the rows of the update.

    Where the rows of a matrix do not fill their space, the score is the squared length of the
    token's row inside it, over the whole. Where they do, every row lies inside and says nothing;
    then it is how far the matrix stretches the token's row, over the most that it can. The best of
    several matrices and positions counts: a first token leaves no trace in queries, for example.

    Returns:
        Shape ``(vocabulary,)``, higher for likelier tokens.
    """
    scores = np.full(sighting.present.size, -np.inf)
    readers = [_reader(view.rows) for view in sighting.views]
    for position in range(sighting.positions):
        for view, reader in zip(sighting.views, readers, strict=True):
            inputs = view.inputs(position)
            lengths = np.maximum(np.square(inputs).sum(axis=1), 1e-300)
            inside = np.square(inputs @ reader.T).sum(axis=1) / lengths
            scores = np.maximum(scores, inside)
    return scores


def presence_auc(scores: Floats, present: NDArray[np.bool_]) -> float:
    """Return the chance that a token that was there scores above one that was not.

    Raises:
        AuditError: if all tokens were there, or none.
    """
    if not 0 < present.sum() < present.size:
        msg = f"{int(present.sum())} of {present.size} tokens left a trace, expected some, not all."
        raise AuditError(msg)
    return auc(scores[present], scores[~present])


def numerical_rank(rows: Floats) -> int:
    """Return the number of singular values above rounding."""
    values = np.linalg.svd(rows, compute_uv=False)
    return int(np.count_nonzero(values > _ROUNDING * values[0])) if values.any() else 0


def _reader(rows: Floats) -> Floats:
    """Return what a token's row is multiplied by: a basis of the rows, or the rows themselves.

    Shape ``(k, width)``, with largest singular value 1; one row of zeros for an update of zeros.
    """
    _, values, basis = np.linalg.svd(rows, full_matrices=False)
    if not values.any():
        return np.zeros((1, rows.shape[1]))
    rank = int(np.count_nonzero(values > _ROUNDING * values[0]))
    if rank < rows.shape[1]:
        return np.asarray(basis[:rank], dtype=np.float64)
    return np.asarray(values[:, None] * basis / values[0], dtype=np.float64)
