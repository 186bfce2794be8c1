"""False alarms and power of the comparison of adapter and base, on drawn evidence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from server.audit.promptleak.audit import PromptLeak
from server.audit.promptleak.controls import refuse
from server.audit.promptleak.judge import Judged
from server.audit.promptleak.marks import mark
from server.audit.protocol import AuditContext
from tests.server.audit import oracles

LEAK = mark(Judged(exact=True, close=True, exact_raw=True, close_raw=True))
NONE = mark(Judged())


def drawn(evidence: dict[str, Any], rng: np.random.Generator, extra: float) -> dict[str, Any]:
    """Evidence in which prompts differ in how easily they leak, and attacks on one hang together.

    ``extra`` is added to every leak probability with the adapter.
    """
    prompts, attacks = len(evidence["prompts"]), len(evidence["attacks"])
    ease = rng.beta(0.3, 3.0, size=(prompts, 1))
    found = dict(evidence)
    for side, more in (("adapter", extra), ("base", 0.0)):
        # One shared draw for half of a prompt's attacks: they are far from independent.
        hits = rng.random((prompts, attacks)) < np.minimum(1.0, ease + more)
        hits[:, ::2] = rng.random((prompts, 1)) < np.minimum(1.0, ease + more)
        rows = ["".join(LEAK if hit else NONE for hit in row) for row in hits]
        found[side] = {**evidence[side], "marks": rows}
    obeyed = rng.random((2, prompts, len(evidence["abuse"]["injections"]))) < ease
    found["abuse"] = {
        "injections": evidence["abuse"]["injections"],
        "adapter": ["".join("01"[int(hit)] for hit in row) for row in obeyed[0]],
        "base": ["".join("01"[int(hit)] for hit in row) for row in obeyed[1]],
    }
    return found


@pytest.mark.slow
@pytest.mark.statistical
def test_alike_models_are_told_apart_at_most_at_the_nominal_rate() -> None:
    """400 draws at alpha .05; more than 33 alarms have probability below 1e-3 at the nominal rate.

    A rise of .3 in every leak probability is seen in at least 90 of 100 draws.
    """
    audit = PromptLeak()
    around = AuditContext(claim=oracles.NO_CLAIM, seed=0, effort="release", artefacts=(refuse(),))
    evidence = oracles.through_json(audit.measure(around))
    rng = np.random.default_rng(20)
    alarms = sum(
        bool(audit.conclude(drawn(evidence, rng, 0.0), oracles.terms(seed=i)).detected)
        for i in range(400)
    )
    caught = sum(
        bool(audit.conclude(drawn(evidence, rng, 0.3), oracles.terms(seed=i)).detected)
        for i in range(100)
    )
    assert alarms <= 33
    assert caught >= 90
