"""The vectors of secure aggregation, computed again from the page with nothing of ours."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from scipy import stats

from client.native.secvectors import unamplified_skellam_epsilon
from client.native.vectors import PATH

VECTORS: dict[str, Any] = json.loads(PATH.read_text(encoding="ascii"))
SAID: dict[str, Any] = VECTORS["secagg"]
PRIME = 2**256 + 297
DOMAIN = b"fedslm-secagg-v1|"
ADVERT, TAG = 4 + 3 * 32 + 64, 16


def named(client: int) -> bytes:
    return client.to_bytes(4, "big")


def hashed(purpose: str, *parts: bytes) -> bytes:
    return hashlib.sha256(DOMAIN + purpose.encode() + b"|" + b"".join(parts)).digest()


def derived(secret: bytes, purpose: str, view: bytes, content: bytes, size: int) -> bytes:
    info, key = DOMAIN + purpose.encode() + b"|" + content, hmac.digest(view, secret, "sha256")
    out, block = b"", b""
    for number in range(1, 3):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        out += block
    return out[:size]


def mask(key: bytes, size: int) -> np.ndarray:
    stream = Cipher(algorithms.ChaCha20(key[:32], bytes(4) + key[32:]), mode=None).encryptor()
    return np.frombuffer(stream.update(bytes(4 * size)), dtype="<u4")


def body(message: str, kind: int) -> bytes:
    """Return what follows the context; the envelope is whole."""
    raw = bytes.fromhex(message)
    assert raw[:6] == b"FSSA\x01" + bytes([kind])
    assert raw[-TAG:] == hashlib.sha256(raw[:-TAG]).digest()[:TAG]
    return raw[38:-TAG]


def phase(name: str) -> dict[str, str]:
    return next(one for one in SAID["phases"] if one["phase"] == name)


def announced() -> dict[int, bytes]:
    rest = body(phase("share")["message"], 3)[4:]
    rows = [rest[i : i + ADVERT] for i in range(0, len(rest), ADVERT)]
    return {int.from_bytes(row[:4], "big"): row[4:] for row in rows}


def views() -> tuple[bytes, bytes]:
    """Return the digests of the announcement, and of the sharers: everybody."""
    first = hashed("announcement", bytes.fromhex(phase("share")["message"]))
    clients = sorted(announced())
    return first, hashed("sharers", first, named(len(clients)), *map(named, clients))


def agreed(private: str, public: bytes) -> bytes:
    mine = X25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    return mine.exchange(X25519PublicKey.from_public_bytes(public))


def test_shares_are_values_of_the_polynomial() -> None:
    for case in SAID["shamir"]:
        terms = [int(case["secret"], 16), *(int(c, 16) for c in case["coefficients"])]
        for x, share in enumerate(case["shares"], start=1):
            assert int(share, 16) == sum(c * x**i for i, c in enumerate(terms)) % PRIME


def test_everybody_signed_its_keys_and_the_announcement() -> None:
    terms = hashlib.sha256(bytes.fromhex(SAID["terms"]["bytes"])).digest()
    first, _ = views()
    for client, entry in announced().items():
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(SAID["roster"][str(client)]))
        key.verify(entry[96:], DOMAIN + b"advertise|" + terms + named(client) + entry[:96])
        if client == SAID["client"]:
            seed = bytes.fromhex(SAID["seed"])
            assert entry[64:96] == hashed("seed", terms, named(client), seed)
            shared = body(phase("share")["answer"], 4)
            key.verify(shared[-64:], DOMAIN + b"share|" + first + named(client))


def test_the_masked_vector_has_one_mask_of_its_own_and_one_with_each_neighbour() -> None:
    me, (_, second) = SAID["client"], views()
    total = np.frombuffer(bytes.fromhex(SAID["vector"]), dtype="<u4").copy()
    own = derived(bytes.fromhex(SAID["seed"]), "self mask", second, named(me), 44)
    total += mask(own, total.size)
    for peer, entry in announced().items():
        if peer == me:
            continue
        ends = named(min(me, peer)) + named(max(me, peer))
        key = derived(agreed(SAID["mask_key"], entry[32:64]), "pair mask", second, ends, 44)
        if me < peer:
            total += mask(key, total.size)
        else:
            total -= mask(key, total.size)
    answer = body(phase("mask")["answer"], 6)
    assert answer == named(me) + named(4 * total.size) + total.tobytes()


def test_a_survivor_is_opened_by_its_seed_and_a_lost_client_by_its_key() -> None:
    """What is revealed is what the neighbours had encrypted, one half of each pair."""
    me, (first, _) = SAID["client"], views()
    dealt = body(phase("mask")["message"], 5)
    count = int.from_bytes(dealt[4:8], "big")
    rows = dealt[8 + 68 * count + 4 :]
    pairs = {}
    for at in range(0, len(rows), 86):
        peer, sealed = int.from_bytes(rows[at : at + 4], "big"), rows[at + 4 : at + 86]
        ends = named(peer) + named(me)
        secret = agreed(SAID["share_key"], announced()[peer][:32])
        cipher = ChaCha20Poly1305(derived(secret, "share", first, ends, 32))
        pairs[peer] = cipher.decrypt(bytes(12), sealed, first + ends)
    listed = body(phase("confirm")["message"], 7)[4:]
    alive = {int.from_bytes(listed[i : i + 4], "big") for i in range(0, len(listed), 4)}
    seeds = {peer: pair[:33] for peer, pair in pairs.items() if peer in alive}
    keys = {peer: pair[33:] for peer, pair in pairs.items() if peer not in alive}
    expected = named(me)
    for table in (seeds, keys):
        assert table
        expected += named(len(table)) + b"".join(named(c) + table[c] for c in sorted(table))
    assert body(phase("reveal")["answer"], 10) == expected


def test_draws_are_of_the_law_that_they_are_said_to_be_of() -> None:
    """Two-sided at 1e-6 each; the law itself is scipy's."""
    for case in VECTORS["skellam"]["draws"][:3]:
        numbers, mean = np.array(case["numbers"]), case["variance"] / 2
        uniform = stats.skellam.cdf(numbers, mean, mean)
        jitter = np.random.default_rng(1).random(numbers.size)
        uniform -= jitter * stats.skellam.pmf(numbers, mean, mean)
        assert stats.kstest(uniform, "uniform").pvalue > 1e-6


def test_epsilon_of_fine_skellam_noise_is_close_to_that_of_gaussian_noise() -> None:
    """By the smallest over orders of the closed form, written out again."""
    for case in VECTORS["skellam"]["epsilon"]:
        z, g, n, delta = (case[k] for k in ("noise_multiplier", "grid", "releases", "delta"))
        found = min(
            n * (a / (2 * z**2) + min((2 * a + 5) / (4 * z**4 * g**2), 3 / (2 * z**2)))
            + np.log1p(-1 / a)
            - np.log(delta * a) / (a - 1)
            for a in (*range(2, 64), 128, 256)
        )
        assert case["epsilon"] == pytest.approx(found, rel=1e-9)
        again = unamplified_skellam_epsilon(noise_multiplier=z, grid=g, releases=n, delta=delta)
        assert again == case["epsilon"]
