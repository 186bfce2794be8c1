"""The text of a token: what is written is read back, and nothing else is read at all."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.enrolment import (
    MAX_TOKEN_CHARS,
    PREFIX,
    EnrolmentToken,
    decode_bytes,
    encode_bytes,
    require_address,
    require_name,
    require_role,
    require_secret,
    secret_digest,
)
from shared.errors import EnrolmentRefused, InvalidValue

SECRET = base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("=")
FIELDS: dict[str, Any] = {
    "a": "fleet.example.org:9093",
    "f": "0f" * 32,
    "s": SECRET,
    "n": "clinic-7",
    "e": 1_800_000_000,
}

names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
hosts = st.one_of(
    st.from_regex(r"[a-z0-9]{1,20}(\.[a-z0-9]{1,10}){0,3}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda found: f"[{found}]"),
)
tokens = st.builds(
    EnrolmentToken,
    address=st.builds(lambda h, p: f"{h}:{p}", hosts, st.integers(1, 65535)),
    fingerprint=st.binary(min_size=32, max_size=32).map(bytes.hex),
    secret=st.binary(min_size=32, max_size=32).map(encode_bytes),
    name=names,
    expires_at=st.integers(1, 4_000_000_000),
)


def text_of(fields: object) -> str:
    """Write a token without our code."""
    whole = json.dumps(fields).encode()
    return "fedslm1." + base64.urlsafe_b64encode(whole).decode().rstrip("=")


@given(tokens)
def test_what_is_written_is_read_back(token: EnrolmentToken) -> None:
    text = token.to_text()
    assert text.startswith(PREFIX)
    assert len(text) <= MAX_TOKEN_CHARS
    assert EnrolmentToken.from_text(text) == token


def test_the_text_is_the_form_that_is_documented() -> None:
    token = EnrolmentToken.from_text(text_of(FIELDS))
    assert token == EnrolmentToken(
        address="fleet.example.org:9093",
        fingerprint="0f" * 32,
        secret=SECRET,
        name="clinic-7",
        expires_at=1_800_000_000,
    )
    body = token.to_text().removeprefix("fedslm1.")
    assert json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) == FIELDS


def test_line_breaks_of_a_mail_do_not_count() -> None:
    text = text_of(FIELDS)
    broken = " \n" + "\r\n".join(text[i : i + 60] for i in range(0, len(text), 60)) + "\n"
    assert EnrolmentToken.from_text(broken) == EnrolmentToken.from_text(text)


def test_the_secret_is_not_shown_by_accident() -> None:
    token = EnrolmentToken.from_text(text_of(FIELDS))
    assert SECRET not in repr(token)
    assert SECRET not in f"{token}"


@pytest.mark.parametrize(
    "change",
    [
        {"a": "fleet.example.org"},
        {"a": "fleet.example.org:0"},
        {"a": "fleet.example.org:65536"},
        {"a": "https://fleet.example.org:9093"},
        {"a": "user@host:9093"},
        {"a": 7},
        {"f": "0F" * 32},
        {"f": "0f" * 31},
        {"f": None},
        {"s": SECRET[:-1]},
        {"s": SECRET + "A"},
        {"s": SECRET + "="},
        {"s": SECRET[:-1] + "9"},  # the last character has two bits too many
        {"s": 1},
        {"n": "../../etc/passwd"},
        {"n": "Clinic"},
        {"n": "clinic-7\n"},
        {"n": "x" * 41},
        {"n": ""},
        {"n": ["clinic-7"]},
        {"e": 0},
        {"e": -1},
        {"e": 1.5},
        {"e": True},
        {"e": 10**30},
        {"e": "1800000000"},
        {"x": 1},
    ],
)
def test_a_field_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    text = text_of({**FIELDS, **change})
    with pytest.raises(EnrolmentRefused) as caught:
        EnrolmentToken.from_text(text)
    assert SECRET[:20] not in str(caught.value)


@pytest.mark.parametrize("missing", list("afsne"))
def test_a_missing_field_is_refused(missing: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != missing}
    with pytest.raises(EnrolmentRefused):
        EnrolmentToken.from_text(text_of(fields))


@given(st.text(max_size=300))
@example("fedslm1.")
@example("fedslm1." + "A" * 2000)
@example("fedslm2." + text_of(FIELDS)[8:])
@example(text_of(FIELDS)[:-1])
@example(text_of([FIELDS]))
@example("fedslm1." + base64.urlsafe_b64encode(b"[" * 700).decode().rstrip("="))
@example("fedslm1.é")
@example("x" * 100_000)
def test_any_other_text_is_refused_in_one_way(text: str) -> None:
    with pytest.raises(EnrolmentRefused):
        EnrolmentToken.from_text(text)


@given(st.binary(max_size=200))
def test_base64url_agrees_with_the_standard_library(data: bytes) -> None:
    text = encode_bytes(data)
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == data
    assert decode_bytes(text) == data


@pytest.mark.parametrize("text", ["A", "AB", "A+/A", "AA==", "AAAA\n", "é", "AAB"])
def test_other_forms_of_base64url_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="base64url"):
        decode_bytes(text)


@given(names)
def test_good_names_pass(name: str) -> None:
    assert require_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        "a" * 41,
        "a b",
        "a/b",
        "..",
        "a.b",
        "a_b",
        "Ä",
        "\uff41",
        "a\n",
        "a\x00",
        "'; DROP TABLE nodes; --",
        7,
        None,
    ],
)
def test_bad_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidValue, match="name="):
        require_name(name)


@pytest.mark.parametrize("role", ["", "root", "Node", "node ", None])
def test_unknown_roles_are_refused(role: Any) -> None:
    with pytest.raises(InvalidValue, match="role="):
        require_role(role)


def test_addresses_are_split() -> None:
    assert require_address("127.0.0.1:1") == ("127.0.0.1", 1)
    assert require_address("[::1]:65535") == ("::1", 65535)
    assert require_address("a.b-c.example:80") == ("a.b-c.example", 80)
    for bad in (
        "::1:80",
        "[::1]",
        "a:b",
        "a:-1",
        ":80",
        "a:00",
        "a b:1",
        "a:1\n",
        "a" * 300 + ":1",
    ):
        with pytest.raises(InvalidValue, match="address="):
            require_address(bad)


def test_only_a_digest_of_the_secret_is_kept() -> None:
    found = secret_digest(SECRET)
    assert found == hashlib.sha256(b"fedslm-enrolment-v1|" + SECRET.encode()).digest()
    with pytest.raises(InvalidValue) as caught:
        require_secret("guessed-secret")
    assert "guessed" not in str(caught.value)
