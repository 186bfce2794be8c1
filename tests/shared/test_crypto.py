"""Signatures with a purpose, against RFC 8032's own vectors, and key files."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.crypto import Signature, SigningKey, signature_holds, user_key
from shared.errors import InvalidValue, RunFolderError

# RFC 8032, section 7.1, test 1: the empty message.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
OF_NOTHING = (
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
)
DIGEST = hashlib.sha256(b"a report").hexdigest()


def test_the_vector_of_rfc_8032() -> None:
    assert SigningKey(SECRET).public_key == PUBLIC
    assert signature_holds(PUBLIC, OF_NOTHING, b"")
    assert not signature_holds(PUBLIC, OF_NOTHING, b"x")


@given(st.integers(0, 511))
def test_no_bit_of_a_signature_is_idle(bit: int) -> None:
    changed = bytearray(bytes.fromhex(OF_NOTHING))
    changed[bit // 8] ^= 1 << bit % 8
    assert not signature_holds(PUBLIC, changed.hex(), b"")


@pytest.mark.parametrize("key", ["", PUBLIC.upper(), PUBLIC[:-1], PUBLIC + "0", "g" * 64])
def test_what_is_no_key_has_signed_nothing(key: str) -> None:
    assert not signature_holds(key, OF_NOTHING, b"")


def test_a_signature_is_worth_nothing_for_another_purpose_or_document() -> None:
    signed = SigningKey(SECRET).sign("fedslm-audit-report-v1", DIGEST)
    assert signed.holds()
    assert not replace(signed, domain="fedslm-adapter-v1").holds()
    assert not replace(signed, sha256=hashlib.sha256(b"another").hexdigest()).holds()
    assert Signature.from_dict(signed.to_dict()) == signed


@pytest.mark.parametrize("change", [{"algorithm": "rsa"}, {"signature": None}, {"domain": 3}])
def test_a_signature_of_another_form_is_refused(change: dict[str, object]) -> None:
    data = {**SigningKey(SECRET).sign("fedslm-audit-report-v1", DIGEST).to_dict(), **change}
    with pytest.raises(InvalidValue, match="expected those of ed25519"):
        Signature.from_dict(data)


def test_a_key_is_made_once_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = user_key("audit")
    assert path == tmp_path / "fedslm" / "audit.key"
    made = SigningKey.load_or_create(path)
    assert SigningKey.load_or_create(path).public_key == made.public_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["audit.key"]


def test_a_configuration_folder_is_found_without_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_key("audit") == tmp_path / ".config" / "fedslm" / "audit.key"


def test_bad_key_files_are_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.key"
    short.write_bytes(SECRET[:-1])
    short.chmod(0o600)
    with pytest.raises(InvalidValue, match="31 bytes, expected 32"):
        SigningKey.load_or_create(short)
    shown = tmp_path / "shown.key"
    shown.write_bytes(SECRET)
    shown.chmod(0o644)
    with pytest.raises(RunFolderError, match="mode 644, expected 600"):
        SigningKey.load_or_create(shown)
    with pytest.raises(RunFolderError, match="cannot be read or created"):
        SigningKey.load_or_create(tmp_path)
