"""The error tree: stable codes, distinct exit codes, and a drawing that matches the classes."""

from __future__ import annotations

import re

import pytest

import shared.errors
from shared.errors import (
    ConfigError,
    FedSLMError,
    LedgerTampered,
    PrivacyBudgetExhausted,
    Problem,
    all_errors,
)

ERRORS = list(all_errors())
DRAWN = re.compile(r"^    [│├└─ ]*(\w+) +(\d+)\b", re.MULTILINE)


def test_codes_are_distinct_and_plain() -> None:
    codes = [cls.code for cls in ERRORS]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_exit_codes_are_distinct_and_fit_a_shell() -> None:
    exits = [cls.exit_code for cls in ERRORS]
    assert len(set(exits)) == len(exits)
    assert all(1 <= code < 126 for code in exits)  # 0 is success, 126 and up are the shell's


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    assert shared.errors.__doc__ is not None
    drawn = {name: int(code) for name, code in DRAWN.findall(shared.errors.__doc__)}
    assert drawn == {cls.__name__: cls.exit_code for cls in ERRORS}


def test_every_error_of_the_module_is_in_the_tree_once() -> None:
    defined = {
        value
        for value in vars(shared.errors).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert defined == set(ERRORS)
    assert len(ERRORS) == len(set(ERRORS))


def test_parents_come_before_children() -> None:
    for index, cls in enumerate(ERRORS[1:], start=1):
        assert any(parent in ERRORS[:index] for parent in cls.__bases__)


@pytest.mark.parametrize("cls", ERRORS)
def test_every_error_is_explained(cls: type[FedSLMError]) -> None:
    assert cls.__doc__
    assert len(cls.__doc__) > 20


def test_message_and_hint_make_one_line() -> None:
    error = LedgerTampered("entry=3 does not follow entry 2.", hint="Restore the ledger.")
    assert str(error) == "entry=3 does not follow entry 2. Restore the ledger."
    assert str(LedgerTampered("entry=3.")) == "entry=3."
    assert error.to_dict() == {
        "error": "ledger-tampered",
        "exit_code": 27,
        "message": "entry=3 does not follow entry 2.",
        "hint": "Restore the ledger.",
    }


def test_a_config_error_lists_all_problems() -> None:
    problems = [
        Problem(key="run.rounds", message="found 0.", hint="Say 1."),
        Problem(key="lora.r", message="found -1."),
    ]
    error = ConfigError("2 problems.", problems=problems)
    assert isinstance(error, ValueError)
    assert error.to_dict()["problems"] == [
        {"key": "run.rounds", "message": "found 0.", "hint": "Say 1."},
        {"key": "lora.r", "message": "found -1.", "hint": ""},
    ]
    assert [str(p) for p in problems] == ["run.rounds: found 0. Say 1.", "lora.r: found -1."]


def test_an_exhausted_budget_says_the_three_numbers() -> None:
    error = PrivacyBudgetExhausted("No.", spent=7.5, requested=0.7, cap=8.0)
    assert (error.spent, error.requested, error.cap) == (7.5, 0.7, 8.0)
