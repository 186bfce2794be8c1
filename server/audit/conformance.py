"""Tests of what ran against what was declared: one level for all of them together.

Each test gives a p-value that is at most ``u`` with probability at most ``u`` when the code does
what the plan says. A fixed number of tests is corrected for, whatever a run makes applicable, so
that all tests of one audit together raise a false alarm with probability at most :data:`LEVEL`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEVEL = 1e-3
"""Chance that a mechanism that does what it says fails any test of one audit."""

TESTS = 32
"""Tests that are corrected for; no audit makes more."""

PER_TEST = LEVEL / TESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Test:
    """One p-value.

    Args:
        name: what is tested, in two or three words.
        p: p-value before correction; 0 or 1 for a comparison that chance has no part in.
        broken: what it means if the test fails, as a sentence.
    """

    # Not a class of tests, whatever its name says to a test runner.
    __test__ = False

    name: str
    p: float
    broken: str

    @property
    def corrected(self) -> float:
        """Return the p-value after correction."""
        return min(1.0, TESTS * self.p)

    @property
    def failed(self) -> bool:
        """Whether the test contradicts the plan."""
        return self.corrected < LEVEL


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The tests of one property.

    Args:
        name: the property.
        tests: none if it was not tested.
        skipped: why it does not apply to this run; None if it applies.
        doubts: why passing it would say little, as sentences.
        facts: what it saw, or could have seen, as sentences.
    """

    name: str
    tests: tuple[Test, ...] = ()
    skipped: str | None = None
    doubts: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    @property
    def failures(self) -> list[Test]:
        """Return the tests that contradict the plan."""
        return [test for test in self.tests if test.failed]

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form, for a report."""
        return {
            "check": self.name,
            "skipped": self.skipped,
            "p_values": {test.name: test.p for test in self.tests},
            "failed": [test.name for test in self.failures],
            "doubts": list(self.doubts),
            "facts": list(self.facts),
        }


def exact(name: str, *, holds: bool, broken: str) -> Test:
    """Return a comparison that chance has no part in, as a test."""
    return Test(name=name, p=1.0 if holds else 0.0, broken=broken)


def smallest(values: Iterable[float]) -> float:
    """Return the smallest of several p-values, corrected for their number; 1 for none."""
    found = [float(value) for value in values]
    return min(1.0, len(found) * min(found)) if found else 1.0


def two_sided(lower: float, upper: float) -> float:
    """Return the p-value of a two-sided test from its two tails."""
    return min(1.0, 2.0 * min(lower, upper))
