"""Readings of a text in the middle of a record, whatever the reader puts around it.

A passage with a prompt is joined as training joins a prompt and its response. A fact inside running
text has no such seam: what comes before it is simply the beginning of the same record. It is read
by reading the beginning alone and the beginning with the fact, and taking the tokens that the
second has in addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.audit.target import Passage, Reading, Target

_SAME = 0.05
"""Nats by which one token's log-probability may vary with what else is in the batch."""


def read_inline(
    target: Target, texts: Sequence[tuple[str, str]], *, adapter: bool
) -> list[Reading | None]:
    """Read texts that follow a beginning in the same record.

    An end mark that the reader scores after a whole text is left out, so that what is read is the
    text and nothing else.

    Args:
        target: the model.
        texts: beginning and text; the text starts where a token starts, usually with a space.
        adapter: with the adapter, or the base model alone.

    Returns:
        One reading per text, of its own tokens; None where there is none: because the reader cut
        the text off, or because its first token swallows the end of the beginning.
    """
    if not texts:
        return []
    # Whether an end mark is scored is one property of the reader, and any beginning shows it.
    befores = list(dict.fromkeys(before for before, _ in texts if before))
    wholes = list(dict.fromkeys(before + text for before, text in texts))
    reads = target.read([Passage(text=text) for text in (*befores, *wholes)], adapter=adapter)
    known = dict(zip((*befores, *wholes), reads, strict=True))
    end = _scores_end([(known[before], known[before + text]) for before, text in texts if before])
    return [_own(known.get(before), known[before + text], end) for before, text in texts]


def _scores_end(pairs: Sequence[tuple[Reading, Reading]]) -> int:
    """Return 1 if the last token of a reading is an end mark, else 0.

    At the last position of the beginning's reading, the longer text has the same token unless that
    one is an end mark.
    """
    same = [
        abs(float(alone.log_probability[-1] - whole.log_probability[alone.rank.size - 1])) < _SAME
        for alone, whole in pairs
        if whole.rank.size > alone.rank.size
    ]
    return int(sum(same) < len(same) / 2)


def _own(alone: Reading | None, whole: Reading, end: int) -> Reading | None:
    """Return the part of a reading that the beginning does not have."""
    start = 0 if alone is None else alone.rank.size - end
    stop = whole.rank.size - end
    if not stop > start:
        return None
    if alone is not None and not np.allclose(
        alone.log_probability[:start], whole.log_probability[:start], rtol=0.0, atol=_SAME
    ):
        return None
    return Reading(
        log_probability=whole.log_probability[start:stop],
        expected=whole.expected[start:stop],
        spread=whole.spread[start:stop],
        rank=whole.rank[start:stop],
        log_mass=whole.log_mass[start:stop],
    )
