from __future__ import annotations

import copy
import hashlib
import hmac
import struct

import numpy as np
import pytest
from scipy import stats

from shared.errors import PrivacyError, SchemaMismatch, SecureAggregationError
from shared.privacy.secagg import Identity, Roster
from shared.privacy.secagg.keys import agree, decrypt, derive, encrypt, new_private_key, public_key
from shared.privacy.secagg.masks import MaskedSum, pair_mask_key, pair_sign, self_mask_key

VIEW = bytes(range(32))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 by hand."""
    key = hmac.digest(salt, secret, "sha256")
    out, block, i = b"", b"", 1
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes((i,)), "sha256")
        out, i = out + block, i + 1
    return out[:length]


def chacha20_words(key: bytes, nonce: bytes, count: int, counter: int = 0) -> list[int]:
    """RFC 8439 by hand, from some block on."""
    out: list[int] = []
    while len(out) < count:
        start = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
        start += [*struct.unpack("<8I", key), counter, *struct.unpack("<3I", nonce)]
        x = list(start)
        for _ in range(10):
            for i in range(4):
                _quarter(x, i, 4 + i, 8 + i, 12 + i)
            for i in range(4):
                _quarter(x, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
        out += [(a + b) % 2**32 for a, b in zip(x, start, strict=True)]
        counter += 1
    return out[:count]


def _quarter(x: list[int], a: int, b: int, c: int, d: int) -> None:
    for left, right, far, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        x[left] = (x[left] + x[right]) % 2**32
        mixed = x[far] ^ x[left]
        x[far] = (mixed << turn | mixed >> (32 - turn)) % 2**32


def mask(key: bytes, dimension: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    total = MaskedSum(dimension)
    total.add_mask(key, 1)
    return total.words


def test_masks_are_chacha20_under_a_key_from_hkdf() -> None:
    seed = hashlib.sha256(b"seed").digest()
    info = b"fedslm-secagg-v1|self mask|" + struct.pack(">I", 7)
    stream = hkdf(seed, VIEW, info, 44)
    assert self_mask_key(seed, VIEW, 7) == stream
    assert mask(stream, 37).tolist() == chacha20_words(stream[:32], stream[32:], 37)
    info = b"fedslm-secagg-v1|pair mask|" + struct.pack(">II", 2, 300)
    assert pair_mask_key(seed, VIEW, 300, 2) == hkdf(seed, VIEW, info, 44)


def test_long_masks_continue_one_stream() -> None:
    """The blocks in which a mask is added leave no trace: a shorter mask is a prefix."""
    key = self_mask_key(bytes(32), VIEW, 1)
    long = mask(key, (1 << 15) * 2 + 21)
    assert np.array_equal(long[:100], mask(key, 100))
    for at in (1 << 15, 1 << 16):
        by_hand = chacha20_words(key[:32], key[32:], 21, counter=at // 16)
        assert long[at : at + 21].tolist() == by_hand


def test_masks_cancel_in_pairs_and_sums_wrap() -> None:
    total = MaskedSum(1000)
    total.add(np.full(1000, 2**32 - 1, dtype=np.uint32))
    for one, other in ((1, 2), (2, 1)):
        key = pair_mask_key(bytes(32), VIEW, one, other)
        total.add_mask(key, pair_sign(one, other))
    total.add(np.full(1000, 3, dtype=np.uint32))
    assert total.words.tolist() == [2] * 1000


def test_all_256_bits_of_a_seed_count() -> None:
    """Flower folds its seeds to 32 bits: flipping bits i and i + 32 together changed nothing."""
    seed = int.from_bytes(hashlib.sha256(b"s").digest(), "big")
    flips = [0, *(1 << i for i in range(256)), *((1 << i) | (1 << (i + 32)) for i in range(224))]
    keys = {self_mask_key((seed ^ flip).to_bytes(32, "big"), VIEW, 1) for flip in flips}
    assert len(keys) == len(flips)
    heads = {mask(key, 4).tobytes() for key in keys}
    assert len(heads) == len(flips)


def test_a_search_of_small_seeds_finds_nothing() -> None:
    """The attack on masks from short seeds: were any 12 bits all that count, one would match.

    By accident one matches with probability 2**-116.
    """
    seed = hashlib.sha256(b"a real seed").digest()
    target = mask(self_mask_key(seed, VIEW, 1), 4).tobytes()
    for small in range(1 << 12):
        guess = small.to_bytes(2, "big") * 16
        assert mask(self_mask_key(guess, VIEW, 1), 4).tobytes() != target


@pytest.mark.parametrize("other", [bytes(32), bytes(31) + b"\1"])
def test_masks_of_two_rounds_are_unrelated(other: bytes) -> None:
    """Same secret, another view: the difference is as uniform as the masks (1e-9 by chi-square)."""
    one = mask(self_mask_key(bytes(32), VIEW, 1), 1 << 14)
    two = mask(self_mask_key(bytes(32), other, 1), 1 << 14)
    for words in (one, two, one - two, one ^ two):
        assert chi_square_of_bytes(words.tobytes()) < stats.chi2.isf(1e-9, 255)
    scaled = [words / 2.0**32 - 0.5 for words in (one, two)]
    correlation = float(np.mean(scaled[0] * scaled[1])) * 12
    assert abs(correlation) < 6.2 / np.sqrt(one.size)


def chi_square_of_bytes(raw: bytes) -> float:
    found = np.bincount(np.frombuffer(raw, dtype=np.uint8), minlength=256)
    return float(((found - len(raw) / 256) ** 2).sum() / (len(raw) / 256))


def test_purposes_views_and_clients_separate_keys() -> None:
    secret = bytes(32)
    keys = [
        self_mask_key(secret, VIEW, 1),
        self_mask_key(secret, VIEW, 2),
        self_mask_key(secret, bytes(32), 1),
        pair_mask_key(secret, VIEW, 1, 2),
        pair_mask_key(secret, VIEW, 1, 3),
        derive(secret, "share", VIEW, bytes(8), 44),
    ]
    assert len({key[:32] for key in keys}) == len(keys)


def test_two_parties_agree_and_strangers_do_not() -> None:
    one, two, three = (new_private_key() for _ in range(3))
    assert agree(one, public_key(two)) == agree(two, public_key(one))
    assert agree(one, public_key(two)) != agree(three, public_key(two))


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_points_of_small_order_are_refused(point: bytes) -> None:
    with pytest.raises(SecureAggregationError, match="small order"):
        agree(new_private_key(), point)


def test_ciphertexts_are_bound_to_sender_receiver_and_view() -> None:
    secret = bytes(range(32))
    sealed = encrypt(secret, VIEW, 1, 2, b"shares")
    assert decrypt(secret, VIEW, 1, 2, sealed) == b"shares"
    wrong = [
        (bytes(32), VIEW, 1, 2, sealed),
        (secret, bytes(32), 1, 2, sealed),
        (secret, VIEW, 2, 1, sealed),
        (secret, VIEW, 1, 3, sealed),
        (secret, VIEW, 1, 2, sealed[:-1]),
        (secret, VIEW, 1, 2, bytes((sealed[0] ^ 1,)) + sealed[1:]),
    ]
    for arguments in wrong:
        with pytest.raises(SecureAggregationError, match="not authentic"):
            decrypt(*arguments)


def test_an_identity_reads_back_and_hides() -> None:
    identity = Identity.generate()
    again = Identity.from_private_bytes(identity.private_bytes())
    assert again.public_key == identity.public_key
    assert again.sign("x", VIEW, 1) == identity.sign("x", VIEW, 1)
    assert identity.private_bytes().hex() not in repr(identity)
    with pytest.raises(PrivacyError, match="copied or pickled"):
        copy.copy(identity)
    with pytest.raises(SchemaMismatch, match="31 bytes"):
        Identity.from_private_bytes(bytes(31))


def test_a_signature_serves_one_purpose_context_client_and_content() -> None:
    identity = Identity.generate()
    roster = Roster({1: identity.public_key, 2: Identity.generate().public_key})
    signature = identity.sign("share", VIEW, 1, b"x")
    roster.verify("share", VIEW, 1, signature, b"x")
    wrong = [
        ("confirm", VIEW, 1, signature, b"x"),
        ("share", bytes(32), 1, signature, b"x"),
        ("share", VIEW, 2, signature, b"x"),
        ("share", VIEW, 1, signature, b""),
        ("share", VIEW, 1, bytes(64), b"x"),
    ]
    for arguments in wrong:
        with pytest.raises(SecureAggregationError, match="does not fit its identity"):
            roster.verify(*arguments)
    with pytest.raises(SecureAggregationError, match="client=3 is not in the roster of 2"):
        roster.verify("share", VIEW, 3, signature, b"x")


def test_a_roster_knows_its_clients() -> None:
    keys = {client: Identity.generate().public_key for client in (5, 2, 9)}
    roster = Roster(keys)
    assert (list(roster), len(roster), 5 in roster, 4 in roster) == ([2, 5, 9], 3, True, False)
    assert roster.digest() == Roster(dict(sorted(keys.items()))).digest()
    assert roster.digest() != Roster({**keys, 5: Identity.generate().public_key}).digest()
    assert len(roster.digest()) == 64


def test_a_roster_refuses_one_identity_for_two() -> None:
    key = Identity.generate().public_key
    with pytest.raises(SecureAggregationError, match="client=2 and client=1 have one identity"):
        Roster({1: key, 2: key})
    with pytest.raises(SchemaMismatch, match="roster has 31 bytes"):
        Roster({1: key[:-1]})
