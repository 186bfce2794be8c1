from __future__ import annotations

from typing import Any

import grpc
import pytest

from server.control.refusals import Malformed, NotThere, TooMany, TooSlow, refusal_of
from shared.errors import (
    AccessDenied,
    AdapterUntrusted,
    CertificateInvalid,
    EnrolmentRefused,
    FedSLMError,
    InvalidValue,
    LedgerTampered,
    OutOfDisk,
    all_errors,
)
from shared.redact import known_codes

SECRET = "the text of somebody's record"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotThere("x"), grpc.StatusCode.NOT_FOUND),
        (Malformed("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (InvalidValue("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (TooMany("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (TooSlow("x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (AccessDenied("x"), grpc.StatusCode.PERMISSION_DENIED),
        (EnrolmentRefused("x"), grpc.StatusCode.PERMISSION_DENIED),
        (CertificateInvalid("x"), grpc.StatusCode.UNAUTHENTICATED),
        (AdapterUntrusted("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (LedgerTampered("x"), grpc.StatusCode.INTERNAL),
        (OutOfDisk("x"), grpc.StatusCode.INTERNAL),
        (ValueError("x"), grpc.StatusCode.INTERNAL),
    ],
)
def test_statuses(error: Exception, status: grpc.StatusCode) -> None:
    assert refusal_of(error).status is status


@pytest.mark.parametrize(
    "error",
    [ValueError(SECRET), OSError(2, SECRET), LedgerTampered(SECRET), OutOfDisk(SECRET)],
)
def test_what_is_not_the_caller_s_stays_here(error: Exception) -> None:
    found = refusal_of(error)
    assert SECRET not in found.details + repr(found.metadata)
    assert found.code in known_codes()


@pytest.mark.parametrize(
    "kind", [cls for cls in all_errors() if cls.__module__.startswith("shared.errors.")]
)
def test_every_error_has_a_refusal(kind: type[FedSLMError]) -> None:
    arguments: dict[str, Any] = {"spent": 1.0, "requested": 1.0, "cap": 1.0}
    found = refusal_of(kind(SECRET, **(arguments if "budget" in kind.code else {})))
    assert found.code == kind.code
    shown = found.status is not grpc.StatusCode.INTERNAL
    assert (SECRET in found.details) is shown


def test_details_fit_a_header() -> None:
    details = refusal_of(Malformed("a\nb\x00" + "c" * 10_000)).details
    assert details.startswith("a?b?ccc")
    assert len(details) <= 400


def test_when_to_come_again_is_said_in_whole_seconds() -> None:
    assert ("fedslm-retry-after", "3") in refusal_of(TooMany("x", seconds=2.1)).metadata
    assert ("fedslm-retry-after", "1") in refusal_of(TooMany("x", seconds=0.001)).metadata
    assert len(refusal_of(Malformed("x")).metadata) == 1
