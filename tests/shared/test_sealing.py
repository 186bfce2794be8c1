"""Encryption at rest: published vectors, a reader of our own making, and every way to tamper."""

from __future__ import annotations

import hashlib
import hmac
import io
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import FleetError, InvalidValue
from shared.sealing import (
    HEADER_BYTES,
    KEY_BYTES,
    TAG_BYTES,
    Sealer,
    SealingKey,
    sealed_key_id,
)

KEY = SealingKey(bytes(range(32)))
CONTEXT = b"a context"
CHUNK = 1 << 10
FULL = CHUNK + TAG_BYTES
FIXTURE = Path(__file__).parent / "data" / "sealed-v1.bin"
FIXTURE_TEXT = b"".join(b"line %d of the fixture\n" % n for n in range(150))

# The GCM specification that was submitted to NIST, appendix B, test cases 13 to 16 (AES-256):
# key, nonce, associated data, plaintext, ciphertext, tag.
_LONG = "feffe9928665731c6d6a8f9467308308" * 2
_PLAIN = (
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
_CIPHER = (
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
VECTORS = [
    ("00" * 32, "00" * 12, "", "", "", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        "00" * 32,
        "00" * 12,
        "",
        "00" * 16,
        "cea7403d4d606b6e074ec5d3baf39d18",
        "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (_LONG, "cafebabefacedbaddecaf888", "", _PLAIN, _CIPHER, "b094dac5d93471bdec1a502270e3cc6c"),
    (
        _LONG,
        "cafebabefacedbaddecaf888",
        "feedfacedeadbeeffeedfacedeadbeefabaddad2",
        _PLAIN[:120],
        _CIPHER[:120],
        "76fc6ece0f4e1768cddf8853bb2d551b",
    ),
]


def sealed(data: bytes, *, key: SealingKey = KEY, context: bytes = CONTEXT) -> bytes:
    target = io.BytesIO()
    Sealer([key]).seal_stream(io.BytesIO(data), target, context=context, chunk_log2=10)
    return target.getvalue()


def expand(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 from its definition (RFC 5869), by HMAC alone."""
    pseudorandom = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    out, block, counter = b"", b"", 1
    while len(out) < length:
        message = block + info + bytes([counter])
        block = hmac.new(pseudorandom, message, hashlib.sha256).digest()
        out, counter = out + block, counter + 1
    return out[:length]


def read_by_hand(data: bytes, key: bytes, context: bytes) -> bytes:
    """Open a sealed file by the words of the format alone."""
    header, body = data[:57], data[57:]
    assert header[:9] == b"FSLMSEAL\x01"
    chunk = 1 << header[9]
    salt, prefix = header[18:50], header[50:57]
    info = b"fedslm-seal-v1|" + header + hashlib.sha256(context).digest()
    cipher = AESGCM(expand(key, salt, info, 32))
    pieces = [body[at : at + chunk + 16] for at in range(0, len(body), chunk + 16)]
    return b"".join(
        cipher.decrypt(
            prefix + number.to_bytes(4, "big") + bytes([number == len(pieces) - 1]), piece, header
        )
        for number, piece in enumerate(pieces)
    )


@pytest.mark.parametrize(("key", "nonce", "aad", "plain", "cipher", "tag"), VECTORS)
def test_the_library_knows_the_vectors_that_nist_was_given(
    key: str, nonce: str, aad: str, plain: str, cipher: str, tag: str
) -> None:
    gcm = AESGCM(bytes.fromhex(key))
    found = gcm.encrypt(bytes.fromhex(nonce), bytes.fromhex(plain), bytes.fromhex(aad))
    assert found.hex() == cipher + tag
    assert gcm.decrypt(bytes.fromhex(nonce), found, bytes.fromhex(aad)).hex() == plain
    with pytest.raises(InvalidTag):
        gcm.decrypt(bytes.fromhex(nonce), found[:-1] + bytes([found[-1] ^ 1]), bytes.fromhex(aad))


def test_the_key_derivation_knows_the_first_vector_of_rfc_5869() -> None:
    secret, salt = b"\x0b" * 22, bytes(range(13))
    info = bytes(range(0xF0, 0xFA))
    expected = (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    found = HKDF(algorithm=SHA256(), length=42, salt=salt, info=info).derive(secret)
    assert found.hex() == expand(secret, salt, info, 42).hex() == expected


def test_a_file_of_format_1_is_read_for_ever() -> None:
    data = FIXTURE.read_bytes()
    assert Sealer([KEY]).open(data, context=b"fixture") == FIXTURE_TEXT
    assert read_by_hand(data, KEY.secret, b"fixture") == FIXTURE_TEXT


def test_the_id_of_a_key_is_derived_and_stands_in_the_header() -> None:
    by_hand = expand(KEY.secret, b"", b"fedslm-seal-key-id-v1", 8).hex()
    assert KEY.key_id == by_hand
    assert sealed_key_id(io.BytesIO(FIXTURE.read_bytes())) == by_hand


@given(st.binary(max_size=5 * CHUNK), st.binary(max_size=40), st.data())
def test_what_was_sealed_comes_back_whole_and_in_parts(
    data: bytes, context: bytes, draw: st.DataObject
) -> None:
    blob = sealed(data, context=context)
    assert read_by_hand(blob, KEY.secret, context) == data
    sealer = Sealer([KEY])
    assert sealer.open(blob, context=context) == data
    reader = sealer.reader(io.BytesIO(blob), context=context)
    assert reader.size == len(data)
    offset = draw.draw(st.integers(0, len(data) + 10))
    size = draw.draw(st.integers(0, len(data) + 10))
    assert reader.read(offset, size) == data[offset : offset + size]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_the_size_is_what_the_format_says(size: int) -> None:
    chunks = max(1, -(-size // CHUNK))
    assert len(sealed(bytes(size))) == HEADER_BYTES + size + chunks * TAG_BYTES


THREE = sealed(bytes(range(256)) * 10)


def refused(blob: bytes, *, context: bytes = CONTEXT) -> bool:
    """Tell whether a file is refused; what is read before that would be the original."""
    try:
        Sealer([KEY]).open(blob, context=context)
    except FleetError:
        return True
    return False


def test_every_single_bit_counts() -> None:
    for at in range(len(THREE)):
        changed = bytearray(THREE)
        changed[at] ^= 1 << at % 8
        assert refused(bytes(changed)), at


@given(st.integers(0, 8 * len(THREE) - 1))
def test_no_bit_can_be_flipped(bit: int) -> None:
    changed = bytearray(THREE)
    changed[bit // 8] ^= 1 << bit % 8
    assert refused(bytes(changed))


def test_no_end_can_be_cut_off() -> None:
    assert all(refused(THREE[:length]) for length in range(len(THREE)))


@given(st.binary(min_size=1, max_size=2 * FULL))
def test_nothing_can_be_appended(tail: bytes) -> None:
    assert refused(THREE + tail)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_chunks_cannot_be_moved_repeated_or_left_out(order: list[int]) -> None:
    body = THREE[HEADER_BYTES:]
    pieces = [body[at : at + FULL] for at in range(0, len(body), FULL)]
    moved = THREE[:HEADER_BYTES] + b"".join(pieces[i] for i in order)
    assert refused(moved) == (order != [0, 1, 2])


@given(st.binary(max_size=3 * CHUNK), st.binary(max_size=3 * CHUNK))
def test_headers_and_chunks_of_two_files_do_not_mix(first: bytes, second: bytes) -> None:
    one, two = sealed(first), sealed(second)
    assert refused(one[:HEADER_BYTES] + two[HEADER_BYTES:])
    # Last chunks of files of the same shape, too.
    assert refused(one[:-TAG_BYTES] + two[-TAG_BYTES:])


@given(st.binary(max_size=3 * HEADER_BYTES))
@settings(max_examples=500)
def test_what_is_no_sealed_file_is_refused(blob: bytes) -> None:
    assert refused(blob)
    assert refused(b"FSLMSEAL\x01\x0a" + blob)


def test_another_context_or_key_opens_nothing() -> None:
    assert refused(THREE, context=b"another")
    assert refused(THREE, context=b"")
    with pytest.raises(FleetError, match="sealed with key"):
        Sealer([SealingKey.new()]).open(THREE, context=CONTEXT)


def test_a_newer_format_and_a_chunk_that_is_too_large_are_named() -> None:
    for at, value in ((8, 2), (9, 31), (9, 9)):
        changed = bytearray(THREE)
        changed[at] = value
        with pytest.raises(FleetError, match="expected format 1"):
            Sealer([KEY]).open(bytes(changed), context=CONTEXT)


def test_two_files_share_neither_salt_nor_bytes() -> None:
    one, two = sealed(bytes(500)), sealed(bytes(500))
    assert one[:18] == two[:18]
    assert one[18:57] != two[18:57]
    assert one[57:] != two[57:]


def test_rotation_reads_the_old_and_seals_with_the_new() -> None:
    new = SealingKey.new()
    both = Sealer([new, KEY])
    assert both.open(THREE, context=CONTEXT) == bytes(range(256)) * 10
    target = io.BytesIO()
    both.reseal(io.BytesIO(THREE), target, context=CONTEXT)
    assert sealed_key_id(target) == new.key_id
    assert Sealer([new]).open(target.getvalue(), context=CONTEXT) == bytes(range(256)) * 10
    damaged = io.BytesIO(THREE[:100] + b"!" + THREE[101:])
    with pytest.raises(FleetError):
        both.reseal(damaged, io.BytesIO(), context=CONTEXT)


class Endless(io.RawIOBase):
    """A stream that gives a few bytes at a time and remembers how many were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left, self.most = size, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.most = max(self.most, size)
        given = min(size, self.left, 700)
        self.left -= given
        return bytes(given)


def test_a_large_file_passes_through_a_chunk_at_a_time() -> None:
    source, target = Endless(10 * CHUNK + 5), io.BytesIO()
    Sealer([KEY]).seal_stream(source, target, context=CONTEXT, chunk_log2=10)  # type: ignore[arg-type]
    assert source.most == CHUNK
    assert Sealer([KEY]).open(target.getvalue(), context=CONTEXT) == bytes(10 * CHUNK + 5)


def test_keys_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidValue, match="expected 32"):
        SealingKey(bytes(KEY_BYTES - 1))
    with pytest.raises(InvalidValue, match="0 sealing keys"):
        Sealer([])
    with pytest.raises(InvalidValue, match="1 of them distinct"):
        Sealer([KEY, KEY])
    with pytest.raises(InvalidValue, match="10 to 20"):
        Sealer([KEY]).seal_stream(io.BytesIO(), io.BytesIO(), context=b"", chunk_log2=21)
    with pytest.raises(InvalidValue, match="none below 0"):
        Sealer([KEY]).reader(io.BytesIO(THREE), context=CONTEXT).read(-1, 5)


def test_neither_a_key_nor_a_sealer_shows_its_secret() -> None:
    assert KEY.secret.hex() not in repr(KEY) + repr(Sealer([KEY]))
    assert "secret" not in repr(KEY)
    assert KEY.key_id in repr(Sealer([KEY]))
