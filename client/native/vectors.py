"""Test vectors of the protocol: bytes that every client in any language must read and write.

``python -m client.native.vectors`` writes ``protocol.json`` beside this file. Every byte in it is
made by the code that nodes and servers run; a test holds the file equal to what is made now. What a
part is for is said in docs/protocol.md.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from client.fleet import fleet_pb2 as pb
from client.fleet.messages import Question, answer, failure, object_tree
from client.fleet.objects import MESSAGE, Tree, build, object_id
from client.fleet.records import encode
from client.fleet.values import write_configs
from client.fleet.worker import from_flower
from client.native.controlvectors import control_vectors
from client.native.numbers import numeric_vectors
from client.native.secvectors import secure_vectors
from shared.canonical import canonical_json, sha256_hex
from shared.npyfile import write_npy
from shared.wire import (
    ClientUpdate,
    Instruction,
    Introduction,
    encode_instruction,
    encode_introduction,
    encode_update,
)

PATH: Final = Path(__file__).with_name("protocol.json")
SCHEMA: Final = 1

_NODE: Final = 7_240_127_112_334_117_001
_SERVER: Final = 1
_RUN: Final = 9_001
_CREATED: Final = 1_790_000_000.25
_CONFIG: Final = sha256_hex("a scenario")
_PLAN: Final = sha256_hex("a plan")
_SCALAR: Final = int.from_bytes(bytes(range(1, 49)))
_TIME: Final = "2026-09-21T14:13:20.250000+00:00"


def all_vectors() -> dict[str, Any]:
    """Return every vector, ready for JSON; bytes are hexadecimal."""
    return {
        "schema": SCHEMA,
        "objects": _objects(),
        "values": _values(),
        "npy": _npy(),
        "contents": _contents(),
        "question": _question(),
        "answer": _answer(),
        "requests": _requests(),
        "responses": _responses(),
        "signature": _signature(),
        "canonical": _canonical(),
        **numeric_vectors(),
        **control_vectors(),
        **secure_vectors(),
    }


def text() -> str:
    """Return the file's text."""
    return json.dumps(all_vectors(), indent=1, allow_nan=False) + "\n"


def _objects() -> list[dict[str, Any]]:
    """Write objects of each form: without children, with one, with two."""
    leaf, other = build("ArrayChunk", (), b"abc"), build("ArrayChunk", (), b"")
    names = [object_id(leaf), object_id(other)]
    pairs = [("ArrayChunk", (), b"abc"), ("ArrayChunk", (), b""), ("Array", names, b"{}")]
    return [
        {
            "kind": kind,
            "children": list(children),
            "body": body.hex(),
            "bytes": build(kind, children, body).hex(),
            "id": object_id(build(kind, children, body)),
        }
        for kind, children, body in pairs
    ]


def _values() -> list[dict[str, Any]]:
    """Write the body of a ConfigRecord for each type that the wire uses."""
    cases: list[tuple[str, Any]] = [
        ("bool", True),
        ("bool", False),
        ("int", 0),
        ("int", 300),
        ("int", -2),
        ("float", 0.5),
        ("float", 0.0),
        ("string", "example"),
        ("bytes", b"\x00\xff"),
        ("ints", [1, -1, 300]),
    ]
    return [
        {
            "type": kind,
            "key": "k",
            "value": value.hex() if isinstance(value, bytes) else value,
            "body": write_configs({"k": value}).hex(),
        }
        for kind, value in cases
    ]


