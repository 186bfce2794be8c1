"""Only codes cross the wire, whatever an exception holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import FedSLMError, MalformedRow, all_errors
from shared.redact import known_codes, scrub_exception

RECORD = "patient 4711 has the code word heron"


@pytest.mark.parametrize("cls", list(all_errors()))
def test_our_errors_keep_their_code(cls: type[FedSLMError]) -> None:
    error = cls.__new__(cls)
    assert scrub_exception(error) == cls.code


@pytest.mark.parametrize(
    "error",
    [
        ValueError(RECORD),
        KeyError(RECORD),
        UnicodeDecodeError("utf-8", RECORD.encode(), 0, 1, RECORD),
        KeyboardInterrupt(RECORD),
        ExceptionGroup(RECORD, [MalformedRow(RECORD)]),
    ],
)
def test_foreign_errors_say_nothing(error: BaseException) -> None:
    assert scrub_exception(error) == "unexpected"


def test_a_cause_does_not_travel() -> None:
    error = MalformedRow("row=3, expected 2 columns.", hint=RECORD)
    error.__cause__ = ValueError(RECORD)
    error.add_note(RECORD)
    assert scrub_exception(error) == "malformed-row"


@given(text=st.text())
def test_a_code_set_on_the_instance_does_not_travel(text: str) -> None:
    error = MalformedRow("row=3.")
    vars(error)["code"] = text
    assert scrub_exception(error) in known_codes()
