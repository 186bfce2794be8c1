"""The clients' DP-SGD steps on made-up examples: their noise and their clip.

What runs a model stands behind :class:`PrivateSteps`; the tests are those of the server's noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from server.audit.conformance import Check, Test, exact
from server.audit.evidence import boolean, mapping, number, text
from server.audit.noisetests import noise_statistics, noise_tests
from server.audit.protocol import Floats
from server.audit.rehearsal import ROUNDING, ROUNDS
from shared.errors import AuditError, FedSLMError

NAME = "rehearsed-steps"


class PrivateSteps(ABC):
    """The clients' DP-SGD steps, rehearsed on made-up examples."""

    @abstractmethod
    def noise(self, steps: int) -> Floats:
        """Return what steps without any example add to the adapter.

        Returns:
            Shape ``(steps, d)``, each step with a noise source of its own, divided by the standard
            deviation that the plan declares for a step.
        """

    @abstractmethod
    def contribution(self) -> float:
        """Return how far one example whose gradient is far too long moves a step, in clips."""

    @abstractmethod
    def repeatable(self) -> bool:
        """Tell whether a step with the same seeded source adds the same noise."""


def measure_steps(steps: PrivateSteps) -> dict[str, Any]:
    """Rehearse the clients' DP-SGD steps.

    Raises:
        AuditError: if the client's code refuses what a run would feed it.
    """
    try:
        rows = steps.noise(ROUNDS)
        found = {
            "noise": noise_statistics(rows),
            "long": round(steps.contribution(), 9),
            "repeats": steps.repeatable(),
            "halved": noise_statistics(0.5 * rows),
            "reused": noise_statistics(np.repeat(rows[:1], ROUNDS, axis=0)),
        }
    except FedSLMError as error:
        msg = f"the installed steps refused a rehearsal (code {error.code!r})."
        raise AuditError(msg) from error
    return found


def check_steps(evidence: Mapping[str, Any]) -> Check:
    """Test the rehearsed steps.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if "skipped" in evidence:
        return Check(name=NAME, skipped=text(evidence, "skipped"))
    if "missing" in evidence:
        return Check(name=NAME, doubts=(text(evidence, "missing"),))
    moved = number(evidence, "long", low=0.0)
    tests = (
        *noise_tests(mapping(evidence, "noise"), who="The clients' noise"),
        step_clip(moved),
        exact(
            "repeats",
            holds=boolean(evidence, "repeats"),
            broken="A step with the same seeded noise did not add the same.",
        ),
    )
    doubts = () if moved >= 1.0 - ROUNDING else (_SHORT,)
    return Check(name=NAME, tests=tests, doubts=doubts)


_SHORT = "The made-up example did not reach the clip, so the clip of a step was not tried."


def step_clip(moved: float) -> Test:
    """Compare what one example moved a step by, in clips, with the clip."""
    return exact(
        "clip",
        holds=moved <= 1.0 + ROUNDING,
        broken="An example whose gradient is too long moves a step by more than the clip.",
    )
