"""How a residual travels: one more record of an instruction, and the rank of each layer."""

from __future__ import annotations

from typing import Final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from shared.errors import SchemaMismatch
from shared.residual import RANKS, Residual
from shared.wirefields import HEADER, VECTOR, vector_of

RESIDUAL: Final = "residual"
_MOST: Final = 65_536


def put_residual(records: RecordDict, residual: Residual | None) -> None:
    """Write a residual beside an adapter; nothing where there is none."""
    if residual is None:
        return
    records.config_records[HEADER][RANKS] = list(residual.ranks)
    array = Array(np.ascontiguousarray(residual.vector, dtype=np.float32))
    records[RESIDUAL] = ArrayRecord({VECTOR: array})


def take_residual(records: RecordDict, header: ConfigRecord) -> Residual | None:
    """Read a residual; whether it is one of the adapter is checked by who knows that.

    Guarantee:
        No more is made than the bytes that the message has.

    Raises:
        SchemaMismatch: if there is one of ranks and numbers without the other, or either has
            another type.
    """
    ranks = header.get(RANKS)
    if ranks is None and RESIDUAL not in records:
        return None
    found = [k for k in ranks if type(k) is int] if isinstance(ranks, list) else []
    good = 0 < len(found) <= _MOST and all(0 <= k <= _MOST for k in found)
    if not (good and found == ranks):
        msg = "A message has a residual without the rank of each layer."
        raise SchemaMismatch(msg)
    return Residual(tuple(found), np.array(vector_of(records, RESIDUAL)))