def _npy() -> list[dict[str, Any]]:
    """Write arrays as the files that they travel as."""
    arrays: list[NDArray[Any]] = [
        np.array([0.0, 1.5, -2.25], dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.array([1, 2, 255], dtype=np.uint8),
    ]
    return [
        {
            "dtype": array.dtype.name,
            "shape": list(array.shape),
            "data": array.tobytes().hex(),
            "bytes": write_npy(array).hex(),
        }
        for array in arrays
    ]


def _instruction() -> Instruction:
    """Return an instruction of a round."""
    return Instruction(
        run_id="spring",
        server_round=3,
        config_digest=_CONFIG,
        plan_digest=_PLAN,
        vector=np.array([0.0, 0.5, -0.25, 1.0], dtype=np.float32),
    )


def _update() -> ClientUpdate:
    """Return the answer to it."""
    return ClientUpdate(
        server_round=3,
        config_digest=_CONFIG,
        stage="noised",
        vector=np.array([0.125, -0.5, 3.0, 0.0], dtype=np.float32),
    )


def _contents() -> dict[str, Any]:
    """Write whole contents as objects, children before their parents."""
    named: dict[str, Tree] = {
        "instruction": encode(from_flower(encode_instruction(_instruction()))),
        "update": encode(from_flower(encode_update(_update()))),
        "introduction": encode(from_flower(encode_introduction(Introduction(client=5)))),
        "failure": failure("policy-refused"),
    }
    return {name: _tree(tree) for name, tree in named.items()}


def _tree(tree: Tree) -> dict[str, Any]:
    """Write a tree."""
    return {"root": tree.root, "objects": [content.hex() for content in tree.contents.values()]}


def _head(message_id: str = "") -> pb.Metadata:
    """Return the head of the question."""
    return pb.Metadata(
        run_id=_RUN,
        src_node_id=_SERVER,
        dst_node_id=_NODE,
        group_id="3",
        ttl=600.0,
        message_type="train",
        created_at=_CREATED,
        message_id=message_id,
    )


def _asked() -> Tree:
    """Return the question as objects."""
    content = encode(from_flower(encode_instruction(_instruction())))
    body = pb.Message(metadata=_head()).SerializeToString(deterministic=True)
    root = build(MESSAGE, [content.root], body)
    return Tree(root=object_id(root), contents={**content.contents, object_id(root): root})


def _question() -> dict[str, Any]:
    """Write a question: how it is announced, and its objects."""
    tree = _asked()
    response = pb.PullMessagesResponse(
        messages_list=[pb.Message(metadata=_head(message_id=tree.root), content=pb.RecordDict())],
        message_object_trees=[object_tree(tree)],
    )
    return {
        "node_id": str(_NODE),
        "server_node_id": str(_SERVER),
        "run_id": str(_RUN),
        "type": "train",
        "group": "3",
        "created_at": _CREATED,
        "ttl": 600.0,
        "pull_messages_response": response.SerializeToString(deterministic=True).hex(),
        **_tree(tree),
    }


def _answered() -> tuple[pb.Message, Tree]:
    """Return the answer to the question, one second after it."""
    question = Question(
        message_id=_asked().root,
        run_id=_RUN,
        source=_SERVER,
        kind="train",
        group="3",
        created_at=_CREATED,
        ttl=600.0,
    )
    content = encode(from_flower(encode_update(_update())))
    done = answer(question, content, node_id=_NODE, now=_CREATED + 1.0)
    return done.message, done.tree


def _answer() -> dict[str, Any]:
    """Write an answer: its objects, and how it is announced."""
    message, tree = _answered()
    request = pb.PushMessagesRequest(
        node=pb.Node(node_id=_NODE),
        messages_list=[message],
        message_object_trees=[object_tree(tree)],
        clientapp_runtime_list=[2.5],
    )
    return {
        "now": _CREATED + 1.0,
        "seconds": 2.5,
        "push_messages_request": request.SerializeToString(deterministic=True).hex(),
        **_tree(tree),
    }


def _requests() -> list[dict[str, str]]:
    """Write one request of each call."""
    node, name = pb.Node(node_id=_NODE), object_id(b"")
    calls: Mapping[str, Any] = {
        "activate-node": pb.ActivateNodeRequest(public_key=_pem(), heartbeat_interval=60.0),
        "deactivate-node": pb.DeactivateNodeRequest(node_id=_NODE),
        "send-node-heartbeat": pb.SendNodeHeartbeatRequest(node=node, heartbeat_interval=60.0),
        "pull-messages": pb.PullMessagesRequest(node=node),
        "get-run": pb.GetRunRequest(node=node, run_id=_RUN),
        "pull-object": pb.PullObjectRequest(node=node, run_id=_RUN, object_id=name),
        "confirm-message-received": pb.ConfirmMessageReceivedRequest(
            node=node, run_id=_RUN, message_object_id=name
        ),
        "push-object": pb.PushObjectRequest(
            node=node, run_id=_RUN, object_id=name, object_content=b"\x01\x02", session_id="s-1"
        ),
    }
    return [
        {"path": f"/v1/fleet/{call}", "body": request.SerializeToString(deterministic=True).hex()}
        for call, request in calls.items()
    ]


def _responses() -> dict[str, str]:
    """Write responses that a client reads."""
    config = {
        "plan": pb.Scalar(string='{"schema":1}'),
        "scenario": pb.Scalar(string='{"a":1}'),
    }
    run = pb.Run(run_id=_RUN, fab_hash=_PLAN, series_id=4, override_config=config)
    replies: Mapping[str, Any] = {
        "activate-node": pb.ActivateNodeResponse(node_id=_NODE),
        "send-node-heartbeat": pb.SendNodeHeartbeatResponse(success=True),
        "pull-messages": pb.PullMessagesResponse(),
        "pull-object": pb.PullObjectResponse(
            object_found=True, object_available=True, object_content=b"\x01\x02"
        ),
        "push-messages": pb.PushMessagesResponse(
            objects_to_push=[object_id(b""), object_id(b"a")], session_id="s-1"
        ),
        "push-object": pb.PushObjectResponse(stored=True),
        "get-run": pb.GetRunResponse(run=run),
    }
    return {
        call: reply.SerializeToString(deterministic=True).hex() for call, reply in replies.items()
    }


def _key() -> Any:  # noqa: ANN401  (cryptography's key)
    """Return the key of the vectors; its scalar is public, so it names no device."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, derive_private_key

    return derive_private_key(_SCALAR, SECP384R1())


def _pem() -> bytes:
    """Return the public key as it names a node."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem: bytes = _key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def _signature() -> dict[str, str]:
    """Write the three headers of a request, with the signature of RFC 6979."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    signed = _key().sign(_TIME.encode("ascii"), ECDSA(SHA256(), deterministic_signing=True))
    return {
        "curve": "P-384",
        "scalar": _SCALAR.to_bytes(48).hex(),
        "public_key": _pem().decode("ascii"),
        "signed": _TIME.encode("ascii").hex(),
        "flwr-public-key": base64.b64encode(_pem()).decode("ascii"),
        "flwr-timestamp": _TIME,
        "flwr-signature": base64.b64encode(signed).decode("ascii"),
    }


def _canonical() -> list[dict[str, str]]:
    """Write canonical JSON and its digest; what a digest leaves out is a key of its own."""
    values: list[Any] = [
        {"b": 1.0, "a": [True, None, '\u00e9\n"\\'], "c": 1e-05},
        {"run": {"seed": 5}, "performance": {"threads": 1}},
    ]
    return [
        {
            "text": canonical_json(value),
            "sha256": sha256_hex(canonical_json(value)),
            "without_performance": sha256_hex(
                canonical_json({k: v for k, v in value.items() if k != "performance"})
            ),
        }
        for value in values
    ]


def main() -> None:
    """Write the file."""
    PATH.write_text(text(), encoding="ascii")
    sys.stdout.write(f"{PATH.name}: {PATH.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
