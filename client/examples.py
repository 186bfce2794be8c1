"""One tokenised training example; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IGNORED = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenised training example: the unit of example-level privacy.

    Attributes:
        ids: token ids, int64, shape ``(T,)``, already cut to the maximum length.
        labels: the same ids, with -100 where no loss is wanted; not shifted.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
