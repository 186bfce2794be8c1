"""Signatures and rates at the front."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from server.frontgate import RateLimit, signer_of
from server.superlinkdoor import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from shared.errors import AccessDenied, InvalidValue
from tests.server.fleetkit import Identity, stranger

NOW = datetime(2030, 1, 1, tzinfo=UTC)
IDENTITY = stranger()


def headers(identity: Identity = IDENTITY, *, at: datetime = NOW) -> dict[str, list[str]]:
    return {name: [value] for name, value in identity.headers(at=at).items()}


def test_a_signed_call_names_its_key() -> None:
    assert signer_of(headers(), now=NOW) == IDENTITY.public


@pytest.mark.parametrize("seconds", [-304, -1, 0, 4])
def test_a_clock_that_is_nearly_right_passes(seconds: int) -> None:
    signed = headers(at=NOW + timedelta(seconds=seconds))
    assert signer_of(signed, now=NOW) == IDENTITY.public


def test_another_zone_is_the_same_time() -> None:
    signed = headers(at=NOW.astimezone(timezone(timedelta(hours=9))))
    assert signer_of(signed, now=NOW) == IDENTITY.public


@pytest.mark.parametrize("seconds", [-86400, -306, 6, 86400])
def test_a_wrong_clock_is_refused(seconds: int) -> None:
    with pytest.raises(AccessDenied):
        signer_of(headers(at=NOW + timedelta(seconds=seconds)), now=NOW)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(AccessDenied):
        signer_of(headers(at=NOW.replace(tzinfo=None)), now=NOW)


@pytest.mark.parametrize("name", [PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER])
@pytest.mark.parametrize("values", [[], [""], ["x"], ["AAAA"], ["A" * 3000]])
def test_a_bad_header_is_refused(name: str, values: list[str]) -> None:
    with pytest.raises(AccessDenied):
        signer_of(headers() | {name: values}, now=NOW)


@pytest.mark.parametrize("name", [PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER])
def test_a_header_given_twice_is_refused(name: str) -> None:
    signed = headers()
    with pytest.raises(AccessDenied):
        signer_of(signed | {name: signed[name] * 2}, now=NOW)


def test_another_keys_signature_is_refused() -> None:
    other = headers(stranger())
    with pytest.raises(AccessDenied):
        signer_of(headers() | {PUBLIC_KEY_HEADER: other[PUBLIC_KEY_HEADER]}, now=NOW)


def test_another_spelling_of_a_key_is_refused() -> None:
    spelt = base64.b64encode(IDENTITY.pem + b"\n").decode()
    with pytest.raises(AccessDenied):
        signer_of(headers() | {PUBLIC_KEY_HEADER: [spelt]}, now=NOW)


def test_other_kinds_of_keys_are_refused() -> None:
    other = Identity(name="x", key=generate_private_key(SECP256K1()))
    with pytest.raises(AccessDenied):
        signer_of(headers(other), now=NOW)
    ed = Ed25519PrivateKey.generate().public_key()
    pem = ed.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(AccessDenied):
        signer_of(headers() | {PUBLIC_KEY_HEADER: [base64.b64encode(pem).decode()]}, now=NOW)


@given(st.lists(st.text(max_size=80), max_size=3), st.sampled_from(list(headers())))
def test_no_header_breaks_it(values: list[str], name: str) -> None:
    if name == "content-type":
        assert signer_of(headers() | {name: values}, now=NOW) == IDENTITY.public
    else:
        with pytest.raises(AccessDenied):
            signer_of(headers() | {name: values}, now=NOW)


def test_a_caller_has_so_many_calls_a_minute() -> None:
    limit = RateLimit(60)
    assert sum(limit.take(b"a", now=0.0) for _ in range(100)) == 60
    assert limit.exhausted(b"a", now=0.0)
    assert not limit.exhausted(b"b", now=0.0)
    assert limit.take(b"a", now=1.0)
    assert not limit.take(b"a", now=1.0)
    assert sum(limit.take(b"a", now=1000.0) for _ in range(100)) == 60


def test_a_clock_that_goes_back_gives_nothing() -> None:
    limit = RateLimit(1)
    assert limit.take(b"a", now=100.0)
    assert not limit.take(b"a", now=0.0)


def test_memory_for_callers_is_bounded() -> None:
    limit = RateLimit(1, remembered=10)
    for caller in range(1000):
        assert limit.take(str(caller).encode(), now=0.0)
    assert not limit.exhausted(b"0", now=0.0)
    assert limit.exhausted(b"999", now=0.0)


@pytest.mark.parametrize("per_minute", [0, -1, True])
def test_a_limit_is_a_positive_number(per_minute: int) -> None:
    with pytest.raises(InvalidValue):
        RateLimit(per_minute)
