from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConflictingSettings, InvalidValue, SchemaMismatch
from shared.privacy.secagg.graph import required_survivors, tolerated_corrupt
from shared.privacy.terms import DistributedTerms


def terms(**changes: Any) -> DistributedTerms:
    values = {"grid": 1024, "honest_fraction": 0.9, "survivor_fraction": 0.8, "min_cohort": 3}
    return DistributedTerms(**{**values, **changes})


@given(
    cohort=st.integers(3, 10_000),
    honest=st.floats(0.01, 1.0),
    survivors=st.floats(0.51, 1.0),
)
def test_the_hidden_share_is_never_more_than_the_worst_case_leaves(
    cohort: int, honest: float, survivors: float
) -> None:
    """Oracle: count survivors who tell the server nothing, at the smallest sum that is released."""
    if not 2 * survivors + honest > 2:
        return
    chosen = terms(honest_fraction=honest, survivor_fraction=survivors)
    silent = required_survivors(cohort, survivors) - tolerated_corrupt(cohort, honest)
    assert chosen.hidden_share * cohort <= silent


def test_terms_are_stored_and_read() -> None:
    assert DistributedTerms.from_json(terms().to_json()) == terms()
    damaged: list[object] = [None, [], {}, {**terms().to_json(), "extra": 1}]
    for bad in damaged:
        with pytest.raises(SchemaMismatch):
            DistributedTerms.from_json(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"grid": 0},
        {"grid": 1.0},
        {"honest_fraction": 0.0},
        {"honest_fraction": 1.1},
        {"survivor_fraction": math.nan},
        {"min_cohort": 0},
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        terms(**changes)


@pytest.mark.parametrize(
    "changes", [{"min_cohort": 2}, {"survivor_fraction": 0.55}, {"survivor_fraction": 0.5}]
)
def test_terms_that_protect_nobody_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConflictingSettings):
        terms(**changes)
