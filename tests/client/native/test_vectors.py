"""The vectors are what our code writes now, and what others compute from the page alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from client.fleet import fleet_pb2 as pb
from client.fleet.objects import Tree, object_id
from client.fleet.records import decode
from client.fleet.worker import to_flower
from client.native.numbers import ORDERS, subsampled_gaussian_epsilon
from client.native.vectors import PATH, text
from shared.redact import known_codes
from shared.wire import decode_instruction, decode_introduction, decode_update, failure_code

VECTORS: dict[str, Any] = json.loads(PATH.read_text(encoding="ascii"))


def test_the_file_is_what_our_code_writes() -> None:
    assert PATH.read_text(encoding="ascii") == text(), "run python -m client.native.vectors"


def test_the_native_client_says_known_codes_alone() -> None:
    sources = "".join(p.read_text() for p in sorted((PATH.parent / "src").glob("*.cpp")))
    said = set(re.findall(r'(?:Refusal\(|code == )"([a-z-]+)"', sources))
    assert len(said) > 10
    assert said <= known_codes()


def contents(name: str) -> Any:
    """Read a content of the file by Flower's classes."""
    found = VECTORS["contents"][name]
    objects = {object_id(raw): raw for raw in map(bytes.fromhex, found["objects"])}
    return to_flower(decode(Tree(root=found["root"], contents=objects)))


def test_contents_read_back_by_the_wire() -> None:
    asked = decode_instruction(contents("instruction"))
    assert (asked.run_id, asked.server_round, asked.vector.tolist()) == (
        "spring",
        3,
        [0.0, 0.5, -0.25, 1.0],
    )
    update = decode_update(
        contents("update"),
        server_round=3,
        config_digest=asked.config_digest,
        stage="noised",
        size=4,
    )
    assert update.vector.tolist() == [0.125, -0.5, 3.0, 0.0]
    assert decode_introduction(contents("introduction")).client == 5
    assert failure_code(contents("failure")) == "policy-refused"


def test_objects_are_named_by_their_hash() -> None:
    for one in VECTORS["objects"]:
        head = f"{one['kind']} {','.join(one['children'])} {len(one['body']) // 2}\0".encode()
        assert bytes.fromhex(one["bytes"]) == head + bytes.fromhex(one["body"])
        assert one["id"] == hashlib.sha256(bytes.fromhex(one["bytes"])).hexdigest()


def test_an_answer_names_the_question_and_all_its_objects() -> None:
    said = VECTORS["answer"]
    request = pb.PushMessagesRequest.FromString(bytes.fromhex(said["push_messages_request"]))
    head = request.messages_list[0].metadata
    assert head.reply_to_message_id == VECTORS["question"]["root"]
    assert head.message_id == said["root"] == request.message_object_trees[0].object_id
    assert head.ttl == pytest.approx(599.0)
    assert {object_id(bytes.fromhex(raw)) for raw in said["objects"]} >= {said["root"]}


def test_the_signature_is_of_the_key() -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    said = VECTORS["signature"]
    key = load_pem_public_key(base64.b64decode(said["flwr-public-key"]))
    assert isinstance(key, EllipticCurvePublicKey)
    signed = base64.b64decode(said["flwr-signature"])
    key.verify(signed, said["flwr-timestamp"].encode(), ECDSA(SHA256()))


def test_noise_follows_from_the_page() -> None:
    """HKDF, ChaCha20 and Box-Muller written out again, with nothing of ours."""
    said = VECTORS["noise"]
    material = json.dumps(
        ["fedslm-noise-v1", said["seed"], *said["labels"]], separators=(",", ":")
    ).encode()
    assert said["key_material"] == material.hex()
    secret = hmac.new(b"fedslm-noise-v1", material, hashlib.sha256).digest()
    key = hmac.new(secret, b"\x01", hashlib.sha256).digest()

    def words(call: int, n: int) -> list[int]:
        nonce = bytes(8) + call.to_bytes(8, "little")
        stream = Cipher(algorithms.ChaCha20(key, nonce), mode=None).encryptor()
        data = stream.update(bytes(8 * n))
        return [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(n)]

    assert said["words"] == [f"{word:016x}" for word in words(0, 5)]
    assert said["second_call"] == f"{words(1, 1)[0]:016x}"
    uniform = [(word >> 11) * 2.0**-53 for word in words(0, 6)]
    assert said["uniform"] == uniform[:3]
    radius = [math.sqrt(-2 * math.log1p(-u)) for u in uniform[:3]]
    normal = [r * math.cos(2 * math.pi * u) for r, u in zip(radius, uniform[3:], strict=True)]
    normal += [r * math.sin(2 * math.pi * u) for r, u in zip(radius, uniform[3:], strict=True)]
    assert said["normal"] == pytest.approx(normal[:5], rel=said["tolerance"])
    coins = [(word >> 11) * 2.0**-53 < 0.25 for word in words(0, 20)]
    assert said["poisson_subsample"]["taken"] == [i for i, coin in enumerate(coins) if coin]


def test_clipped_updates_keep_the_bound() -> None:
    for case in VECTORS["clip"]:
        vector, clipped = (
            np.frombuffer(bytes.fromhex(case[name]), dtype="<f4") for name in ("vector", "clipped")
        )
        assert np.linalg.norm(clipped.astype(np.float64)) <= case["bound"]
        if np.isfinite(vector).all():
            wanted = vector.astype(np.float64) * case["factor"]
            assert clipped == pytest.approx(wanted, rel=1e-6)
        else:
            assert not clipped.any()


@pytest.mark.parametrize("case", VECTORS["epsilon"])
def test_epsilon_is_that_of_dp_accounting_and_never_below_the_reported(
    case: dict[str, float],
) -> None:
    from tests.client.device import plan

    q, sigma = case["sampling_probability"], case["noise_multiplier"]
    releases, delta = int(case["releases"]), case["delta"]
    accountant = RdpAccountant(orders=list(ORDERS))
    gaussian = dp_event.GaussianDpEvent(sigma)
    accountant.compose(dp_event.PoissonSampledDpEvent(q, gaussian), releases)
    assert case["epsilon"] == pytest.approx(accountant.get_epsilon(delta), rel=1e-6)
    found = plan(
        "example",
        sampling_probability=q,
        noise_multiplier=sigma,
        delta=delta,
        rounds=1,
        releases_per_round=releases,
    )
    assert found.epsilon() <= case["epsilon"]
    assert case["epsilon"] == pytest.approx(
        subsampled_gaussian_epsilon(
            sampling_probability=q, noise_multiplier=sigma, releases=releases, delta=delta
        )
    )
