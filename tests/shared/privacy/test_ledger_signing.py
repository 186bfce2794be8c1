from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import LedgerError, LedgerTampered
from shared.privacy.ledger_signing import LedgerSigner, SignedHead, verify_head
from shared.privacy.ledger_store import Head

HEAD = Head(seq=7, hash="ab" * 32)
# RFC 8032, section 7.1, test 1.
RFC_SECRET = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_the_key_is_the_one_of_rfc_8032() -> None:
    assert LedgerSigner(bytes.fromhex(RFC_SECRET)).public_key == RFC_PUBLIC


def test_what_is_signed_is_one_line_with_its_own_domain() -> None:
    signer = LedgerSigner(bytes.fromhex(RFC_SECRET))
    signed = signer.sign(HEAD)
    message = f"fedslm-ledger-head-v1|7|{'ab' * 32}".encode()
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(RFC_PUBLIC))
    key.verify(bytes.fromhex(signed.signature), message)
    assert (
        signed.signature
        == Ed25519PrivateKey.from_private_bytes(bytes.fromhex(RFC_SECRET)).sign(message).hex()
    )
    assert signed.head == HEAD
    verify_head(signed)
    verify_head(signed, trusted=RFC_PUBLIC)


SIGNED = LedgerSigner(bytes(32)).sign(HEAD)
OTHER = LedgerSigner(b"o" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"seq": 71},
        {"hash": "ac" * 32},
        {"public_key": OTHER.public_key},
        {"public_key": "zz" * 32},
        {"public_key": SIGNED.public_key.upper()},
        {"public_key": ""},
        {"signature": OTHER.sign(HEAD).signature},
        {"signature": SIGNED.signature + "00"},
        {"signature": ""},
        {"signature": "0" * 128},
    ],
)
def test_a_changed_head_has_no_valid_signature(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerTampered, match="does not have a valid signature"):
        verify_head(replace(SIGNED, **change))


def test_a_valid_signature_of_another_key_is_not_trusted() -> None:
    signed = OTHER.sign(HEAD)
    verify_head(signed)
    with pytest.raises(LedgerTampered, match=r"signed by key .* expected"):
        verify_head(signed, trusted=SIGNED.public_key)


@given(
    seq=st.integers(0, 2**63 - 1),
    text=st.binary(min_size=32, max_size=32),
    secret=st.binary(min_size=32, max_size=32),
    flip=st.integers(0, 511),
)
def test_a_flipped_bit_of_a_signature_is_noticed(
    seq: int, text: bytes, secret: bytes, flip: int
) -> None:
    signed = LedgerSigner(secret).sign(Head(seq=seq, hash=text.hex()))
    verify_head(signed)
    raw = bytearray.fromhex(signed.signature)
    raw[flip // 8] ^= 1 << flip % 8
    with pytest.raises(LedgerTampered):
        verify_head(replace(signed, signature=raw.hex()))


def test_a_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.key"
    first = LedgerSigner.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 32
    assert LedgerSigner.load_or_create(str(path)).public_key == first.public_key
    assert LedgerSigner(path.read_bytes()).public_key == first.public_key
    assert os.listdir(tmp_path) == ["ledger.key"]
    assert LedgerSigner.load_or_create(tmp_path / "second").public_key != first.public_key


def test_all_who_create_a_key_at_once_get_the_same(tmp_path: Path) -> None:
    for i in range(20):
        path = tmp_path / str(i)
        with ThreadPoolExecutor(8) as pool:
            signers = list(pool.map(LedgerSigner.load_or_create, [path] * 8))
        assert len({signer.public_key for signer in signers}) == 1


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_file_of_another_size_is_no_key(tmp_path: Path, size: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * size)
    path.chmod(0o600)
    with pytest.raises(LedgerError, match="bytes, expected 32"):
        LedgerSigner.load_or_create(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    LedgerSigner.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(LedgerError, match=f"mode {mode:03o}, expected 600") as caught:
        LedgerSigner.load_or_create(path)
    assert str(tmp_path) not in str(caught.value)


def test_a_missing_folder_is_an_error_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file") as caught:
        LedgerSigner.load_or_create(tmp_path / "nowhere" / "key")
    assert str(tmp_path) not in str(caught.value)


def test_a_key_never_shows_itself() -> None:
    signer = LedgerSigner(bytes.fromhex(RFC_SECRET))
    assert RFC_SECRET not in repr(signer)
    assert RFC_SECRET not in repr(signer.sign(HEAD))
    assert isinstance(signer.sign(HEAD), SignedHead)
