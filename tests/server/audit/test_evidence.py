"""Reading evidence: what JSON gives is read, and anything else is an audit error naming the key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.audit import evidence
from shared.errors import AuditError

GOOD: list[tuple[Callable[..., Any], Any, Any]] = [
    (evidence.number, 1, 1.0),
    (evidence.number, -2.5, -2.5),
    (evidence.integer, 7, 7),
    (evidence.boolean, False, False),
    (evidence.text, "", ""),
    (evidence.mapping, {"a": 1}, {"a": 1}),
    (evidence.mappings, [{"a": 1}], [{"a": 1}]),
    (evidence.sequence, [1, "a"], [1, "a"]),
    (evidence.optional_number, None, None),
    (evidence.optional_number, 2, 2.0),
]

BAD: list[tuple[Callable[..., Any], Any]] = [
    (evidence.number, True),
    (evidence.number, "1"),
    (evidence.number, None),
    (evidence.number, math.nan),
    (evidence.number, math.inf),
    (evidence.number, 10**400),
    (evidence.integer, True),
    (evidence.integer, 3.0),
    (evidence.integer, "3"),
    (evidence.boolean, 1),
    (evidence.text, 1),
    (evidence.text, None),
    (evidence.mapping, [1]),
    (evidence.mapping, {1: 2}),
    (evidence.mappings, [1]),
    (evidence.mappings, {"a": 1}),
    (evidence.sequence, "abc"),
    (evidence.sequence, {"a": 1}),
    (evidence.numbers, "12"),
    (evidence.numbers, [1, None]),
    (evidence.numbers, [1, True]),
    (evidence.numbers, [1, math.nan]),
    (evidence.numbers, [[1], [2]]),
    (evidence.numbers, 3),
    (evidence.optional_number, "x"),
]


@pytest.mark.parametrize(("read", "value", "expected"), GOOD)
def test_good_values_are_read(read: Callable[..., Any], value: object, expected: object) -> None:
    assert read({"key": value}, "key") == expected


@pytest.mark.parametrize(("read", "value"), BAD)
def test_bad_values_are_audit_errors_that_name_the_key(
    read: Callable[..., Any], value: object
) -> None:
    with pytest.raises(AuditError, match="'the key'"):
        read({"the key": value}, "the key")


@pytest.mark.parametrize(
    "read",
    [
        evidence.number,
        evidence.integer,
        evidence.boolean,
        evidence.text,
        evidence.numbers,
        evidence.mapping,
        evidence.mappings,
        evidence.sequence,
    ],
)
def test_a_missing_key_is_an_audit_error(read: Callable[..., Any]) -> None:
    with pytest.raises(AuditError, match="'key' is missing"):
        read({}, "key")


def test_an_error_shows_no_value() -> None:
    with pytest.raises(AuditError) as caught:
        evidence.number({"key": "the secret word"}, "key")
    assert "secret" not in str(caught.value)
    assert "str" in str(caught.value)


def test_ranges_are_closed_and_enforced() -> None:
    assert evidence.number({"p": 1}, "p", low=0, high=1) == 1.0
    with pytest.raises(AuditError, match="from 0 to 1"):
        evidence.number({"p": 1.01}, "p", low=0, high=1)
    with pytest.raises(AuditError, match="<= 1"):
        evidence.number({"p": 2}, "p", high=1)
    with pytest.raises(AuditError, match=">= 1"):
        evidence.integer({"n": 0}, "n", low=1)


def test_numbers_are_a_flat_array_of_the_size_asked_for() -> None:
    found = evidence.numbers({"x": [1, 2.5]}, "x", size=2)
    assert found.dtype == np.float64
    assert found.tolist() == [1.0, 2.5]
    assert evidence.numbers({"x": []}, "x").shape == (0,)
    with pytest.raises(AuditError, match="2 entries, expected 3"):
        evidence.numbers({"x": [1, 2]}, "x", size=3)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32)))
def test_what_is_stored_comes_back_from_json(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    text = json.dumps({"x": evidence.stored(array)}, allow_nan=False)
    found = evidence.numbers(json.loads(text), "x")
    np.testing.assert_allclose(found, array, rtol=0, atol=5.1e-7 + 1e-12)
    assert not (np.signbit(found) & (found == 0)).any()


def test_what_is_not_finite_is_not_stored() -> None:
    with pytest.raises(AuditError, match="1 measured values"):
        evidence.stored(np.array([1.0, np.inf]))
